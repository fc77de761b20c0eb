"""What a given index costs and loses: recall against exact search, latency and queries a second, over its settings."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mbretrieve.bench.build import building
from mbretrieve.cores import usable_cores
from mbretrieve.cutting import passage
from mbretrieve.errors import DataError, ModelError
from mbretrieve.evaluation import exact, provenance
from mbretrieve.evaluation.metrics import agreement
from mbretrieve.index import AnyIndex, Effort, Match
from mbretrieve.index.store import MEMORY
from mbretrieve.jsonl import read_objects
from mbretrieve.retriever import Retriever
from mbretrieve.scoring.native import prepare
from mbretrieve.types import Encoder, FloatArray, Head, JointVectors, Kind, Progress, Run, as_window, rows_of

Query = FloatArray | JointVectors
Truth = Literal["stored", "model"]
"""What exact search scores: the index's own vectors, packed or not, or those that the model makes of the texts."""

K, DEEP = 10, 100
MOST_QUERIES = 300
EXACT_QUERIES = 20  # asked one at a time, for the latency of exact search
AT_ONCE = 32
BATCH_DOCUMENTS = 256
FIRST, OTHERS = (0.25, 0.5, 1.0, 2.0, 4.0), (0.5, 2.0)
"""The settings: multiples of the default, one knob turned at a time, the first of them further than the others."""


class Knob(NamedTuple):
    """What can be turned of an effort, by its name: parts of it, together where one alone changes nothing."""

    name: str
    parts: tuple[str, ...]

    def turned(self, effort: Effort, times: float) -> Effort:
        """Return an effort with these parts multiplied."""
        return replace(effort, **{part: max(1, round(getattr(effort, part) * times)) for part in self.parts})


# Of dense vectors by lists as many are scored as the smaller of tokens and rescore; a graph is walked by tokens alone.
PROBES, TOKENS, RESCORE = (Knob(name, (name,)) for name in ("probes", "tokens", "rescore"))
FETCHED = Knob("tokens and rescore", ("tokens", "rescore"))


