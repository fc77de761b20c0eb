"""From a part of a task to its documents, queries and judgements: BEIR folders, BEIR archives, hub datasets.

beir reads folders and archives, Hugging Face's `datasets` reads the hub: what a benchmark's authors wrote is read as
they read it. beir's loader drops repeated ids in silence and its complaints have no line numbers, so a folder is
checked line by line before beir reads it.

A document's text is ``title + " " + text``, stripped, as BEIR and mteb encode it; it has no context, which would be
repeated for every window. Nothing here unpickles or runs code from a dataset.
"""

import contextlib
import csv
import hashlib
import importlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.evaluation.suites import Part
from mbretrieve.jsonl import parse, read_lines
from mbretrieve.types import Document, Qrels

Row = tuple[str, str]
"""An id and its text."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """What one part holds, checked.

    ``queries`` are those with judgements. Judgements of a query without a text are left out (``unknown_queries`` counts
    those queries); judgements of documents that are not in the corpus stay, as in trec_eval, and cost recall
    (``unknown_documents`` counts them). ``split`` is the one that judges. ``fingerprint`` depends on all ids, texts and
    grades, not on their order. ``notes`` are lines for the report.
    """

    corpus: list[Document]
    queries: dict[str, str]
    qrels: Qrels
    origin: str
    split: str
    fingerprint: str
    unknown_queries: int
    unknown_documents: int
    notes: tuple[str, ...]


def load(part: Part, cache: Path, data_dir: Path | None = None) -> TaskData:
    """Load a part from ``data_dir`` (a folder in BEIR layout, or BEIR's archive of it), else from the hub.

    ``cache`` keeps what archives hold, and the fingerprints of what came from the hub: another one at the same revision
    is a damaged copy. Raises: DataError for data that is not there, malformed or damaged; MissingExtraError.
    """
    folder = _local(part, cache, data_dir)
    if folder is not None:
        judgements = _judgements_file(folder, part)
        data = _assemble(part, str(folder), *_read_folder(folder, judgements))
        if judgements.stem == part.split:
            return data
        note = f"judged by {judgements.stem}, its only split"
        return replace(data, split=judgements.stem, notes=(*data.notes, note))
    if not part.repository:
        raise DataError(f"{part.folder} has no source that can be downloaded: {_layout_hint(part)}")
    origin = f"{part.repository}@{part.revision}"
    data = _assemble(part, origin, *_read_hub(part))
    _remember(cache / "checksums.json", f"{origin}/{part.config}/{part.split}", data.fingerprint)
    return data


def _layout_hint(part: Part) -> str:
    return f"put corpus.jsonl, queries.jsonl and qrels/{part.split}.tsv in DIR/{part.folder} and give --data-dir DIR"


def _assemble(
    part: Part, origin: str, documents: Iterable[Row], queries: dict[str, str], judged: Qrels, repeated: int
) -> TaskData:
    corpus: dict[str, Document] = {}
    digest = 0
    for key, text in documents:
        if (seen := corpus.get(key)) is not None:
            if seen.text != text:
                raise DataError(f"{origin}: document id {key!r} comes twice with different texts: ids must be unique")
            continue
        corpus[key] = Document(key, text)
        digest += _digest("document", key, text)
    if not corpus:
        raise DataError(f"{origin}: the corpus is empty: expected at least one document")
    qrels = {query: grades for query, grades in judged.items() if query in queries}
    if not qrels:
        raise DataError(f"{origin}: no query has a judgement: expected ids of queries.jsonl in the qrels")
    for query, grades in qrels.items():
        digest += _digest("query", query, queries[query])
        digest += sum(_digest("judgement", query, document, str(grade)) for document, grade in grades.items())
    unknown_queries = len(judged) - len(qrels)
    unknown_documents = sum(document not in corpus for grades in qrels.values() for document in grades)
    notes = {
        f"{unknown_queries} judged queries have no text and are left out": unknown_queries,
        f"{unknown_documents} judgements name documents that are not in the corpus": unknown_documents,
        f"{repeated} judgements come more than once; the last of each counts": repeated,
        f"{len(corpus)} documents where {part.repository} has {part.documents}: not the published set": (
            part.documents and len(corpus) != part.documents
        ),
    }
    return TaskData(
        corpus=list(corpus.values()),
        queries={query: queries[query] for query in qrels},
        qrels=qrels,
        origin=origin,
        split=part.split,
        fingerprint=f"{digest % 2**128:032x}",
        unknown_queries=unknown_queries,
        unknown_documents=unknown_documents,
        notes=tuple(note for note, count in notes.items() if count),
    )


def _digest(*fields: str) -> int:
    """A hash of one record. Records are summed, so that their order does not matter and nothing is held or sorted."""
    state = hashlib.blake2b(digest_size=16)
    for field in fields:
        data = field.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(state.digest(), "little")


def _text(title: str | None, text: str | None) -> str:
    return f"{title or ''} {text or ''}".strip()


def _require(module: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, "eval", purpose) from error


# Folders and archives


def _local(part: Part, cache: Path, data_dir: Path | None) -> Path | None:
    """Where the part lies on this machine, or None."""
    if Path(part.folder).is_absolute():
        return Path(part.folder)
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a folder: expected one that holds folders in BEIR layout")
    if (data_dir / part.folder).is_dir():
        return data_dir / part.folder
    archive = data_dir / f"{part.folder.split('/')[0]}.zip"
    return _extract(archive, cache / "archives") / part.folder if archive.is_file() else None


def _extract(archive: Path, cache: Path) -> Path:
    """Unpack an archive once; what was unpacked is found again by the archive's own hash."""
    with archive.open("rb") as file:
        folder = cache / hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if folder.is_dir():
        return folder
    unzip = _require("beir.util", "beir", "reading BEIR archives").unzip
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache, prefix="partial-"))
    try:
        with zipfile.ZipFile(archive) as members:
            needed, free = sum(member.file_size for member in members.infolist()), shutil.disk_usage(cache).free
        if needed > free:
            raise DataError(f"{archive} unpacks to {needed:,} bytes and {cache} has {free:,}: make room")
        unzip(str(archive), str(partial))  # checks each member's CRC
        partial.replace(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is not a whole zip archive ({error}): download it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _read_folder(folder: Path, judgements: Path) -> tuple[Iterator[Row], dict[str, str], Qrels, int]:
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    for path in (corpus, queries):
        if not path.is_file():
            raise DataError(
                f"{folder} has no {path.name}: expected corpus.jsonl, queries.jsonl and qrels/{judgements.name}"
            )
    _check_jsonl(corpus)
    known = _check_jsonl(queries)
    judged, repeated = _check_judgements(judgements)
    unknown = judged - known
    if not judged - unknown:
        raise DataError(f"{judgements}: no query has a judgement: expected ids of {queries.name} in the first column")
    beir = _require("beir.datasets.data_loader", "beir", "reading folders in BEIR layout")
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):  # it draws progress bars
        if unknown:  # it would stop at the first one
            judgements = _without(judgements, unknown, Path(scratch) / "qrels.tsv")
        loader = beir.GenericDataLoader(corpus_file=str(corpus), query_file=str(queries), qrels_file=str(judgements))
        documents, texts, qrels = loader.load_custom()
    for query in unknown:
        qrels[query] = {}
    return _drain(documents), texts, qrels, repeated


