"""What a given index costs and loses: recall against exact search, latency and queries a second, over its settings."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mbretrieve.bench.build import packing
from mbretrieve.cores import usable_cores
from mbretrieve.cutting import passage
from mbretrieve.errors import DataError
from mbretrieve.evaluation import exact, provenance
from mbretrieve.evaluation.metrics import agreement
from mbretrieve.index import AnyIndex, Effort, Match
from mbretrieve.index.plan import widened
from mbretrieve.index.store import MEMORY
from mbretrieve.retriever import Retriever
from mbretrieve.scoring.native import prepare
from mbretrieve.types import FloatArray, Head, JointVectors, Progress, Run, as_window, rows_of

Query = FloatArray | JointVectors
Truth = Literal["stored", "model"]
"""What exact search scores: the index's own vectors, packed or not, or those that the model makes of the texts."""

K, DEEP = 10, 100
MOST_QUERIES = 300
EXACT_QUERIES = 20  # asked one at a time, for the latency of exact search
AT_ONCE = 32
BATCH_DOCUMENTS = 256
PROBES, TOKENS, RESCORE = (0.25, 0.5, 1.0, 2.0, 4.0), (0.5, 2.0), (0.5, 2.0)
"""The settings: multiples of the default, one thing changed at a time."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one setting gives: recall of the first 10 and 100, a query's latency in ms, queries a second."""

    effort: Effort
    recall_10: float
    recall_100: float
    p50_ms: float
    p95_ms: float
    qps: float
    qps_one_thread: float

    def as_json(self) -> dict[str, Any]:
        """Return the setting and its figures."""
        return asdict(self.effort) | {
            "recall@10": round(self.recall_10, 4),
            "recall@100": round(self.recall_100, 4),
            "p50_ms": round(self.p50_ms, 2),
            "p95_ms": round(self.p95_ms, 2),
            "qps": round(self.qps, 1),
            "qps_one_thread": round(self.qps_one_thread, 1),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of an index; ``default`` is one of ``points``; ``build`` is None for what is not packed."""

    status: dict[str, Any]
    truth: Truth
    queries: int
    exact_p50_ms: float
    points: list[Point]
    default: Point
    build: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return everything, with what it was measured on."""
        named = ("tokens", "documents", "bytes_per_token", "kind", "dim", "bits", "lists", "segments", "packed_tokens")
        return {name: self.status[name] for name in named} | {
            "bytes": self.status["bytes"],
            "queries": self.queries,
            "exact": {"p50_ms": round(self.exact_p50_ms, 2), "from": self.truth},
            "settings": [point.as_json() for point in self.points],
            "default": self.default.as_json(),
            "build": self.build,
            "threads": callers(),
            "peak_memory_bytes": provenance.peak_memory(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": provenance.machine(),
            "versions": provenance.versions(),
            "measured": f"recall: of exact search's first {K} and {DEEP}, a tie with the last counts; p50, p95: one "
            f"query at a time, k={K}, warm, encoding excluded; qps: as many callers as threads, each on one of its own",
        }


def read_queries(path: Path) -> list[str]:
    """Read queries, a JSON object with "text" or "query" a line; blank ones are left out.

    At most MOST_QUERIES, spread evenly over the file. Raises: DataError with file and line.
    """
    found = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not a line of JSON ({error})") from error
                text = row.get("text", row.get("query")) if isinstance(row, dict) else None
                if not isinstance(text, str):
                    raise DataError(f'{path}:{number}: expected an object with a string under "text" or "query"')
                if text.strip():
                    found.append(text)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a file of queries") from error
    if not found:
        raise DataError(f'{path} has no query: expected {{"text": "..."}} a line')
    places = np.linspace(0, len(found) - 1, min(MOST_QUERIES, len(found))).round().astype(int)
    return [found[place] for place in places.tolist()]


def efforts(default: Effort) -> list[Effort]:
    """Return the settings around a default, itself included, by probes, then tokens, then windows rescored."""
    around = {replace(default, probes=max(1, round(default.probes * times))) for times in PROBES}
    around |= {replace(default, tokens=max(1, round(default.tokens * times))) for times in TOKENS}
    around |= {replace(default, rescore=max(1, round(default.rescore * times))) for times in RESCORE}
    return sorted(around, key=lambda effort: (effort.probes, effort.tokens, effort.rescore))


def callers() -> int:
    """How many callers ask at once where many do: one for each core that this process may use."""
    return usable_cores()


def measure_index(path: Path, texts: Sequence[str], truth: Truth, progress: Progress | None = None) -> Report:
    """Measure an index by queries, at settings around its default.

    Raises: DataError for an index of no documents, IndexFormatError, ModelError as their names say.
    """
    prepare()  # or the kernel would come while it is measured
    with Retriever.open(path) as retriever:
        exact_ms, points, default = _measure(retriever, texts, truth, progress)
        status = retriever.status()
    build = packing(path, MEMORY) if status["packed_tokens"] else None
    return Report(status, truth, len(texts), exact_ms, points, default, build)


def _measure(
    retriever: Retriever, texts: Sequence[str], truth: Truth, progress: Progress | None
) -> tuple[float, list[Point], Point]:
    """Return exact search's p50 in ms, the points of all settings, and the default's."""
    index = retriever.index
    if not len(index):
        raise DataError(f"{index.path} holds no documents: there is nothing to find in it")
    queries = [as_window(query) for query in retriever.model.encode_queries(texts)]
    wanted = _stored(index, queries, progress) if truth == "stored" else _by_model(retriever, queries, progress)
    exact_ms = _latencies([partial(index.search, [query], K, exact=True) for query in queries[:EXACT_QUERIES]])
    default = index.effort(K)
    settings = efforts(default) if index.status()["packed_tokens"] else [default]
    points = []
    if progress is not None:
        progress.start("settings", len(settings))
    for effort in settings:
        points.append(_point(index, queries, wanted, effort))
        if progress is not None:
            progress.advance(1)
    if progress is not None:
        progress.finish()
    return float(np.median(exact_ms)), points, points[settings.index(default)]


def _point(index: AnyIndex, queries: Sequence[Query], wanted: Run, effort: Effort) -> Point:
    # Before anything is timed: what is read for the first time is checked, which takes longer.
    deep = _as_run(index.search(queries, DEEP, effort=widened(effort, DEEP)))
    first = _as_run(index.search(queries, K, effort=effort))
    took = _latencies([partial(index.search, [query], K, effort=effort) for query in queries])
    p50, p95 = np.percentile(took, [50, 95]).tolist()
    one = _queries_a_second(index, queries, effort, 1)
    many = _queries_a_second(index, queries, effort, callers()) if callers() > 1 else one
    return Point(effort, agreement(first, wanted, K), agreement(deep, wanted, DEEP), p50, p95, many, one)


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