@dataclass(frozen=True, slots=True)
class Point:
    """What one setting gives: recall of the first 10, a query's latency in ms, queries a second; and with ``deep``, as
    far as it goes for the first 100, recall of these and the latency."""

    effort: Effort
    recall_10: float
    p50_ms: float
    p95_ms: float
    qps: float
    qps_one_thread: float
    deep: Effort
    recall_100: float
    deep_p50_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return the setting and its figures."""
        return asdict(self.effort) | {
            "recall@10": round(self.recall_10, 4),
            "recall@100": round(self.recall_100, 4),
            "p50_ms": round(self.p50_ms, 2),
            "p95_ms": round(self.p95_ms, 2),
            "qps": round(self.qps, 1),
            "qps_one_thread": round(self.qps_one_thread, 1),
            f"effort@{DEEP}": asdict(self.deep),
            f"p50_ms@{DEEP}": round(self.deep_p50_ms, 2),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of an index; ``default`` is one of ``points``; of ``build`` and ``not_built``, why it was not
    measured, one is None."""

    status: dict[str, Any]
    truth: Truth
    queries: int
    exact_p50_ms: float
    points: list[Point]
    default: Point
    build: dict[str, Any] | None
    not_built: str | None

    def as_json(self) -> dict[str, Any]:
        """Return everything, with what it was measured on."""
        named = ("tokens", "documents", "bytes_per_token", "kind", "dim", "lists", "segments", "packed_tokens")
        return {name: self.status[name] for name in (*named, "searched")} | {
            "bits": self.status["bits"] if self.status["packed_tokens"] else None,
            "bits_when_packed": self.status["bits"],
            "bytes": self.status["bytes"],
            "queries": self.queries,
            "exact": {"p50_ms": round(self.exact_p50_ms, 2), "from": self.truth},
            "settings": [point.as_json() for point in self.points],
            "default": self.default.as_json(),
            "build": self.build,
            **({} if self.not_built is None else {"not_built": self.not_built}),
            "threads": callers(),
            "peak_memory_bytes": provenance.peak_memory(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": provenance.machine(),
            "versions": provenance.versions(),
            "measured": f"recall: of exact search's first {K} and {DEEP}, a tie with the last counts; p50, p95: one "
            f"query at a time, warm, encoding excluded; qps: as many callers as threads, each on one of its own; "
            f"recall@{DEEP} and p50_ms@{DEEP}: k={DEEP} at effort@{DEEP}, as much further than the setting as the "
            f"default goes for {DEEP}; all else: k={K} at the setting's probes, tokens and rescore",
        }


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A query of a file: the line it is from, and its text, or its vectors if they came."""

    line: str
    text: str
    vectors: Query | None = None


def read_queries(path: Path) -> list[Asked]:
    """Read queries, a JSON object a line with "text" or "query", or with "vectors", "vector" or both; blank texts are
    left out.

    At most MOST_QUERIES, spread evenly over the file. Raises: DataError with file and line.
    """
    asked = (_asked(place, row) for place, row in read_objects(path))
    found = [one for one in asked if one.text.strip() or one.vectors is not None]
    if not found:
        raise DataError(f'{path} has no query: expected {{"text": "..."}} a line')
    places = np.linspace(0, len(found) - 1, min(MOST_QUERIES, len(found))).round().astype(int)
    return [found[place] for place in places.tolist()]


def _asked(line: str, row: dict[str, Any]) -> Asked:
    rows = {
        name: _numbers(f'{line}: "{name}"', row[name], depth)
        for name, depth in (("vectors", 2), ("vector", 1))
        if name in row
    }
    if len(rows) == 2:
        return Asked(line, "", JointVectors(rows["vectors"], rows["vector"]))
    if rows:
        [came] = rows.values()
        return Asked(line, "", came.reshape(-1, came.shape[-1]))
    text = row.get("text", row.get("query"))
    if not isinstance(text, str):
        raise DataError(
            f'{line}: expected an object with a string under "text" or "query", or numbers under "vectors" or "vector"'
        )
    return Asked(line, text)


def _numbers(name: str, value: Any, depth: int) -> FloatArray:
    """Read a list of numbers, or a list of such lists for depth 2. Raises: DataError starting with ``name``."""
    try:
        with np.errstate(over="ignore"):
            rows = np.array(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        rows = np.empty(0, dtype=np.float32)
    if rows.ndim != depth or not rows.size or not np.isfinite(rows).all():
        what = "a list of numbers" if depth == 1 else "a list of lists of numbers, all of one length"
        raise DataError(f"{name}: expected {what}")
    return rows


WANTED: dict[Kind, str] = {
    "colbert": '"vectors", rows of {dim} numbers',
    "dense": '"vector", {dim} numbers, or "vectors" with one such row',
    "joint": '"vectors", rows of {dim} numbers, and "vector", {pooled_dim} numbers',
}
"""What a query is to have that comes as vectors."""


def _check(asked: Asked, status: dict[str, Any]) -> None:
    """Refuse vectors that do not fit an index. Raises: DataError."""
    kind, vectors = status["kind"], asked.vectors
    if vectors is None:
        return
    if isinstance(vectors, JointVectors):
        came = [vectors.tokens.shape[1], len(vectors.pooled)]
        fits = kind == "joint" and came == [status["dim"], status["pooled_dim"]]
    else:
        came = list(vectors.shape)
        fits = kind != "joint" and came[1] == status["dim"] and (kind == "colbert" or came[0] == 1)
    if not fits:
        wanted = WANTED[kind].format(**status)
        raise DataError(
            f"{asked.line}: the vectors (of {' x '.join(map(str, came))}) do not fit this index: expected {wanted}"
        )


def knobs(status: dict[str, Any]) -> list[Knob]:
    """Return what makes a difference to how an index is searched; the first is turned furthest."""
    ways = status["searched"]
    if status["kind"] == "colbert":
        return [PROBES, TOKENS, RESCORE] if status["packed_tokens"] else []
    by_lists = [PROBES] if ways["lists"] else []
    if status["kind"] == "joint":
        return [FETCHED, *by_lists]
    return [*by_lists, *([FETCHED] if ways["lists"] or ways["graph"] else [])]


def efforts(default: Effort, turned: Sequence[Knob]) -> list[Effort]:
    """Return the settings around a default, itself included, by probes, then tokens, then windows rescored."""
    around = {default}
    for number, knob in enumerate(turned):
        around |= {knob.turned(default, times) for times in (OTHERS if number else FIRST)}
    return sorted(around, key=lambda effort: (effort.probes, effort.tokens, effort.rescore))


def deepened(effort: Effort, default: Effort, deep: Effort) -> Effort:
    """Return an effort as much further as ``deep`` is than the default."""
    parts = {
        part: max(1, round(getattr(effort, part) * getattr(deep, part) / getattr(default, part)))
        for part in ("probes", "tokens", "rescore")
    }
    return Effort(**parts, sure=deep.sure)


def callers() -> int:
    """How many callers ask at once where many do: one for each core that this process may use."""
    return usable_cores()


def measure_index(path: Path, asked: Sequence[Asked], truth: Truth, progress: Progress | None = None) -> Report:
    """Measure an index by queries, at settings around its default.

    Raises: DataError for an index of no documents or queries that do not fit it, IndexFormatError, ModelError as their
    names say.
    """
    prepare()  # or the kernel would come while it is measured
    with Retriever.open(path) as retriever:
        exact_ms, points, default = _measure(retriever, asked, truth, progress)
        status = retriever.status()
    build: dict[str, Any] | None = None
    not_built: str | None = None
    try:
        build = building(path, MEMORY)
    except DataError as error:  # what was measured is worth more than what could not be
        not_built = str(error)
    return Report(status, truth, len(asked), exact_ms, points, default, build, not_built)


def _vectors(retriever: Retriever, asked: Sequence[Asked]) -> list[Query]:
    """Return the queries' vectors; the model, if texts came, makes theirs."""
    status = retriever.status()
    for one in asked:
        _check(one, status)
    texts = [one.text for one in asked if one.vectors is None]
    encoded = iter(_model(retriever, asked).encode_queries(texts) if texts else [])
    return [as_window(next(encoded)) if one.vectors is None else one.vectors for one in asked]


def _model(retriever: Retriever, asked: Sequence[Asked]) -> Encoder:
    """Return what encodes texts. Raises: DataError, at the first of them, if no model is known."""
    try:
        _ = retriever.identity
    except ModelError:
        wanted = WANTED[retriever.index.kind].format(**retriever.status())
        line = next(one.line for one in asked if one.vectors is None)
        raise DataError(
            f"{line}: a text came, but {retriever.index.path} was made of one's own vectors: expected {wanted}"
        ) from None
    return retriever.model


def _measure(
    retriever: Retriever, asked: Sequence[Asked], truth: Truth, progress: Progress | None
) -> tuple[float, list[Point], Point]:
    """Return exact search's p50 in ms, the points of all settings, and the default's."""
    index = retriever.index
    if not len(index):
        raise DataError(f"{index.path} holds no documents: there is nothing to find in it")
    queries = _vectors(retriever, asked)
    wanted = _stored(index, queries, progress) if truth == "stored" else _by_model(retriever, queries, progress)
    exact_ms = _latencies([partial(index.search, [query], K, exact=True) for query in queries[:EXACT_QUERIES]])
    default, deep = index.effort(K), index.effort(DEEP)
    settings = efforts(default, knobs(index.status()))
    points = []
    if progress is not None:
        progress.start("settings", len(settings))
    for effort in settings:
        points.append(_point(index, queries, wanted, effort, deepened(effort, default, deep)))
        if progress is not None:
            progress.advance(1)
    if progress is not None:
        progress.finish()
    return float(np.median(exact_ms)), points, points[settings.index(default)]


def _point(index: AnyIndex, queries: Sequence[Query], wanted: Run, effort: Effort, deep: Effort) -> Point:
    # Before anything is timed: what is read for the first time is checked, which takes longer.
    of_100 = _as_run(index.search(queries, DEEP, effort=deep))
    of_10 = _as_run(index.search(queries, K, effort=effort))
    took = _latencies([partial(index.search, [query], K, effort=effort) for query in queries])
    p50, p95 = np.percentile(took, [50, 95]).tolist()
    one = _queries_a_second(index, queries, effort, 1)
    return Point(
        effort,
        recall_10=agreement(of_10, wanted, K),
        p50_ms=p50,
        p95_ms=p95,
        qps=_queries_a_second(index, queries, effort, callers()) if callers() > 1 else one,
        qps_one_thread=one,
        deep=deep,
        recall_100=agreement(of_100, wanted, DEEP),
        deep_p50_ms=float(np.median(_latencies([partial(index.search, [q], DEEP, effort=deep) for q in queries]))),
    )


def _as_run(found: Sequence[Sequence[Match]]) -> Run:
    return {str(place): {match.id: match.score for match in matches} for place, matches in enumerate(found)}


def _latencies(searches: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the milliseconds that each search takes."""
    took = []
    for search in searches:
        began = time.perf_counter()
        search()
        took.append(1000 * (time.perf_counter() - began))
    return took


def _queries_a_second(index: AnyIndex, queries: Sequence[Query], effort: Effort, threads: int) -> float:
    """Return how many are answered where so many callers ask one after another, each on a thread of its own."""
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=_alone) as pool:
            list(pool.map(lambda _: None, range(threads)))
            began = time.perf_counter()
            list(pool.map(lambda query: index.search([query], K, effort=effort), queries))
            return len(queries) / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def _alone() -> None:
    """Let this thread do its work itself: callers that each start a thread a core would wait for each other."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def _stored(index: AnyIndex, queries: Sequence[Query], progress: Progress | None) -> Run:
    """Score every document by the vectors in the index."""
    if progress is not None:
        progress.start("exact search", len(queries))
    found: list[list[Match]] = []
    for first in range(0, len(queries), AT_ONCE):
        some = queries[first : first + AT_ONCE]
        found += index.search(some, DEEP, exact=True)
        if progress is not None:
            progress.advance(len(some))
    if progress is not None:
        progress.finish()
    return _as_run(found)


def _by_model(retriever: Retriever, queries: Sequence[Query], progress: Progress | None) -> Run:
    """Score every document by the vectors that the model makes of its text, in float32; a joint model's by tokens."""
    head: Head = "dense" if retriever.identity.kind == "dense" else "colbert"
    if progress is not None:
        progress.start("encoding for exact search", len(retriever.index))
    groups = exact.grouped(_encoded(retriever, head, progress))
    found = exact.search(head, [rows_of(query, head) for query in queries], groups, DEEP)
    if progress is not None:
        progress.finish()
    return {str(place): dict(ranking) for place, ranking in enumerate(found)}


def _encoded(retriever: Retriever, head: Head, progress: Progress | None) -> Iterator[tuple[str, list[FloatArray]]]:
    """Encode every document of an index again, window by window; a bounded number of texts is in memory."""
    documents = retriever.index.scan()
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        cut = retriever.windows(batch)
        texts = [
            [passage(context, document.text[start:end]) for start, end in spans]
            for document, (context, spans) in zip(batch, cut, strict=True)
        ]
        vectors = iter(retriever.model.encode_documents([text for windows in texts for text in windows]))
        rows = [[rows_of(next(vectors), head) for _ in windows] for windows in texts]
        if progress is not None:
            progress.advance(len(batch), tokens=sum(len(window) for of_document in rows for window in of_document))
        yield from zip((document.id for document in batch), rows, strict=True)