def _drain(documents: dict[str, dict[str, str]]) -> Iterator[Row]:
    """Yield what beir read and let go of it: a large corpus should not be in memory twice."""
    for key in list(documents):
        fields = documents.pop(key)
        yield key, _text(fields["title"], fields["text"])


def _judgements_file(folder: Path, part: Part) -> Path:
    """The split's judgements, or, if nobody asked for it, the only ones there are."""
    there = sorted((folder / "qrels").glob("*.tsv"))
    for path in there:
        if path.stem == part.split or (len(there) == 1 and not part.chosen):
            return path
    found = ", ".join(path.name for path in there) or "none"
    instead = "one of these splits" if part.chosen else "that split or a single one"
    raise DataError(f"{folder} has no qrels/{part.split}.tsv (found: {found}): expected {instead}")


def _check_jsonl(path: Path) -> set[str]:
    """Check each line of corpus.jsonl or queries.jsonl and return the ids. Raises: DataError with file and line."""
    ids: set[str] = set()
    for place, line in read_lines(path):
        row = parse(line, place)
        key, text, title = row.get("_id"), row.get("text"), row.get("title") or ""
        if not (isinstance(key, str) and isinstance(text, str) and isinstance(title, str)):
            got = line.decode("utf-8").strip()[:60]
            raise DataError(f'{place}: expected {{"_id": "...", "text": "..."}} with strings, got {got}')
        if key in ids:
            raise DataError(f"{place}: id {key!r} comes a second time: ids must be unique")
        ids.add(key)
    if not ids:
        raise DataError(f"{path} is empty: expected one JSON object a line")
    return ids


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a judgements file as beir splits them, with their numbers."""
    try:
        with path.open(encoding="utf-8") as file:
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
            for row in reader:
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table of tabs in UTF-8 ({error})") from error


def _check_judgements(path: Path) -> tuple[set[str], int]:
    """Check each line of a judgements file; return its queries and how many judgements come again.

    Raises: DataError with file and line.
    """
    judged: set[tuple[str, str]] = set()
    repeated = 0
    for number, row in _rows(path):
        grade = row[2].strip().removeprefix("-") if len(row) >= 3 else ""
        if number == 1:
            if grade.isdecimal():
                raise DataError(f"{path}:1: expected the header query-id, corpus-id, score, got a judgement")
            continue
        if not grade.isdecimal():
            got = "\t".join(row)[:60]
            raise DataError(f"{path}:{number}: expected query-id, corpus-id and a whole number, by tabs, got {got!r}")
        repeated += (row[0], row[1]) in judged
        judged.add((row[0], row[1]))
    return {query for query, _ in judged}, repeated


def _without(path: Path, queries: set[str], target: Path) -> Path:
    """Copy a judgements file but for some queries."""
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        writer.writerows(row for _, row in _rows(path) if not row or row[0] not in queries)
    return target


# The hub


def _read_hub(part: Part) -> tuple[Iterator[Row], dict[str, str], Qrels, int]:
    """Read a hub dataset at its pinned revision: downloads resume, and the hub's own cache keeps them."""
    hub = _require("datasets", "datasets", "reading datasets of the Hugging Face hub")
    if not sys.stderr.isatty():
        hub.disable_progress_bars()
    try:
        return _HUB_LAYOUTS[part.layout](hub, part)
    except (OSError, ValueError, hub.exceptions.DatasetsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{part.folder} is not on this machine and {part.repository} could not be read ({first}): "
            f"{_layout_hint(part)}"
        ) from error


