"""The index for dense vectors: one a window, ranked by FAISS's flat search over memory-mapped blocks."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.index.base import VectorIndex
from mbretrieve.index.catalogue import Integers
from mbretrieve.index.plan import Effort
from mbretrieve.index.segments import RawSegment
from mbretrieve.index.view import Found, View
from mbretrieve.types import Kind

BLOCK_ROWS = 1 << 16


class DenseIndex(VectorIndex):
    """Documents of one vector a window, scored by cosine similarity; usable alone, with anyone's vectors.

    >>> index = DenseIndex.create("my.index", dim=2)
    >>> index.add(["a", "b"], np.array([[3.0, 4.0], [0.0, 1.0]]))
    >>> [(match.id, round(match.score, 3)) for match in index.search(np.array([[0.0, 2.0]]), k=2)[0]]
    [('b', 1.0), ('a', 0.8)]
    """

    kind: ClassVar[Kind] = "dense"

    def _one_window(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.atleast_2d(rows)

    def _score_windows(
        self, view: View, queries: list[NDArray[np.float32]], positions: Integers
    ) -> NDArray[np.float32]:
        # Here, not above: status and search by words do without torch.
        import torch

        from mbretrieve.scoring import cosine

        out = np.empty((len(queries), len(positions)), dtype=np.float32)
        stacked = torch.from_numpy(np.concatenate(queries))
        for some, vectors in _blocks(view, positions):
            out[:, some] = cosine(stacked, torch.tensor(vectors)).numpy()
        return out

    @classmethod
    def _bits(cls, bits: int | None) -> int | None:
        if bits is not None:
            raise DataError(f"{bits} bits a dimension were asked for; a dense index keeps its vectors as they are")
        return None

    def _candidates(
        self,
        view: View,
        queries: list[NDArray[np.float32]],
        positions: Integers,
        documents: Integers,  # noqa: ARG002 - how many there are is of no matter here
        k: int,
        effort: Effort | None,  # noqa: ARG002 - every window is compared
    ) -> list[Found]:
        stacked = _unit_rows(np.concatenate(queries))
        # The best 2k windows hold the best k documents if enough of those differ; if not, more windows are asked for.
        depth = min(2 * k, len(positions))
        found = _nearest(view, stacked, positions, depth)
        while depth < len(positions):
            short = [i for i, one in enumerate(found) if _distinct(view, one) < k]
            if not short:
                break
            depth = min(4 * depth, len(positions))
            for i, one in zip(short, _nearest(view, stacked[short], positions, depth), strict=True):
                found[i] = one
        return found


def _nearest(view: View, queries: NDArray[np.float32], positions: Integers, depth: int) -> list[Found]:
    """Return the ``depth`` windows nearest to each query, by exact inner product."""
    import faiss  # here, not above: not every reader searches

    scores = np.empty((len(queries), 0), dtype=np.float32)
    indices = np.empty((len(queries), 0), dtype=np.int64)
    for some, vectors in _blocks(view, positions):
        near, at = faiss.knn(queries, vectors, min(depth, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, indices = np.hstack([scores, near]), np.hstack([indices, some[at]])
        if scores.shape[1] > depth:
            best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
            scores, indices = np.take_along_axis(scores, best, axis=1), np.take_along_axis(indices, best, axis=1)
    order = np.argsort(indices, axis=1)
    scores, indices = np.take_along_axis(scores, order, axis=1), np.take_along_axis(indices, order, axis=1)
    return [Found(positions[index], score) for index, score in zip(indices, scores, strict=True)]


def _distinct(view: View, found: Found) -> int:
    """Count the contents that surely score above everything not found; ties with the last one are not sure."""
    sure = found.positions[found.scores > found.scores.min()]
    return len(np.unique(sure - view.window[sure]))  # a content's first position names it


def _blocks(view: View, positions: Integers) -> Iterator[tuple[Integers, NDArray[np.float32]]]:
    """Yield the vectors of some windows, a bounded number at a time, with their indices in ``positions``."""
    for segment, some, rows in view.by_segment(positions):
        for first in range(0, len(rows), BLOCK_ROWS):
            part = rows[first : first + BLOCK_ROWS]
            together = part[-1] - part[0] + 1 == len(part)
            assert isinstance(segment, RawSegment)  # dense vectors are not packed
            vectors = segment.vectors[part[0] : part[-1] + 1] if together else segment.vectors[part]
            yield some[first : first + BLOCK_ROWS], np.asarray(vectors)


def _unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)
