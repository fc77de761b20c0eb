"""Segments: immutable folders of windows with their vectors. Raw ones keep them as they came; packed ones keep two or
so bits a dimension, and inverted lists by which the nearest of many tokens are found. Where a window has one dense
vector, of a dense index or beside the tokens of a joint one, many of these have lists or a graph.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.dense_rows import DenseRows, finish_dense
from mbretrieve.index.files import ArrayWriter, Draft, MappedFolder, StoredFile, save_array
from mbretrieve.index.records import DENSE_FILE, Layout, Stored
from mbretrieve.index.windows import WINDOWS, Table, Window, Windows
from mbretrieve.scoring import CompressedTokens

if TYPE_CHECKING:
    from mbretrieve.index.codebooks import Codebook
    from mbretrieve.index.lists import Lists

SEGMENTS = "segments"
CODEBOOKS = "codebooks"
OFFSETS = "offsets.npy"
CODES = "codes.npy"
ASSIGNMENTS = "assignments.npy"
LISTS = "tokens.faiss"
NEIGHBORS = "neighbors.npy"


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What the catalogue knows of a segment: ``rows`` windows with ``tokens`` vectors in all, and the key of the
    codebook by which it is packed (None: it is raw)."""

    key: int
    name: str
    rows: int
    tokens: int
    codebook: int | None
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True)
class CodebookRecord:
    """What the catalogue knows of a codebook.

    Its ``bits`` a dimension, its number of ``lists``, how many ``tokens`` the index had when it was trained, and the
    mean squared ``error`` of the vectors that it is meant for.
    """

    key: int
    name: str
    bits: int
    lists: int
    tokens: int
    error: float
    files: tuple[StoredFile, ...]


def store_codebook(index: Path, codebook: "Codebook") -> tuple[str, list[StoredFile]]:
    """Write a codebook durably; returns its folder's name, and what the catalogue is to know of its files."""
    from mbretrieve.index.codebooks import save_codebook  # it needs torch, which not every reader does

    draft = Draft(index / CODEBOOKS)
    try:
        return draft.name, draft.finish(save_codebook(draft.path, codebook))
    finally:
        draft.close()


def open_codebook(index: Path, record: CodebookRecord, dim: int) -> "Codebook":
    """Read a codebook, all of it checked. Raises: FileNotFoundError; IndexFormatError if it is damaged."""
    from mbretrieve.index.codebooks import load_codebook

    folder = MappedFolder(index / CODEBOOKS / record.name, record.files)
    folder.verify()
    codebook = load_codebook(folder.path, record.error)
    if (len(codebook.rotation), len(codebook.centroids), codebook.bits) != (dim, record.lists, record.bits):
        raise folder.damaged("centroids.npy", "it is not the codebook that the catalogue describes")
    return codebook


class Written(NamedTuple):
    """A finished segment: its rows are windows of other segments, or new ones, in the order in which they came."""

    name: str
    rows: int
    tokens: int
    files: list[StoredFile]