def _read_hub_layout(hub: Any, part: Part) -> tuple[Iterator[Row], dict[str, str], Qrels, int]:
    """mteb's and CoIR's layout: configurations `corpus`, `queries` and, for judgements, `default` or `qrels`; each with
    a prefix ("python-corpus") where one repository holds several sets."""
    configs = set(hub.get_dataset_config_names(part.repository, revision=part.revision))
    prefix = f"{part.config}-" if part.config else ""

    def table(*names: str, judges: bool = False) -> Any:
        config = next((prefix + name for name in names if prefix + name in configs), None)
        if config is None:
            raise DataError(f"{part.repository} has no configuration {prefix}{names[0]}: it has {sorted(configs)}")
        splits = hub.get_dataset_split_names(part.repository, config, revision=part.revision)
        split = part.split if part.split in splits else splits[0]
        if split != part.split and (len(splits) > 1 or (judges and part.chosen)):
            raise DataError(f"{part.repository} {config} has no split {part.split}: it has {', '.join(splits)}")
        return hub.load_dataset(part.repository, config, split=split, revision=part.revision)

    judged, repeated = _hub_judgements(
        (row["query-id"], row["corpus-id"], int(row["score"]))
        for row in table("qrels" if prefix else "default", "qrels", judges=True)
    )
    # CoIR keeps the queries of all its splits in one table, told apart by a column.
    queries = (row for row in table("queries", "query") if row.get("partition", part.split) == part.split)
    texts = {_key(row): row["text"] or "" for row in queries}
    documents = ((_key(row), _text(row.get("title"), row["text"])) for row in table("corpus"))
    return documents, texts, judged, repeated


def _read_longembed_layout(hub: Any, part: Part) -> tuple[Iterator[Row], dict[str, str], Qrels, int]:
    """LongEmbed's layout: `corpus`, `queries` and `qrels` in a folder a set, and, where the task is one of several
    context lengths ("test_256"), a column that tells them apart. Its README calls the three splits of one table, but
    `datasets` refuses splits with different columns, so each file is asked for by its path."""
    length = part.split.partition("_")[2]

    def rows(name: str) -> Iterator[dict[str, Any]]:
        files = {name: f"{part.config}/{name}.jsonl"}
        table = hub.load_dataset(part.repository, data_files=files, split=name, revision=part.revision)
        return (row for row in table if not length or row["context_length"] == int(length))

    judged, repeated = _hub_judgements((row["qid"], row["doc_id"], 1) for row in rows("qrels"))
    texts = {str(row["qid"]): row["text"] or "" for row in rows("queries")}
    return ((str(row["doc_id"]), _text("", row["text"])) for row in rows("corpus")), texts, judged, repeated


_HUB_LAYOUTS = {"hub": _read_hub_layout, "longembed": _read_longembed_layout}


def _key(row: dict[str, Any]) -> str:
    return str(row["_id"] if "_id" in row else row["id"])


def _hub_judgements(rows: Iterable[tuple[Any, Any, int]]) -> tuple[Qrels, int]:
    qrels: Qrels = {}
    repeated = 0
    for query, document, grade in rows:
        grades = qrels.setdefault(str(query), {})
        repeated += str(document) in grades
        grades[str(document)] = grade
    return qrels, repeated


def _remember(path: Path, name: str, fingerprint: str) -> None:
    """Keep what a pinned revision held when it was first read, and refuse another content under that name later."""
    known: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if known.get(name, fingerprint) != fingerprint:
        raise DataError(
            f"{name} is not what it was when first read (checksum {fingerprint}, then {known[name]}): its copy in the "
            f"Hugging Face cache is damaged; delete that copy, or the line in {path} if the first was"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(known | {name: fingerprint}, indent=2, sort_keys=True) + "\n", "utf-8")
    partial.replace(path)
