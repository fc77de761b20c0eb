"""What each suite measures: which data at which revision, in which direction, at which lengths.

The table itself is `tasks.csv`, one line a part. Names, sources, revisions, splits, licences, headline metrics, what
is dropped and how many documents there are: all of it is mteb's task metadata, and a test compares. Lengths are those
that published late-interaction results use (eval/protocol.md says where each comes from). CQADupStack's twelve forums,
and the languages or context lengths of other tasks, are *parts*: their scores are averaged into one first.
"""

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, cast

from mbretrieve.errors import DataError

Layout = Literal["hub", "longembed"]


@dataclass(frozen=True, slots=True)
class Part:
    """One corpus with its queries and judgements.

    ``folder`` is its place below ``--data-dir``, in BEIR layout. ``repository`` is a dataset on the Hugging Face hub at
    ``revision``, of which ``config`` is taken; "" where mteb has none. ``documents`` is how many it holds, or 0.
    ``chosen``: this split was asked for, and no other is taken in its place.
    """

    folder: str
    split: str = "test"
    name: str = ""
    repository: str = ""
    revision: str = ""
    config: str = ""
    layout: Layout = "hub"
    documents: int = 0
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured as one figure: one part, or the mean of several.

    ``direction`` reads query -> document. Lengths are in tokens, None leaves one to the model. ``depth`` is how many
    documents are ranked. ``drop_own`` removes the document that has the query's own id from its ranking. ``code`` says
    whether BM25 splits identifiers; None leaves it to a look at the corpus.
    """

    name: str
    parts: tuple[Part, ...]
    direction: str = "query -> document"
    licence: str = "not specified"
    query_length: int | None = None
    document_length: int | None = None
    metric: str = "ndcg@10"
    drop_own: bool = False
    code: bool | None = None
    depth: int = 100


@dataclass(frozen=True, slots=True)
class Suite:
    """A named list of tasks. Its score is the mean over all of them; a mean over fewer does not bear its name.

    ``split`` is the one asked for in the place of the tasks' own, "" for these.
    """

    name: str
    title: str
    tasks: tuple[Task, ...]
    split: str = ""

    @property
    def folder(self) -> str:
        """What its folder of results is called: another split's are never beside these."""
        return f"{self.name}-{self.split}" if self.split else self.name


_BEIR = (
    "TRECCOVID NFCorpus NQ HotpotQA FiQA2018 ArguAna Touche2020 CQADupstackRetrieval QuoraRetrieval DBPedia SCIDOCS "
    "FEVER ClimateFEVER SciFact MSMARCO"
)
_NANOBEIR = (
    "NanoArguAnaRetrieval NanoClimateFeverRetrieval NanoDBPediaRetrieval NanoFEVERRetrieval NanoFiQA2018Retrieval "
    "NanoHotpotQARetrieval NanoMSMARCORetrieval NanoNFCorpusRetrieval NanoNQRetrieval NanoQuoraRetrieval "
    "NanoSCIDOCSRetrieval NanoSciFactRetrieval NanoTouche2020Retrieval"
)
_COIR = (
    "AppsRetrieval CodeFeedbackMT CodeFeedbackST CodeSearchNetCCRetrieval CodeTransOceanContest CodeTransOceanDL CosQA "
    "COIRCodeSearchNetRetrieval StackOverflowQA SyntheticText2SQL"
)
_LONGEMBED = (
    "LEMBNarrativeQARetrieval LEMBNeedleRetrieval LEMBPasskeyRetrieval LEMBQMSumRetrieval LEMBSummScreenFDRetrieval "
    "LEMBWikimQARetrieval"
)
# name -> what reports call it, and its tasks. "codesearchnet" is CoIR's, function -> comment, which ModernBERT's paper
# reports; the next two look for functions. The annotated functions were published only inside a pickle, so by folder.
_SUITES = {
    "beir": ("BEIR", _BEIR),
    "nanobeir": ("NanoBEIR", _NANOBEIR),
    "mldr": ("MLDR (English, out of domain)", "MultiLongDocRetrieval"),
    "longembed": ("LongEmbed", _LONGEMBED),
    "coir": ("CoIR", _COIR),
    "codesearchnet": ("CodeSearchNet (CoIR)", "COIRCodeSearchNetRetrieval"),
    "codesearchnet-queries": ("CodeSearchNet (comment -> function)", "CodeSearchNetRetrieval"),
    "codesearchnet-annotated": ("CodeSearchNet (99 annotated queries)", "CodeSearchNetAnnotated"),
    "stackoverflow-qa": ("StackOverflow-QA", "StackOverflowQA"),
    "cosqa": ("CosQA", "CosQA"),
}


def names() -> list[str]:
    """Every suite's name."""
    return list(_SUITES)


