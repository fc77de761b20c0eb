"""A graph over the vectors of a dense segment: who walks it towards a query compares it with few of them.

It is HNSW (Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable
small world graphs", IEEE TPAMI 2020), built and walked by FAISS. FAISS's own file would keep the vectors a second time
and is trusted when read; two arrays are kept instead, and FAISS looks into them and the segment's vectors as they are
mapped:

- levels.npy (rows,) uint8: on how many levels each vector stands, at least 1;
- neighbors.npy (links,) int32: for each vector its neighbours on the lowest level (32 places), then on each higher one
  (16 places each); -1 fills up.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.files import MappedFolder, save_array
from mbretrieve.index.plan import Effort
from mbretrieve.index.segments import NEIGHBORS

LEVELS = "levels.npy"

PLACES = 16  # of neighbours on a level, and twice as many on the lowest; 8 found less, 32 took twice the time to build
BUILD_WIDTH = 80  # candidates kept while a vector's neighbours are looked for
WALKED = 32  # vectors that are compared for each candidate kept, or as many read in order in the same time
_BLOCK_ROWS = 1 << 14

_FAISS: Any = faiss  # its type hints leave out what is used of it here

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def write_graph(folder: Path, vectors: Floats) -> list[str]:
    """Build the graph of unit vectors (n, dim) and write it, durable; returns the files' names.

    All vectors are copied into memory meanwhile.
    """
    index = _empty(vectors.shape[1])
    index.hnsw.efConstruction = BUILD_WIDTH
    for first in range(0, len(vectors), _BLOCK_ROWS):
        index.add(np.ascontiguousarray(vectors[first : first + _BLOCK_ROWS]))
    save_array(folder / LEVELS, faiss.vector_to_array(index.hnsw.levels).astype(np.uint8))
    links = index.hnsw.neighbors
    save_array(folder / NEIGHBORS, faiss.rev_swig_ptr(links.data(), links.size()))
    return [LEVELS, NEIGHBORS]


class Graph:
    """A committed graph over mapped vectors (rows, dim), those of the file ``name``; several threads may search it."""

    def __init__(self, files: MappedFolder, name: str, vectors: Floats) -> None:
        """Map the graph. Raises: FileNotFoundError; IndexFormatError if it does not fit the vectors."""
        self._files, self._name, self._vectors = files, name, vectors
        levels = files.map(LEVELS, np.uint8, (len(vectors),))
        files.verify_file(LEVELS)
        self._levels: NDArray[np.int32] = levels.astype(np.int32)
        self._offsets: Integers = np.concatenate([[0], np.cumsum(_places(self._levels))])
        self._neighbors: NDArray[np.int32] = files.map(NEIGHBORS, np.int32, (int(self._offsets[-1]),))

    def compared(self, count: int, effort: Effort, passing: int) -> int:
        """Return how many vectors could be compared one by one in the time of a search among ``passing`` ones."""
        return WALKED * self._width(count, effort, passing)

    def search(
        self, queries: Floats, count: int, effort: Effort, selected: NDArray[np.bool_] | None
    ) -> tuple[Floats, Integers]:
        """Return the ``count`` vectors found nearest to each query (n, dim): their scores, their rows, (n, count).

        selected (rows,): those that may be found, all if None. Where fewer are found, -inf and -1 fill up.
        """
        if selected is None:
            return self._walk(queries, count, self._width(count, effort, len(self._vectors)), None)
        bitmap = np.packbits(selected, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
        width = self._width(count, effort, int(np.count_nonzero(selected)))
        scores, rows = self._walk(queries, count, width, selector)
        # The filter may leave nothing near the query, and a walk ends there: on, until going on finds nothing better.
        while width < len(self._vectors):
            width *= 4
            before, (scores, rows) = scores, self._walk(queries, count, width, selector)
            if (scores == before).all():
                break
        return scores, rows

    def _walk(self, queries: Floats, count: int, width: int, selector: Any) -> tuple[Floats, Integers]:
        parameters = _FAISS.SearchParametersHNSW(efSearch=width, sel=selector)
        scores, rows = self._index.search(queries, count, params=parameters)
        scores[rows < 0] = -np.inf  # FAISS fills up with the least float
        return scores, rows

    def _width(self, count: int, effort: Effort, passing: int) -> int:
        """Return how many candidates to keep: of those that are found, the share that passes is wanted."""
        wanted = max(count, effort.tokens) * len(self._vectors) // max(passing, 1)
        return min(wanted, len(self._vectors))

    @cached_property
    def _index(self) -> Any:
        """FAISS's index over the mapped arrays, all of which are checked: a walk leads anywhere."""
        self._files.verify_file(self._name)
        self._files.verify_file(NEIGHBORS)
        self._check_links()
        index = _empty(self._vectors.shape[1])
        storage = _FAISS.downcast_index(index.storage)
        storage.codes = _view(faiss.MaybeOwnedVectorUInt8, self._vectors.reshape(-1).view(np.uint8))
        storage.ntotal = index.ntotal = len(self._vectors)
        graph = index.hnsw
        faiss.copy_array_to_vector(self._levels, graph.levels)
        faiss.copy_array_to_vector(self._offsets.astype(np.uint64), graph.offsets)
        graph.neighbors = _view(faiss.MaybeOwnedVectorInt32, self._neighbors)
        graph.entry_point = int(self._levels.argmax())
        graph.max_level = int(self._levels.max()) - 1
        return index

    def _check_links(self) -> None:
        """Refuse links that would lead FAISS outside of the arrays. Raises: IndexFormatError."""
        rows, links = len(self._vectors), self._neighbors
        highest = _empty(1).hnsw.cum_nneighbor_per_level.size() - 1
        if self._levels.min() < 1 or self._levels.max() > highest:
            raise self._files.damaged(LEVELS, f"its numbers are not from 1 to {highest}")
        if links.min() < -1 or links.max() >= rows:
            raise self._files.damaged(NEIGHBORS, f"it names rows that are not among its {rows:,}")
        for level in range(1, int(self._levels.max())):
            starts = self._offsets[:-1][self._levels > level] + PLACES * (level + 1)
            named = links[starts[:, None] + np.arange(PLACES)]
            if (self._levels[named[named >= 0]] <= level).any():
                raise self._files.damaged(NEIGHBORS, f"it names vectors on level {level} that do not stand there")


def _places(levels: NDArray[np.int32]) -> Integers:
    """Return how many places for neighbours vectors have that stand on so many levels."""
    return np.where(levels > 0, PLACES * (levels.astype(np.int64) + 1), 0)


def _empty(dim: int) -> Any:
    return faiss.IndexHNSWFlat(dim, PLACES, faiss.METRIC_INNER_PRODUCT)


def _view(kind: Any, array: NDArray[Any]) -> Any:
    """Return a vector of FAISS's that looks into an array, which has to outlive it; nobody is to free it."""
    return kind.create_view(faiss.swig_ptr(array), array.size, kind().owner)
