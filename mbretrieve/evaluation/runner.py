"""From a suite and a system to results: one JSON file a task, written when the task is done.

A file that is there is a finished task and is not run again. A task that fails does not stop the others. What was
encoded for a task that was interrupted stays beside the results until the task is finished.
"""

import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mbretrieve.errors import DataError, MbretrieveError
from mbretrieve.evaluation import datasets, metrics, provenance
from mbretrieve.evaluation.datasets import TaskData
from mbretrieve.evaluation.report import TaskResult, read_result, write_result
from mbretrieve.evaluation.rerankers import Twinned
from mbretrieve.evaluation.suites import Part, Suite, Task
from mbretrieve.evaluation.trec import write_run
from mbretrieve.types import Document, Progress, Run, Searcher

QUERIES_AT_ONCE = 4096
SAMPLE = 100
"""How many queries are asked one at a time, for the latency."""
LATENCY_K = 10
WORK = ".unfinished"


class System(Protocol):
    """What is evaluated: told a task and its corpus, it makes a `Searcher`. `evaluation.searchers` has them."""

    @property
    def name(self) -> str:
        """What its folder of results is called."""

    def describe(self, task: Task) -> dict[str, Any]:
        """Return, as JSON values, all that decides its figures on a task besides the data; under ``search`` what does
        not change the index."""

    def build(self, task: Task, corpus: Sequence[Document], folder: Path, progress: Progress | None) -> Searcher:
        """Index a corpus. ``folder`` keeps what is built, so that an interrupted build goes on from there."""


@dataclass(frozen=True, slots=True)
class Options:
    """Where data and results lie. ``cache`` keeps what was downloaded; ``indexes`` keeps indexes, None: only while
    their task is unfinished. ``exact`` asks for exact search beside the index. ``say`` takes lines for the user."""

    output: Path
    cache: Path
    data_dir: Path | None = None
    indexes: Path | None = None
    exact: bool = False
    progress: Progress | None = None
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a suite gave: the tasks' results, those of earlier runs too, and the failures, a line each."""

    results: list[TaskResult]
    failures: dict[str, str]