class SegmentWriter:
    """Writes one raw segment, row by row; ``finish`` makes it durable, ``close`` without it removes it."""

    def __init__(self, index: Path, layout: Layout, dim: int) -> None:
        self._draft = Draft(index / SEGMENTS)
        self.name = self._draft.name
        self._layout = layout
        self._vectors = ArrayWriter(self._draft.path / layout.file, layout.dtype, (dim,))
        self._pooled = _pooled_writer(self._draft.path, layout)
        self._offsets = [0]
        self._windows = array("I")
        self._dead: list[NDArray[np.int64]] = []

    def close(self) -> None:
        """Let go of the files; a segment that was not finished is removed."""
        self._vectors.close()
        if self._pooled is not None:
            self._pooled.close()
        self._draft.close()

    @property
    def rows(self) -> int:
        """How many rows (windows) were written."""
        return len(self._offsets) - 1

    @property
    def tokens(self) -> int:
        """How many vectors were written."""
        return self._offsets[-1]

    def append(self, stored: Stored, window: Window) -> None:
        """Write a window with its vectors: the next row."""
        self._windows.extend(window)
        self._vectors.append(stored.vectors)
        if self._pooled is not None and stored.pooled is not None:
            self._pooled.append(stored.pooled[None])
        self._offsets.append(self._offsets[-1] + len(stored.vectors))

    @property
    def windows(self) -> Table:
        """The windows written so far."""
        return np.array(self._windows, dtype=np.uint32).reshape(-1, len(Window._fields))

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where the vectors of each row written so far begin, and where the last end."""
        return np.array(self._offsets, dtype=np.int64)

    @property
    def vectors(self) -> NDArray[Any]:
        """The vectors written so far, mapped."""
        return self._vectors.mapped(self.tokens)

    @property
    def pooled(self) -> NDArray[np.float32] | None:
        """Each row's one vector of those written so far, mapped, in a joint index."""
        return None if self._pooled is None else self._pooled.mapped(self.rows)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which of the rows written so far were not deleted again, (rows,)."""
        live = np.ones(self.rows, dtype=bool)
        live[np.concatenate([np.empty(0, np.int64), *self._dead])] = False
        return live

    def delete(self, rows: NDArray[np.int64]) -> None:
        """Say that rows are not needed after all; whoever finishes the segment has to keep it in mind."""
        self._dead.append(rows)

    def finish(self, memory: int) -> list[StoredFile]:
        """Make the segment durable under its final name; returns what the catalogue is to know of its files.

        memory: bytes to work in, about, where many dense vectors get the files by which they are searched.
        """
        names = [WINDOWS]
        save_array(self._draft.path / WINDOWS, self.windows)
        dense: ArrayWriter | None = self._vectors
        if self._layout.many_rows:
            names += [OFFSETS, self._layout.file]
            save_array(self._draft.path / OFFSETS, self.offsets)
            self._vectors.finish(self.tokens)
            dense = self._pooled
        if dense is not None:
            names += finish_dense(dense, self.rows, memory)
        return self._draft.finish(names)


class PackedWriter:
    """Writes one packed segment, block by block, then its lists, unless each row has a dense vector to be found by;
    ``finish`` and ``close`` as for a raw one."""

    def __init__(self, index: Path, layout: Layout, codebook: "Codebook") -> None:
        from mbretrieve.index.codebooks import assignment_dtype

        self._draft = Draft(index / SEGMENTS)
        self.name = self._draft.name
        self._codes = ArrayWriter(self._draft.path / CODES, np.uint8, (codebook.code_size,))
        dtype = assignment_dtype(len(codebook.centroids))
        self._assignments = ArrayWriter(self._draft.path / ASSIGNMENTS, dtype, ())
        self._pooled = _pooled_writer(self._draft.path, layout)
        self._lengths: list[NDArray[np.int64]] = []
        self._windows: list[Table] = []
        self.rows = self.tokens = 0

    def close(self) -> None:
        """Let go of the files; a segment that was not finished is removed."""
        self._codes.close()
        self._assignments.close()
        if self._pooled is not None:
            self._pooled.close()
        self._draft.close()

    @property
    def lists(self) -> Path | None:
        """Where the inverted lists are to be written before ``finish``; None: nowhere."""
        return self._draft.path / LISTS if self._pooled is None else None

    def row_lengths(self) -> NDArray[np.int64]:
        """Return how many tokens each row has that was written."""
        return np.concatenate([np.empty(0, np.int64), *self._lengths])

    def append(
        self,
        assignments: NDArray[Any],
        codes: NDArray[np.uint8],
        lengths: NDArray[np.int64],
        windows: Table,
        pooled: NDArray[np.float32] | None,
    ) -> None:
        """Write some rows: their tokens (T,) and (T, bytes), how many tokens each row has, its window, and its dense
        vector."""
        if self._pooled is not None and pooled is not None:
            self._pooled.append(pooled)
        self._assignments.append(assignments)
        self._codes.append(codes)
        self._lengths.append(lengths)
        self._windows.append(windows)
        self.rows += len(lengths)
        self.tokens += len(codes)

    def finish(self, memory: int) -> list[StoredFile]:
        """Make the segment durable under its final name; returns what the catalogue is to know of its files.

        memory: as for a raw one.
        """
        self._codes.finish(self.tokens)
        self._assignments.finish(self.tokens)
        save_array(self._draft.path / OFFSETS, np.concatenate([[0], np.cumsum(self.row_lengths())]).astype(np.int64))
        save_array(self._draft.path / WINDOWS, np.concatenate(self._windows))
        found_by = [LISTS] if self._pooled is None else finish_dense(self._pooled, self.rows, memory)
        return self._draft.finish([CODES, ASSIGNMENTS, OFFSETS, WINDOWS, *found_by])


def _pooled_writer(folder: Path, layout: Layout) -> ArrayWriter | None:
    return ArrayWriter(folder / DENSE_FILE, np.float32, (layout.pooled_dim,)) if layout.pooled_dim else None


def read_offsets(files: MappedFolder, record: SegmentRecord, layout: Layout) -> NDArray[np.int64]:
    """Map where each row's vectors begin, (rows + 1,). Raises: FileNotFoundError; IndexFormatError."""
    if not layout.many_rows:
        return np.arange(record.rows + 1, dtype=np.int64)
    offsets: NDArray[np.int64] = files.map(OFFSETS, np.int64, (record.rows + 1,))
    if offsets[0] != 0 or offsets[-1] != record.tokens or (offsets[1:] <= offsets[:-1]).any():
        raise files.damaged(OFFSETS, "its numbers do not rise from 0 to the number of tokens")
    return offsets


