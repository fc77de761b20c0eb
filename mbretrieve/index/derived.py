"""The files by which a large dense segment is searched: a graph or inverted lists, made from its vectors alone."""

from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index import plan
from mbretrieve.index.arrays import distinct
from mbretrieve.index.codebooks import COARSE_FILES, Coarse, load_coarse, save_coarse, train_coarse
from mbretrieve.index.files import MappedFolder
from mbretrieve.index.graph import LEVELS, Graph, write_graph
from mbretrieve.index.lists import Lists, merge_lists, write_lists
from mbretrieve.index.plan import Effort
from mbretrieve.index.segments import LISTS, NEIGHBORS

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

FILES: dict[plan.Search, tuple[str, ...]] = {
    "flat": (),
    "graph": (LEVELS, NEIGHBORS),
    "lists": (*COARSE_FILES, LISTS),
}
"""What a segment has beside its vectors, by how it is searched."""

PART_ROWS = 1 << 20  # whose codes are held in memory; the lists of more are merged from parts
BLOCK_ROWS = 1 << 14
SCANNED = 16  # codes that are scanned in the time in which one vector is compared
FETCHED = 4  # vectors read in order in the time in which one is fetched that lies anywhere


class Near(Protocol):
    """What finds the vectors near a query in a segment without comparing it with all of them."""

    def compared(self, count: int, effort: Effort, passing: int) -> int:
        """Return how many vectors could be compared one by one in the time of a search among ``passing`` ones."""
        ...

    def search(
        self, queries: Floats, count: int, effort: Effort, selected: NDArray[np.bool_] | None
    ) -> tuple[Floats, Integers]:
        """Return vectors found for each query (n, dim), at least ``count`` if they are there: scores and rows, each
        (n, m); -inf and -1 fill up. The scores are exact. selected (rows,): those that may be found, all if None."""
        ...


def derive(folder: Path, vectors: Floats, memory: int) -> list[str]:
    """Write what a segment of these unit vectors (n, dim) is searched by, as ``plan`` says, into a folder that exists.

    The files are durable, and those that stood there are replaced: so a damaged segment whose vectors are sound is
    repaired. memory: bytes to work in, about. Returns the files' names, none if the segment is searched flat.
    """
    search = plan.dense_row(len(vectors)).search
    if search == "graph" and vectors.nbytes > memory // 2:
        search = "lists"  # a graph is built beside a copy of the vectors
    if search == "graph":
        write_graph(folder, vectors)
    elif search == "lists":
        _write_lists(folder, vectors, memory)
    return list(FILES[search])


def open_derived(
    files: MappedFolder, names: Collection[str], vectors_name: str, vectors: Floats
) -> "Graph | DenseLists | None":
    """Map what a segment is searched by; None if it is searched flat.

    names: those of the segment's files; vectors (n, dim): its file ``vectors_name``.
    Raises: FileNotFoundError; IndexFormatError if a file does not fit the vectors.
    """
    if NEIGHBORS in names:
        return Graph(files, vectors_name, vectors)
    if LISTS in names:
        return DenseLists(files, vectors_name, vectors)
    return None