def get(name: str, tasks: Sequence[str] = (), split: str | None = None) -> Suite:
    """Return a suite by its name, or what a folder in BEIR layout holds; with ``tasks``, those tasks of it.

    A folder is one task if it has a corpus.jsonl, else one task for each of its folders that has one. Tasks are named
    as in mteb or by their folder, in any case. split: judge by this one; whether it is there, loading says.
    Raises: DataError for an unknown suite or task, naming the nearest, or a task whose splits are its parts.
    """
    suite = _folder_suite(Path(name)) if Path(name).is_dir() and name not in _SUITES else _named_suite(name)
    suite = _some(suite, tasks) if tasks else suite
    return suite if split is None else _of_split(suite, split)


def _of_split(suite: Suite, split: str) -> Suite:
    """Put a split in the place of every part's own; where it is that, nothing changes but that no other will do."""
    for task in suite.tasks:
        own = [part.split for part in task.parts]
        if task.parts[0].layout == "longembed" and set(own) != {split}:
            raise DataError(f"{task.name} has no split {split!r} to choose, only {', '.join(own)}: leave --split out")
    tasks = tuple(
        replace(task, parts=tuple(replace(part, split=split, chosen=True) for part in task.parts))
        for task in suite.tasks
    )
    if all(part.split == split for task in suite.tasks for part in task.parts):
        return replace(suite, tasks=tasks)
    return Suite(suite.name, f"{suite.title}, split {split}", tasks, split)


def _some(suite: Suite, tasks: Sequence[str]) -> Suite:
    known = {alias.lower(): task for task in suite.tasks for alias in _aliases(task)}
    for wanted in tasks:
        if wanted.lower() not in known:
            near = difflib.get_close_matches(wanted.lower(), known, n=3, cutoff=0.3)
            nearest = [known[alias].name for alias in near] or [task.name for task in suite.tasks[:3]]
            raise DataError(
                f"suite {suite.name} has no task {wanted!r}: nearest are {', '.join(dict.fromkeys(nearest))}"
            )
    chosen = dict.fromkeys(known[wanted.lower()] for wanted in tasks)
    return Suite(suite.name, suite.title, tuple(chosen))


def _aliases(task: Task) -> set[str]:
    folders = {part.folder.split("/")[0] for part in task.parts}
    return {task.name, *(folders if len(folders) == 1 else ())}


def _named_suite(name: str) -> Suite:
    if name not in _SUITES:
        near = difflib.get_close_matches(name.lower(), _SUITES, n=3, cutoff=0.4) or list(_SUITES)
        raise DataError(
            f"unknown suite {name!r}, and no folder of that name: nearest are {', '.join(near)}; "
            "or give a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv"
        )
    title, members = _SUITES[name]
    return Suite(name, title, tuple(_table()[task] for task in members.split()))


def _folder_suite(folder: Path) -> Suite:
    folder = folder.resolve()
    single = (folder / "corpus.jsonl").is_file()
    corpora = [folder] if single else sorted(path.parent for path in folder.glob("*/corpus.jsonl"))
    if not corpora:
        raise DataError(
            f"{folder} is not in BEIR layout: expected corpus.jsonl, queries.jsonl and qrels/test.tsv in it "
            "or in its folders"
        )
    tasks = tuple(Task(corpus.name, (Part(str(corpus)),)) for corpus in corpora)
    # Some sets in a folder that happens to be called "beir" are not BEIR, and must not be reported as if they were.
    name = f"{folder.name}-folder" if folder.name in _SUITES else folder.name
    return Suite(name, name, tasks)


@cache
def _table() -> dict[str, Task]:
    """Read tasks.csv: task name -> task, its lines joined as parts."""
    rows: dict[str, list[dict[str, str]]] = {}
    text = resources.files("mbretrieve.evaluation").joinpath("tasks.csv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines()):
        rows.setdefault(row["task"], []).append(row)
    return {name: _task(name, parts) for name, parts in rows.items()}


def _task(name: str, rows: Sequence[dict[str, str]]) -> Task:
    first = rows[0]
    parts = tuple(
        Part(
            folder=row["folder"],
            split=row["split"],
            name=row["part"],
            repository=row["repository"],
            revision=row["revision"],
            config=row["config"],
            layout=cast(Layout, row["layout"]),
            documents=int(row["documents"] or 0),
        )
        for row in rows
    )
    return Task(
        name=name,
        parts=parts,
        direction=first["direction"],
        licence=first["licence"],
        query_length=int(first["query_length"]) if first["query_length"] else None,
        document_length=int(first["document_length"]) if first["document_length"] else None,
        metric=first["metric"],
        drop_own=first["drop_own"] == "yes",
        code=first["code"] == "yes",
    )