class Rows:
    """The rows of a committed segment, whatever its vectors are: which window each is, and how many vectors it has.

    Mapped for reading; it stays readable after a writer has dropped the segment and removed its folder. ``offsets``
    (rows + 1,) int64 says where each row's vectors begin.
    Raises: FileNotFoundError; IndexFormatError for what does not fit the catalogue.
    """

    def __init__(self, index: Path, record: SegmentRecord, layout: Layout) -> None:
        self.record, self._layout = record, layout
        self.files = MappedFolder(index / SEGMENTS / record.name, record.files)
        self.windows = Windows(self.files, record.rows)
        self.offsets = read_offsets(self.files, record, layout)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many vectors some rows have. Raises: IndexFormatError if the file that says so is damaged."""
        if self._layout.many_rows:
            self.files.check_rows(OFFSETS, self.offsets, rows, rows + 2)
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows])


class Segment(Rows):
    """A committed segment whose vectors are mapped too; ``dense`` are its one vector a row, if it has them."""

    def __init__(self, index: Path, record: SegmentRecord, layout: Layout, dim: int) -> None:
        super().__init__(index, record, layout)
        self.dense: DenseRows | None = None
        if width := layout.pooled_dim if layout.many_rows else dim:
            derived = frozenset(file.name for file in record.files) - {layout.file, CODES, ASSIGNMENTS, OFFSETS}
            self.dense = DenseRows(self.files, derived - {DENSE_FILE, WINDOWS}, record.rows, width)

    def check_rows(self, rows: NDArray[np.int64]) -> None:
        """Check the blocks that hold these rows against their checksums, each block once. Raises: IndexFormatError."""
        self.lengths(rows)
        for name, rows_of_tokens in self._main():
            self.files.check_rows(name, rows_of_tokens, self.offsets[rows], self.offsets[rows + 1])

    @property
    def pooled(self) -> NDArray[np.float32] | None:
        """Each row's dense vector (rows, pooled_dim), if it stands beside its tokens'."""
        return self.dense.vectors if self.dense is not None and self._layout.many_rows else None

    def verify(self) -> None:
        """Check every block of every file. Raises: IndexFormatError naming the first file that differs."""
        self.files.verify()

    def kept(self, row: int) -> NDArray[np.float32]:
        """Return a row's vectors as they are kept, (n, dim); they are not checked."""
        raise AssertionError(row)

    def _main(self) -> list[tuple[str, NDArray[Any]]]:
        """Return the files that hold a row for each token, with their arrays."""
        raise AssertionError