class DenseLists:
    """Inverted lists over mapped vectors (rows, dim): what the codes find is scored by the vectors themselves."""

    def __init__(self, files: MappedFolder, name: str, vectors: Floats) -> None:
        self._files, self._name, self._vectors = files, name, np.asarray(vectors)
        for file in COARSE_FILES:
            files.verify_file(file)
        self._coarse: Coarse = load_coarse(files.path)
        if self._coarse.dim != vectors.shape[1]:
            raise files.damaged(COARSE_FILES[0], f"it is for {self._coarse.dim} dimensions, not {vectors.shape[1]}")
        files.raw(LISTS)  # its size is what the catalogue says
        self._lists = Lists(
            files.path / LISTS,
            self._coarse.products,
            lists=len(self._coarse.centroids),
            tokens=len(vectors),
            rows=len(vectors),
        )
        first, _ = self._lists.byte_ranges(np.zeros(1, dtype=np.int64))
        files.check(LISTS, np.zeros(1, dtype=np.int64), first)  # the sizes, which opening read

    def compared(self, count: int, effort: Effort, passing: int) -> int:
        """Return how many vectors could be compared one by one in the time of a search among ``passing`` ones."""
        visited = len(self._vectors) * self._probes(effort, passing) // len(self._coarse.centroids)
        return visited // SCANNED + FETCHED * _fetched(count, effort)

    def search(
        self, queries: Floats, count: int, effort: Effort, selected: NDArray[np.bool_] | None
    ) -> tuple[Floats, Integers]:
        """See ``Near.search``."""
        passing = len(self._vectors) if selected is None else int(np.count_nonzero(selected))
        rotated = self._coarse.rotate(queries)
        wanted, probes = min(_fetched(count, effort), passing), self._probes(effort, passing)
        rows = self._fetch(rotated, probes, wanted, selected)
        # The lists near a query may hold none that pass, where a filter leaves what is far from it.
        while probes < len(self._coarse.centroids) and (rows < 0).any():
            probes *= 4
            rows = self._fetch(rotated, probes, wanted, selected)
        there = distinct(rows[rows >= 0])
        self._files.check_rows(self._name, self._vectors, there, there + 1)
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for query, found, into in zip(queries, rows, scores, strict=True):
            into[found >= 0] = self._vectors[found[found >= 0]] @ query
        return scores, rows

    def _fetch(self, rotated: Floats, probes: int, count: int, selected: NDArray[np.bool_] | None) -> Integers:
        _, numbers, products = self._coarse.nearest_lists(rotated, probes)
        self._files.check(LISTS, *self._lists.byte_ranges(distinct(numbers)))
        _, rows = self._lists.search(rotated, numbers, products, count, selected)
        return rows

    def _probes(self, effort: Effort, passing: int) -> int:
        """Return how many lists to visit: where few vectors pass, the nearest of them lie in as many more."""
        wanted = effort.probes * len(self._vectors) // max(passing, 1)
        return min(wanted, len(self._coarse.centroids))


def _fetched(count: int, effort: Effort) -> int:
    """Return how many vectors to fetch: of what the codes find nothing but what is scored anew is of use."""
    return max(count, min(effort.tokens, effort.rescore))


def _write_lists(folder: Path, vectors: Floats, memory: int, seed: int = 0) -> None:
    rows, dim = vectors.shape
    # Training holds the sample some eight times over: as it came, less its centroids, rotated, coded.
    most = min(rows, plan.SAMPLE_TOKENS, max(1024, memory // (32 * dim)))
    drawn = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    coarse = train_coarse(np.asarray(vectors[drawn]), plan.lists(rows), seed)
    save_coarse(folder, coarse)
    bounds = [*range(0, rows, PART_ROWS), rows]
    paths = [folder / LISTS if len(bounds) == 2 else folder / f"{LISTS}.{first}" for first in bounds[:-1]]
    for path, (first, last) in zip(paths, pairwise(bounds), strict=True):
        assignments = np.empty(last - first, dtype=np.int32)
        products = np.empty((last - first, len(coarse.products) // 2), dtype=np.uint8)
        for start in range(first, last, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, last)
            rotated = coarse.rotate(np.asarray(vectors[start:stop]))
            assignments[start - first : stop - first] = assigned = coarse.assign(rotated)
            products[start - first : stop - first] = coarse.pack_products(rotated, assigned)
        write_lists(path, len(coarse.centroids), assignments, products, np.arange(last - first))
    if len(paths) > 1:
        counts = np.diff(bounds).tolist()
        parts = [
            Lists(path, coarse.products, lists=len(coarse.centroids), tokens=count, rows=count)
            for path, count in zip(paths, counts, strict=True)
        ]
        maps = [np.arange(first, last) for first, last in pairwise(bounds)]
        merge_lists(folder / LISTS, parts, maps, memory // 2)
        for path in paths:
            path.unlink()
