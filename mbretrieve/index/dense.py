"""The index for dense vectors: one a window, ranked by cosine similarity.

A small segment is flat: FAISS compares a query with every vector. A larger one has a graph, a very large one inverted
lists (``plan.DENSE_TABLE``), which find vectors near the query; these are scored as they came. Where a filter lets few
pass, they are compared one by one in a large segment, too.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.index import plan
from mbretrieve.index.arrays import first_of_each
from mbretrieve.index.base import VectorIndex
from mbretrieve.index.catalogue import Integers
from mbretrieve.index.dense_rows import DenseRows
from mbretrieve.index.plan import Effort
from mbretrieve.index.records import one_head
from mbretrieve.index.segments import Segment
from mbretrieve.index.view import Found, View
from mbretrieve.types import Kind

BLOCK_ROWS = 1 << 16

Floats = NDArray[np.float32]


class DenseIndex(VectorIndex[Floats]):
    """Documents of one vector a window, scored by cosine similarity; usable alone, with anyone's vectors.

    >>> index = DenseIndex.create("my.index", dim=2)
    >>> index.add(["a", "b"], np.array([[3.0, 4.0], [0.0, 1.0]]))
    >>> [(match.id, round(match.score, 3)) for match in index.search(np.array([[0.0, 2.0]]), k=2)[0]]
    [('b', 1.0), ('a', 0.8)]
    """

    kind: ClassVar[Kind] = "dense"

    def _one_window(self, vectors: Any) -> NDArray[Any]:
        return np.atleast_2d(vectors)

    def _query(self, name: str, query: NDArray[Any]) -> Floats:
        return one_head(name, query, self.dim)

    def _score_windows(self, view: View, queries: list[Floats], positions: Integers) -> Floats:
        out = np.empty((len(queries), len(positions)), dtype=np.float32)
        stacked = np.concatenate(queries)
        for segment, some, rows in view.by_segment(positions):
            for part, vectors in _blocks(_dense(segment), rows):
                out[:, some][:, part] = _cosines(stacked, vectors)
        return out

    def effort(self, k: int) -> Effort:
        """Return how far ``search`` goes in the largest segment for the best ``k`` documents if it is not told."""
        _, view = self._snapshot()
        return plan.dense_effort(max((segment.record.rows for segment in view.segments), default=0), k)

    @classmethod
    def _bits(cls, bits: int | None) -> int | None:
        if bits is not None:
            raise DataError(f"{bits} bits a dimension were asked for; a dense index keeps its vectors as they are")
        return None

    def _candidates(
        self,
        view: View,
        queries: list[Floats],
        positions: Integers,
        k: int,
        effort: Effort | None,
        also: Integers | None = None,
    ) -> list[Found]:
        nearest = nearest_windows(view, np.concatenate(queries), positions, k, effort)
        return [self._with(view, query, found, also) for query, found in zip(queries, nearest, strict=True)]


def nearest_windows(view: View, queries: Floats, positions: Integers, k: int, effort: Effort | None) -> list[Found]:
    """Return for each query (n, dim) windows among ``positions`` by their dense vectors, thought to hold the best
    windows of the best ``k`` contents; of no fewer contents than there are."""
    unit = _unit_rows(queries)
    selected = view.selected(positions)
    # The best 2k windows hold the best k documents if enough of those differ; if not, more windows are asked for, in
    # the end all of them.
    depth = min(2 * k, len(positions))
    found = _nearest(view, unit, selected, depth, effort)
    while depth < len(positions):
        short = [i for i, one in enumerate(found) if _distinct(view, one) < k]
        if not short:
            break
        depth = min(4 * depth, len(positions))
        for i, one in zip(short, _nearest(view, unit[short], selected, depth, effort), strict=True):
            found[i] = one
    return found


def _nearest(
    view: View, queries: Floats, selected: list[NDArray[np.bool_]], depth: int, effort: Effort | None
) -> list[Found]:
    """Return the ``depth`` windows found nearest to each query, by exact inner product."""
    scores = np.empty((len(queries), 0), dtype=np.float32)
    positions = np.empty((len(queries), 0), dtype=np.int64)
    for number, (segment, here) in enumerate(zip(view.segments, selected, strict=True)):
        for near, rows in _nearest_rows(_dense(segment), queries, here, depth, effort):
            scores, positions = np.hstack([scores, near]), np.hstack([positions, view.at(number, rows)])
            if scores.shape[1] > depth:
                best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
                scores, positions = (
                    np.take_along_axis(scores, best, axis=1),
                    np.take_along_axis(positions, best, axis=1),
                )
    order = np.argsort(positions, axis=1)
    scores, positions = np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
    return [Found(at[at >= 0], score[at >= 0]) for at, score in zip(positions, scores, strict=True)]


def _nearest_rows(
    segment: DenseRows, queries: Floats, selected: NDArray[np.bool_], depth: int, effort: Effort | None
) -> Iterator[tuple[Floats, Integers]]:
    """Yield scores and rows (n, m) among which are the ``depth`` selected ones of a segment that are nearest to each
    query, or are thought to be; -inf and -1 fill up."""
    passing, near = int(np.count_nonzero(selected)), segment.near
    if not passing:
        return
    if near is not None:
        planned = effort or plan.dense_effort(len(selected), depth // 2)
        if passing > near.compared(depth, planned, passing):
            yield near.search(queries, depth, planned, None if passing == len(selected) else selected)
            return
    import faiss  # here, not above: not every reader searches

    rows = np.flatnonzero(selected)
    for part, vectors in _blocks(segment, rows):
        scores, at = faiss.knn(queries, vectors, min(depth, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        yield scores, rows[part][at]


def _distinct(view: View, found: Found) -> int:
    """Count the contents that surely score above everything not found; ties with the last one are not sure."""
    sure = found.positions[found.scores > found.scores.min(initial=np.inf)]
    return int(first_of_each(view.contents(sure)).sum())


def _cosines(queries: Floats, vectors: Floats) -> Floats:
    """Return the cosine similarity of every query with every vector: (n, dim), (m, dim) -> (n, m)."""
    # Here, not above: status and search by words do without torch.
    from mbretrieve import scoring

    if scoring.spares_torch():
        return _unit_rows(queries) @ _unit_rows(vectors).T
    import torch

    scores: Floats = scoring.cosine(torch.from_numpy(queries), torch.tensor(vectors)).numpy()
    return scores


def _dense(segment: Segment) -> DenseRows:
    assert segment.dense is not None  # of a dense or a joint index
    return segment.dense


def _blocks(segment: DenseRows, rows: Integers) -> Iterator[tuple[slice, Floats]]:
    """Yield the vectors of some rows, rising, a bounded number at a time and checked, with their place in ``rows``."""
    for first in range(0, len(rows), BLOCK_ROWS):
        part = rows[first : first + BLOCK_ROWS]
        start, stop = int(part[0]), int(part[-1]) + 1
        if stop - start == len(part):
            segment.check_run(start, stop)
            vectors = segment.vectors[start:stop]
        else:
            segment.check_rows(part)
            vectors = segment.vectors[part]
        yield slice(first, first + len(part)), np.asarray(vectors)


def _unit_rows(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)