class RawSegment(Segment):
    """``vectors`` (tokens, dim) as they came."""

    def __init__(self, index: Path, record: SegmentRecord, layout: Layout, dim: int) -> None:
        super().__init__(index, record, layout, dim)
        self._file = layout.file
        self.vectors: NDArray[Any] = self.files.map(layout.file, layout.dtype, (record.tokens, dim))

    def __getitem__(self, row: int) -> Stored:
        """Return a window as it is stored; it is not checked."""
        pooled = None if self.pooled is None else self.pooled[row]
        return Stored(self.vectors[slice(*self.offsets[row : row + 2])], pooled)

    def kept(self, row: int) -> NDArray[np.float32]:
        """Return a row's vectors, (n, dim); they are not checked."""
        return np.asarray(self[row].vectors, dtype=np.float32)

    def _main(self) -> list[tuple[str, NDArray[Any]]]:
        return [(self._file, self.vectors)]


class PackedSegment(Segment):
    """``codes`` (tokens, bytes) uint8 and ``assignments`` (tokens,), to be read with ``codebook``; and ``lists``, if
    the index finds windows by their tokens."""

    def __init__(self, index: Path, record: SegmentRecord, layout: Layout, codebook: "Codebook") -> None:
        from mbretrieve.index.codebooks import assignment_dtype

        super().__init__(index, record, layout, len(codebook.rotation))
        self.codebook = codebook
        self.codes: NDArray[np.uint8] = self.files.map(CODES, np.uint8, (record.tokens, codebook.code_size))
        self.assignments: NDArray[Any] = self.files.map(
            ASSIGNMENTS, assignment_dtype(len(codebook.centroids)), (record.tokens,)
        )

    @cached_property
    def compressed(self) -> CompressedTokens:
        """The tokens, as they are scored."""
        return CompressedTokens(self.codebook.centroids, self.codebook.residuals, self.assignments, self.codes)

    @cached_property
    def lists(self) -> "Lists":
        """The inverted lists, mapped when first asked for. Raises: IndexFormatError if they do not fit the segment."""
        from mbretrieve.index.lists import Lists  # it needs FAISS, which not every reader does

        self.files.raw(LISTS)  # its size is what the catalogue says
        lists = Lists(
            self.files.path / LISTS,
            self.codebook.products,
            lists=len(self.codebook.centroids),
            tokens=self.record.tokens,
            rows=self.record.rows,
        )
        first, _ = lists.byte_ranges(np.zeros(1, dtype=np.int64))
        self.files.check(LISTS, np.zeros(1, dtype=np.int64), first)  # the sizes, which opening read
        return lists

    def check_lists(self, numbers: NDArray[np.int64]) -> None:
        """Check the blocks that hold these lists against their checksums, each block once. Raises: IndexFormatError."""
        self.files.check(LISTS, *self.lists.byte_ranges(numbers))

    def kept(self, row: int) -> NDArray[np.float32]:
        """Return a row's vectors as compression left them, (n, dim); they are not checked."""
        some = slice(*self.offsets[row : row + 2])
        return self.codebook.restore(self.codebook.decode(self.assignments[some], self.codes[some]))

    def _main(self) -> list[tuple[str, NDArray[Any]]]:
        return [(CODES, self.codes), (ASSIGNMENTS, self.assignments)]


def open_segment(
    index: Path, record: SegmentRecord, layout: Layout, dim: int, codebooks: "Mapping[int, Codebook]"
) -> RawSegment | PackedSegment:
    """Map a segment. Raises: FileNotFoundError; IndexFormatError for what does not fit the catalogue."""
    if record.codebook is None:
        return RawSegment(index, record, layout, dim)
    return PackedSegment(index, record, layout, codebooks[record.codebook])