@dataclass(slots=True)
class _Figures:
    """What was measured on one part."""

    evaluation: metrics.Evaluation
    exact: metrics.Evaluation | None
    report: dict[str, Any]
    searching: float
    latencies: list[float]
    agreement: float | None
    data: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def run_suite(suite: Suite, system: System, options: Options) -> Outcome:
    """Run what is not finished of a suite, task by task."""
    results: list[TaskResult] = []
    failures: dict[str, str] = {}
    for task in suite.tasks:
        try:
            results.append(_finished(suite, task, system, options) or run_task(suite, task, system, options))
        except MbretrieveError as error:
            failures[task.name] = str(error)
        except Exception as error:  # a bug, here or in a library, must not cost the suite's other tasks
            options.say(traceback.format_exc().rstrip())
            failures[task.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            options.say(_line(results[-1]))
            continue
        options.say(f"{task.name}: {failures[task.name]}")
    return Outcome(results, failures)


def result_path(output: Path, system: str, suite: str, task: str) -> Path:
    """Where a task's result lies."""
    return output / system / suite / f"{task}.json"


def _finished(suite: Suite, task: Task, system: System, options: Options) -> TaskResult | None:
    """Return the result that is there, if it has what is asked for. Raises: DataError for another system's."""
    path = result_path(options.output, system.name, suite.folder, task.name)
    if not path.is_file():
        return None
    result = read_result(path)
    asked = json.loads(json.dumps(system.describe(task)))
    found = result.provenance.get("system")
    if found != asked:
        differ = _difference(found if isinstance(found, dict) else {}, asked)
        raise DataError(f"{path} is a result of another configuration ({differ}): name another --output, or delete it")
    return None if options.exact and not result.exact_metrics else result


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Name the last thing in which two descriptions differ: a hash, which says least, stands before what it is of."""
    there, here = _leaves(found), _leaves(asked)
    *_, name = (name for name in {**there, **here} if there.get(name) != here.get(name))
    return f"{name} was {there.get(name)!r} and is {here.get(name)!r}"


def _leaves(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in fields.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def run_task(suite: Suite, task: Task, system: System, options: Options) -> TaskResult:
    """Run a task and write its result and its TREC run files."""
    description = system.describe(task)
    path = result_path(options.output, system.name, suite.folder, task.name)
    work = path.parent / WORK / task.name
    provenance.forget_peak_memory()
    figures = {part: _run_part(task, part, system, description, work, path, options) for part in task.parts}
    result = _result(suite, task, system, description, list(figures.items()))
    write_result(path, result)
    shutil.rmtree(work, ignore_errors=True)
    if work.parent.is_dir() and not any(work.parent.iterdir()):
        work.parent.rmdir()
    return result


def _run_part(
    task: Task, part: Part, system: System, description: dict[str, Any], work: Path, path: Path, options: Options
) -> _Figures:
    data = datasets.load(part, options.cache, options.data_dir)
    folder = (options.indexes or work) / _key(description, data)
    folder.mkdir(parents=True, exist_ok=True)
    if options.progress is not None:
        options.progress.start(" ".join(filter(None, (task.name, part.name))), len(data.corpus))
    try:
        searcher = system.build(task, data.corpus, folder, options.progress)
    finally:
        if options.progress is not None:
            options.progress.finish()
    try:
        figures, run = _measure(task, data, searcher, options.exact)
    finally:
        if callable(close := getattr(searcher, "close", None)):
            close()
    # Judgements, queries and what was odd about them belong to the figures; where the folder lies does not.
    origin = f"{part.repository}@{part.revision}" if data.origin == f"{part.repository}@{part.revision}" else "folder"
    figures.data |= {
        "folder": Path(part.folder).name if Path(part.folder).is_absolute() else part.folder,
        "origin": origin,
        "split": data.split,
        "checksum": data.fingerprint,
        "documents": len(data.corpus),
        "queries": len(data.queries),
        "judgements": sum(map(len, data.qrels.values())),
    }
    figures.notes[:0] = data.notes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{task.name}.{part.name}" if part.name else task.name
        write_run(path.with_name(f"{name}.run"), run, system.name)
    except DataError as error:
        figures.notes.append(f"no TREC run file: {error}")
    return figures


def _key(description: dict[str, Any], data: TaskData) -> str:
    """Name an index by what is in it: the same vectors of the same corpus have one name, whatever searches them."""
    indexed = {name: value for name, value in description.items() if name != "search"}
    told = json.dumps([indexed, data.fingerprint], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()


def _measure(task: Task, data: TaskData, searcher: Searcher, exact: bool) -> tuple[_Figures, Run]:
    names = tuple(dict.fromkeys((task.metric, *metrics.DEFAULT_METRICS)))
    asked = {query: text for query, text in data.queries.items() if text.strip()}
    began = time.perf_counter()
    run = _search(task, asked, searcher)
    searching = time.perf_counter() - began
    evaluation = metrics.evaluate(run, data.qrels, names)
    exact_evaluation, agreement = None, None
    if exact:
        # A searcher without a twin, or that is its own, leaves nothing out: searching again would give the same.
        twin = searcher.exact_twin() if isinstance(searcher, Twinned) else searcher
        exact_run = run if twin is searcher else _search(task, asked, twin)
        exact_evaluation = metrics.evaluate(exact_run, data.qrels, names)
        agreement = metrics.agreement(run, exact_run, 10)
    report = searcher.report()
    notes = {
        f"{len(data.queries) - len(asked)} queries are blank and score 0": len(data.queries) - len(asked),
        f"{evaluation.unjudged} queries have no positive judgement and are left out": evaluation.unjudged,
        f"{report.get('uncounted', 0):,} of {len(data.corpus):,} documents were indexed by a run that was killed: the "
        "seconds it spent are not counted": report.get("uncounted", 0),
    }
    figures = _Figures(
        evaluation=evaluation,
        exact=exact_evaluation,
        report=report,
        searching=searching,
        latencies=_latencies(list(asked.values()), searcher),
        agreement=agreement,
        data={"unknown_queries": data.unknown_queries, "unknown_documents": data.unknown_documents},
        notes=[note for note, count in notes.items() if count],
    )
    return figures, run


def _search(task: Task, queries: dict[str, str], searcher: Searcher) -> Run:
    """Ask all queries, many at a time, for the task's depth; a query's own document is dropped before the cut."""
    ids, texts = list(queries), list(queries.values())
    run: Run = {}
    for first in range(0, len(ids), QUERIES_AT_ONCE):
        found = searcher.search(texts[first : first + QUERIES_AT_ONCE], task.depth + task.drop_own)
        for query, hits in zip(ids[first:], found, strict=False):
            run[query] = {hit.id: hit.score for hit in hits}
    if task.drop_own:
        run = metrics.without_own(run)
    return {query: dict(list(scores.items())[: task.depth]) for query, scores in run.items()}


def _latencies(queries: Sequence[str], searcher: Searcher) -> list[float]:
    """Ask queries one at a time, as users do: the seconds of each, of a sample spread evenly."""
    seconds = []
    for place in np.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).round().astype(int).tolist():
        began = time.perf_counter()
        searcher.search([queries[place]], LATENCY_K)
        seconds.append(time.perf_counter() - began)
    return seconds


def _result(
    suite: Suite, task: Task, system: System, description: dict[str, Any], parts: Sequence[tuple[Part, _Figures]]
) -> TaskResult:
    figures = [one for _, one in parts]
    named = {part.name: one for part, one in parts} if len(parts) > 1 else {}
    exact = [one.exact for one in figures if one.exact is not None]
    per_query = {
        f"{part.name}/{query}" if named else query: value
        for part, one in parts
        for query, value in one.evaluation.per_query(task.metric).items()
    }
    prefix = {part: f"{part.name}: " if named else "" for part, _ in parts}
    return TaskResult(
        task=task.name,
        suite=suite.name,
        split=suite.split,
        model=system.name,
        metric=task.metric,
        metrics=_mean([one.evaluation for one in figures]),
        per_query=per_query,
        exact_metrics=_mean(exact) if exact else {},
        parts={name: one.evaluation.means for name, one in named.items()},
        timing=_timing(figures),
        index=_index(figures),
        provenance={
            "date": datetime.now(UTC).date().isoformat(),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "system": description,
            "task": {
                "direction": task.direction,
                "licence": task.licence,
                "query_length": task.query_length,
                "document_length": task.document_length,
                "depth": task.depth,
                "own_document": "dropped" if task.drop_own else "kept",
            },
            "data": [one.data for one in figures],
            "peak_memory_bytes": provenance.peak_memory(),
            "seconds": "encode: documents; index: cutting and writing; search: all queries in batches, encoding "
            f"included; p50, p95: up to {SAMPLE} queries one at a time, k={LATENCY_K}, encoding included",
        },
        notes=tuple(prefix[part] + note for part, one in parts for note in one.notes),
    )


def _mean(evaluations: Sequence[metrics.Evaluation]) -> dict[str, float]:
    """Each metric's mean over parts, of their means over queries."""
    return {name: sum(one.means[name] for one in evaluations) / len(evaluations) for name in evaluations[0].values}


def _timing(figures: Sequence[_Figures]) -> dict[str, float]:
    timing = {
        phase: sum(one.report["seconds"][phase] for one in figures)
        for phase in ("encode", "index")
        if all(phase in one.report.get("seconds", {}) for one in figures)
    }
    timing["search"] = sum(one.searching for one in figures)
    tokens = sum(one.report.get("tokens", 0) for one in figures)
    if tokens and timing.get("encode"):
        timing["tokens_per_second"] = tokens / timing["encode"]
    latencies = [seconds for one in figures for seconds in one.latencies]
    if latencies:
        timing["p50_ms"], timing["p95_ms"] = (1000 * np.percentile(latencies, [50, 95])).tolist()
    return timing


def _index(figures: Sequence[_Figures]) -> dict[str, Any]:
    index: dict[str, Any] = {
        name: sum(one.report[name] for one in figures)
        for name in ("bytes", "catalogue_bytes", "documents", "windows", "tokens")
        if all(name in one.report for one in figures)
    }
    agreements = [one.agreement for one in figures if one.agreement is not None]
    if agreements:
        index["recall@10"] = sum(agreements) / len(agreements)
    return index


def _line(result: TaskResult) -> str:
    text = f"{result.task}: {result.metric} {result.score:.4f}"
    if (exact := result.exact_metrics.get(result.metric)) is not None:
        text += f", exact {exact:.4f}, gap {exact - result.score:+.4f}"
    return text
