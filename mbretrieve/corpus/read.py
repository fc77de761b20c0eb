"""A file to its Documents: the one place where units and passages become Documents, and failures become SkipFile."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import PurePosixPath

from mbretrieve.corpus import formats, jsonl
from mbretrieve.corpus.code import split_code
from mbretrieve.corpus.decode import decode, opened, read_bytes
from mbretrieve.corpus.leave_out import TEXT_LIMIT
from mbretrieve.corpus.lines import Passage, passage, split_lines
from mbretrieve.corpus.pdf import read_pdf
from mbretrieve.corpus.prose import split_lines_only
from mbretrieve.corpus.records import SkipFile, Skipped, SourceFile, WalkOptions
from mbretrieve.types import Document

_PATH_PARTS = 4  # of a long path, the folders nearest to the file say the most
_LONG_LINE = 1000
_MOST_IN_LONG_LINES = 0.9


def read_documents(file: SourceFile, options: WalkOptions, skipped: Skipped | None = None) -> Iterator[Document]:
    """Read a file and cut it into Documents.

    Source code is cut into units, other text by ``options.unit``. Of a file of text, every line is in exactly one
    Document, in order, so that their texts joined are the file's text; HTML, PDF, notebooks and JSON lines in BEIR's
    layout give the text taken out of them. Metadata: path, start_line and end_line (from 1, both included), language,
    unit ("function", "method", "class", "block", "section", "document") and name ("" if it has none); page, cell, or a
    JSON row's own keys. Ids are ``path::name`` and stay when lines move; what has the same name is numbered in order.
    (A BEIR row's is ``path::_id``; a file may have an `_id` twice, and it is the caller who chooses.)
    Rows of JSON lines that are left out are added to ``skipped``, and are read as they are asked for.
    Raises: SkipFile, and nothing else, at the call: never once the first Document is out.
    """
    try:
        documents = _to_documents(file, _passages(file, options, Skipped() if skipped is None else skipped))
        return chain([next(documents)], documents)
    except SkipFile:
        raise
    except StopIteration:
        raise SkipFile("empty") from None
    except Exception as error:  # whatever a parser trips over, the run goes on with the next file
        raise SkipFile("malformed", f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _passages(file: SourceFile, options: WalkOptions, skipped: Skipped) -> Iterator[tuple[str, Passage]]:
    """Yield each passage of a file with the name of its language."""
    if formats.is_jsonl(file.name):
        with opened(file) as stream:
            is_beir = jsonl.is_beir(jsonl.unpacked(stream, file.name))
        if is_beir:
            with opened(file) as stream:
                for found in jsonl.read_jsonl(jsonl.unpacked(stream, file.name), file.name, skipped):
                    yield "jsonl", found
            return
        if options.max_bytes is None and file.size > TEXT_LIMIT:
            raise SkipFile("over the size limit", "JSON lines that are not in BEIR's layout are read whole")
    data = read_bytes(file, options)
    if formats.suffix_of(file.name) == ".pdf":
        language, passages = "pdf", _in_units(read_pdf(data), options)
    else:
        language, passages = _text_passages(file.name, decode(data), options)
    for found in passages:
        yield language, found


def _text_passages(name: str, text: str, options: WalkOptions) -> tuple[str, list[Passage]]:
    suffix = formats.suffix_of(name)
    if not text.strip():
        raise SkipFile("empty")
    if suffix in formats.EXTRACTED:
        language, extract = formats.EXTRACTED[suffix]
        return language, _in_units(extract(text), options)
    lines = split_lines(text)
    if code := formats.code_language(name, text):
        _refuse_minified(lines, len(text))
        return code.name, [passage(lines, unit) for unit in split_code(text, lines, code)]
    language, split = formats.prose(name) or (formats.language_name(name), None)
    if split is None:
        _refuse_minified(lines, len(text))
    if options.unit == "document":
        return language, [Passage(text, 1, len(lines), "document")]
    return language, [passage(lines, unit) for unit in (split or split_lines_only)(lines)]


def _in_units(passages: list[Passage], options: WalkOptions) -> list[Passage]:
    """Return the passages taken out of a file as they are, or all of them as one."""
    if options.unit == "section":
        return passages
    text = "\n\n".join(found.text for found in passages)
    return [Passage(text, passages[0].start_line, passages[-1].end_line, "document", context=passages[0].context)]


def _refuse_minified(lines: Sequence[str], chars: int) -> None:
    """Raise SkipFile for a text that a machine packed, or data: nearly all of it in lines that nobody would write."""
    in_long_lines = sum(len(line) for line in lines if len(line) > _LONG_LINE)
    if in_long_lines > _MOST_IN_LONG_LINES * chars:
        raise SkipFile("minified")


def _to_documents(file: SourceFile, passages: Iterable[tuple[str, Passage]]) -> Iterator[Document]:
    used: set[str] = set()
    path = "/".join(PurePosixPath(file.name).parts[-_PATH_PARTS:])
    for language, found in passages:
        is_row = language == "jsonl"
        key = found.name or found.unit
        if not is_row:  # a file of rows may be larger than memory
            key = _unused(key, used)
        yield Document(
            id=f"{file.name}::{key}",
            text=found.text,
            metadata={
                "language": language,
                **found.extra,
                "path": file.name,
                "start_line": found.start_line,
                "end_line": found.end_line,
                "unit": found.unit,
                "name": found.name,
            },
            context=found.context if is_row else f"{path}\n{found.context}".rstrip(),
        )


def _unused(base: str, used: set[str]) -> str:
    """Return a name that no unit before has, and remember it."""
    key = next(key for number in count(1) if (key := base if number == 1 else f"{base}#{number}") not in used)
    used.add(key)
    return key
