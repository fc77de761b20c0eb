"""Inverted lists: the tokens near each centroid as 4-bit product codes, scanned in a mapped file of ours.

They lie in blocks of 32 tokens, as FAISS's kernel for such codes has them (IndexIVFPQFastScan, after André et al.,
"Cache locality is not enough: high-performance nearest neighbor search with product quantization fast scan", VLDB
2015), which scans them where ``kernels.cpp`` has not been built: what it returns is sorted, which nobody needs here and
takes most of its time. FAISS's own file format has to be written at once from memory and is trusted when read. The
file, little-endian, with ``width`` bytes a code:

- a header of 128 bytes: magic, version, width, lists, tokens;
- sizes, (lists,) int64, and zeros up to a multiple of 128 bytes;
- each list: ceil(size / 32) blocks of 32 codes, then as many blocks of 32 rows (int64, -1 where a block is not full).

A list is ordered by row, then as the tokens came, so that the same tokens make the same file however it was merged.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from ctypes import CDLL
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.blocks import (
    BLOCK,
    PIECE,
    ROW_PIECES,
    Bytes,
    Integers,
    count_blocks,
    exclusive_sum,
    find_places,
    pack_blocks,
    unpack_blocks,
)
from mbretrieve.index.kernels import KERNELS
from mbretrieve.scoring.native import threads

_MAGIC = b"mbrlists"
_VERSION = 1
_ALIGNMENT = 128
# FAISS's kernel that takes one query at a time and keeps its results in a reservoir. Its heaps, the default for k up to
# 20, lose results where rows are selected; one scan of a list for several queries was slower, for 13 tokens as for 850.
_RESERVOIR = 11
_PARALLEL = 1 << 20  # codes to scan from which a team of threads is worth waiting for: about 3 ms on one core
_SORTED = 16  # codes are scanned in the time that one of those returned takes: they are sorted
_BATCH = 1 << 18  # tokens arranged at once by write_lists: its working memory, and what fits the caches
_WORKING = 9  # bytes of working memory for each byte of a code and its row, measured in merge_lists


class Batch(NamedTuple):
    """Tokens: their lists (n,), packed codes (n, width) uint8 and rows (n,) int64."""

    assignments: NDArray[np.integer[Any]]
    products: Bytes
    rows: Integers


class Lists:
    """A committed file of inverted lists, mapped for searching; it stays readable after its name was removed.

    Several threads may search at once. ``file`` is the mapped file, (bytes,) uint8, for the caller's checksums: nothing
    is checked here beyond what keeps a damaged file from reading outside of it or naming rows that are not there.
    ``sizes`` (lists,) int64 counts the tokens of each list; ``tokens`` is their sum.
    """

    def __init__(self, path: Path, products: NDArray[np.float32], *, lists: int, tokens: int, rows: int) -> None:
        """Map ``path``, known to hold ``tokens`` tokens of ``rows`` rows in ``lists`` lists.

        products (M, 16, padded / M), M even: what the codes stand for.
        Raises: IndexFormatError naming the file if it is not such a file; OSError if it cannot be opened.
        """
        if products.ndim != 3 or products.shape[1] != 16 or len(products) % 2:
            raise ValueError(f"products have shape {products.shape}; (an even M, 16, padded / M) was expected")
        self._path, self._rows, self._width = path, rows, len(products) // 2
        self.tokens = tokens
        start = _data_start(lists)
        size = path.stat().st_size
        if size < start:
            raise self._damaged(f"it has {size:,} bytes, too few for {lists:,} lists")
        self.file: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(path, dtype=np.uint8, mode="r")
        if self.file[:_ALIGNMENT].tobytes() != _header(self._width, lists, tokens):
            raise self._damaged(f"it is not a file of {tokens:,} tokens in {lists:,} lists of {self._width} bytes each")
        self.sizes: Integers = self.file[_ALIGNMENT:start].view("<i8")[:lists].astype(np.int64)
        # Each below the total first: the sum of what was never written by us may overflow.
        if (self.sizes < 0).any() or (self.sizes > tokens).any() or self.sizes.sum() != tokens:
            raise self._damaged(f"the sizes of its lists do not add up to {tokens:,}")
        self._starts = start + exclusive_sum(count_blocks(self.sizes)) * self._block_bytes
        if len(self.file) != self._starts[-1]:
            raise self._damaged(f"it has {len(self.file):,} bytes, not {self._starts[-1]:,}")
        self._products = np.ascontiguousarray(products, dtype=np.float32)
        self._padded = products.shape[0] * products.shape[2]
        entries = products.astype(np.float64)
        self._reach = float(np.sqrt(((entries[:, :, None] - entries[:, None]) ** 2).sum(axis=3)).max())
        if KERNELS.get() is None:
            _ = self._index  # now, while the file has its name

    @cached_property
    def _index(self) -> Any:
        """FAISS's index over the file. Raises: OSError if it has no longer its name."""
        try:
            return _fast_scan(self._path, self._products, self.sizes, self._starts)
        except RuntimeError:  # FAISS's word for a file that it cannot open: it does so by name, once more
            self._path.stat()
            raise

    def search(
        self,
        queries: NDArray[np.float32],
        probes: NDArray[np.int64],
        coarse: NDArray[np.float32],
        k: int,
        selected: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], Integers]:
        """Return the best k tokens of each query among the lists it probes, in any order: scores (n, k), rows (n, k).

        queries (n, padded) float32 in the rotated space; probes (n, p) the numbers of their lists, none twice (-1: no
        list); coarse (n, p) the inner products of query and centroid, which the scores include; selected (rows,) the
        rows that may be found, all if None. Where there are fewer than k tokens, -inf and -1 fill up.
        A score is quantized: its steps are those of a table of 8-bit integers for each query, and equal scores are cut
        at k as they come.
        Raises: IndexFormatError if a list names a row that the segment does not have.
        """
        n, padded = queries.shape
        if k < 1 or probes.shape != coarse.shape or len(probes) != n or padded != self._padded:
            raise ValueError(
                f"k is {k}, queries {queries.shape}, probes {probes.shape}, coarse {coarse.shape}; "
                f"k >= 1, (n, {self._padded}), (n, p) and (n, p) were expected"
            )
        if selected is not None and selected.shape != (self._rows,):
            raise ValueError(f"selected has shape {selected.shape}; ({self._rows},) was expected")
        scores = np.full((n, k), -np.inf, dtype=np.float32)
        rows = np.full((n, k), -1, dtype=np.int64)
        if not probes.size:
            return scores, rows
        if probes.min() < -1 or probes.max() >= len(self.sizes):
            raise ValueError(f"probes reach from {probes.min()} to {probes.max()}; there are {len(self.sizes)} lists")
        if (kernel := KERNELS.wanted()) is not None:
            self._scan_by_kernel(kernel, queries, probes, coarse, selected, scores, rows)
            return scores, rows
        probed = np.where(probes < 0, 0, self.sizes[probes]).sum(axis=1)
        # FAISS reserves room for 2k results a query whatever there is to be found, and has another kernel for k = 1.
        depth = max(2, min(k, int(probed.max())))
        with _threads(parallel=bool(probed.sum() + n * depth * _SORTED >= _PARALLEL)):
            found = self._scan(queries, probes, coarse, depth, selected)
        depth = min(k, depth)
        scores[:, :depth], rows[:, :depth] = found[0][:, :depth], found[1][:, :depth]
        return scores, rows

    def _scan_by_kernel(
        self,
        kernel: CDLL,
        queries: NDArray[np.float32],
        probes: Integers,
        coarse: NDArray[np.float32],
        selected: NDArray[np.bool_] | None,
        scores: NDArray[np.float32],
        rows: Integers,
    ) -> None:
        """Do what ``search`` says, into scores and rows."""
        queries, coarse = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(coarse, np.float32)
        probes = np.ascontiguousarray(probes, np.int64)
        passing = None if selected is None else np.ascontiguousarray(selected)
        damaged = np.zeros(1, dtype=np.int32)
        kernel.mbretrieve_scan_lists(
            *(queries.ctypes.data, *queries.shape, self._products.ctypes.data, len(self._products)),
            *(probes.ctypes.data, coarse.ctypes.data, probes.shape[1]),
            *(self.file.ctypes.data, self._starts.ctypes.data, self.sizes.ctypes.data, self._rows),
            *(None if passing is None else passing.ctypes.data, scores.shape[1]),
            *(scores.ctypes.data, rows.ctypes.data, damaged.ctypes.data, threads()),
        )
        if damaged[0]:
            raise self._damaged(f"it names rows that are not among its {self._rows:,}")

    def byte_ranges(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Return where lists begin and end in the file: what to check before they are first searched.

        numbers (m,) of lists -> starts (m,), stops (m,); what lies before the start of list 0 was read by opening.
        """
        return self._starts[numbers], self._starts[numbers + 1]

    def unpack(self, first: int, last: int) -> Batch:
        """Return the tokens of the lists ``first`` to ``last`` - 1 in their order.

        Raises: IndexFormatError if a list names a row that the segment does not have.
        """
        sizes = self.sizes[first:last]
        pieces = self.file[self._starts[first] : self._starts[last]].view("<i8").reshape(-1, PIECE // 8)
        places = find_places(sizes, self._width)
        rows = pieces[places.rows].reshape(-1)[places.slots]
        if len(rows) and (rows.min() < 0 or rows.max() >= self._rows):
            raise self._damaged(f"it names rows that are not among its {self._rows:,}")
        packed = pieces[places.codes].view(np.uint8).reshape(-1, self._width, BLOCK)
        assignments = np.repeat(np.arange(first, last, dtype=np.int32), sizes)
        return Batch(assignments, unpack_blocks(packed)[places.slots], rows)

    def release(self, first: int, last: int) -> None:
        """Let the system take back the memory that reading the lists ``first`` to ``last`` - 1 took."""
        page = mmap.PAGESIZE
        start, stop = -(-int(self._starts[first]) // page) * page, int(self._starts[last]) // page * page
        if start < stop:
            self.file._mmap.madvise(mmap.MADV_DONTNEED, start, stop - start)  # type: ignore[attr-defined]

    def _scan(
        self,
        queries: NDArray[np.float32],
        probes: NDArray[np.int64],
        coarse: NDArray[np.float32],
        k: int,
        selected: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.float32], Integers]:
        import faiss

        lowest, biases = _biases(queries, probes, coarse, 2 * self._width, self._reach)
        probes = np.pad(probes.astype(np.int64, copy=False), ((0, 0), (1, 1)), constant_values=-1)
        queries = np.ascontiguousarray(queries, np.float32)
        selector = None
        if selected is not None:
            bitmap = np.packbits(selected, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
        # Settings of this call alone: the index itself never changes, so that threads may share it.
        parameters = faiss.SearchParametersIVF(nprobe=probes.shape[1], sel=selector)  # type: ignore[call-arg]
        scores, rows = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        # Not FAISS's wrapper in Python, which takes the number of probes from the index and no parameters.
        self._index.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(queries),
            k,
            faiss.swig_ptr(probes),
            faiss.swig_ptr(biases),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(rows),
            False,
            parameters,
        )
        if rows.min() < -1 or rows.max() >= self._rows:
            raise self._damaged(f"it names rows that are not among its {self._rows:,}")
        scores += lowest
        scores[rows < 0] = -np.inf  # FAISS fills up with the least float
        return scores, rows

    @property
    def _block_bytes(self) -> int:
        return BLOCK * (self._width + 8)

    def _damaged(self, what: str) -> IndexFormatError:
        return IndexFormatError(f"{self._path} is damaged: {what}; run `mbretrieve repair`, or index again")


def write_lists(path: Path, lists: int, assignments: NDArray[np.integer[Any]], products: Bytes, rows: Integers) -> None:
    """Write tokens as a durable file of inverted lists.

    assignments (n,) the list of each token; products (n, width) uint8 its codes, even sub-quantizer in the low nibble;
    rows (n,) int64 what a search returns for it.
    """
    order = _order(assignments, rows)
    sizes = np.bincount(assignments, minlength=lists)
    stops = np.cumsum(sizes)
    with _ListsWriter(path, lists, products.shape[1]) as writer:
        for first, last in _ranges(sizes, _BATCH):
            some = order[stops[first] - sizes[first] : stops[last - 1]]
            writer.append(sizes[first:last], products[some], rows[some])
        writer.finish()


def merge_lists(path: Path, sources: Sequence[Lists], row_maps: Sequence[Integers], memory: int) -> None:
    """Write the tokens of ``sources`` as one durable file: what ``write_lists`` makes of them all, source after source.

    row_maps: for each source (its rows,) the row there that each row becomes, or -1 to leave its tokens out.
    memory: bytes to work with; as many lists are merged at a time as fit, and at least one.
    """
    lists, width = len(sources[0].sizes), sources[0]._width
    if any(len(source.sizes) != lists or source._width != width for source in sources):
        raise ValueError("the sources have not the same lists and codes: are they of one codebook?")
    slots = BLOCK * np.sum([count_blocks(source.sizes) for source in sources], axis=0)
    with _ListsWriter(path, lists, width) as writer:
        for first, last in _ranges(slots, memory // (_WORKING * (width + 8))):
            parts = []
            for source, row_map in zip(sources, row_maps, strict=True):
                part = source.unpack(first, last)
                rows = row_map[part.rows]
                kept = rows >= 0
                parts.append(Batch(part.assignments[kept], part.products[kept], rows[kept]))
                source.release(first, last)
            assignments, products, rows = map(np.concatenate, zip(*parts, strict=True))
            assignments -= first
            order = _order(assignments, rows)
            writer.append(np.bincount(assignments, minlength=last - first), products[order], rows[order])
        writer.finish()


class _ListsWriter:
    """Writes lists in the order of their numbers; header and sizes, first in the file, are known and written last."""

    def __init__(self, path: Path, lists: int, width: int) -> None:
        self._lists, self._width = lists, width
        self._sizes: list[Integers] = []
        self._file = path.open("wb")
        self._file.seek(_data_start(lists))

    def __enter__(self) -> "_ListsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, sizes: Integers, codes: Bytes, rows: Integers) -> None:
        """Write the next ``len(sizes)`` lists: their tokens one list after the other."""
        places = find_places(sizes, self._width)
        flat = np.zeros((len(places.codes) * BLOCK, self._width), dtype=np.uint8)
        flat[places.slots] = codes
        ids = np.full(len(flat), -1, dtype="<i8")
        ids[places.slots] = rows
        pieces = np.empty((len(places.codes) * (self._width + ROW_PIECES), PIECE // 8), dtype="<i8")
        pieces[places.codes] = pack_blocks(flat).view("<i8")
        pieces[places.rows] = ids.reshape(-1, ROW_PIECES, PIECE // 8)
        self._file.write(pieces.data)
        self._sizes.append(sizes)

    def finish(self) -> None:
        """Write header and sizes, and make the file durable."""
        sizes = np.concatenate(self._sizes).astype("<i8")
        assert len(sizes) == self._lists
        self._file.seek(0)
        self._file.write(_header(self._width, self._lists, int(sizes.sum())))
        self._file.write(sizes.tobytes().ljust(_data_start(self._lists) - _ALIGNMENT, b"\0"))
        self._file.flush()
        os.fsync(self._file.fileno())


def _fast_scan(path: Path, products: NDArray[np.float32], sizes: Integers, starts: Integers) -> Any:
    """Return FAISS's index over the lists of a file; it maps the file now and owns all that it needs."""
    import faiss

    count, entries, width = len(products), products.shape[1], len(products) // 2
    padded, lists = count * products.shape[2], len(sizes)
    # FAISS maps a file of lists only if told of it in its own format: for each list size, capacity and offset.
    described = np.stack([sizes, count_blocks(sizes) * BLOCK, starts[:-1]], axis=1).astype("<u8")
    name = os.fsencode(path)
    blob = b"".join(
        [
            b"ilod" + struct.pack("<QQQ", lists, width, lists) + described.tobytes(),
            struct.pack("<QQ", 0, len(name)) + name + struct.pack("<Q", starts[-1]),
        ]
    )
    reader = faiss.VectorIOReader()
    faiss.copy_array_to_vector(np.frombuffer(blob, dtype=np.uint8), reader.data)
    inverted = faiss.read_InvertedLists(reader, faiss.IO_FLAG_READ_ONLY)
    index = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(padded), padded, lists, count, entries.bit_length() - 1, faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = True
    index.implem = _RESERVOIR
    faiss.copy_array_to_vector(np.ascontiguousarray(products, np.float32).ravel(), index.pq.centroids)
    # No proxy owns what was read: the index is to free it.
    index.replace_invlists(inverted, True)
    index.ntotal, index.is_trained = int(sizes.sum()), True
    return index


@contextlib.contextmanager
def _threads(parallel: bool) -> Iterator[None]:
    """Let FAISS work with all its threads, or within the calling thread alone.

    Where a core is busy, as when several threads search, a team waits for its last member: up to 20 ms were measured.
    The setting is OpenMP's for the calling thread: no other thread sees it.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    if not parallel:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _biases(
    queries: NDArray[np.float32], probes: Integers, coarse: NDArray[np.float32], products: int, reach: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each query's lowest coarse score (n, 1), and what each probe is above it (n, 1 + p + 1).

    FAISS adds up integers of 16 bits: steps above the least that a query could score, as its tables of 8-bit integers
    and its coarse scores span it. It never returns a token of sum 0, and what rounding carries past 65,535 would begin
    at 0 again. So the coarse scores of two lists that do not exist stand at the ends, a margin away from the others.
    ``reach`` is the largest distance of two entries of a sub-quantizer: times the query's length, no table spans more.
    """
    missing = probes < 0
    lowest = np.where(missing, np.inf, coarse).min(axis=1, keepdims=True)
    lowest = np.where(np.isfinite(lowest), lowest, 0).astype(np.float32)
    above = np.where(missing, 0, coarse - lowest)
    table = np.linalg.norm(queries, axis=1, keepdims=True) * reach
    highest = above.max(axis=1, keepdims=True)
    span = highest + products * table
    # At least one step of 1 / 255 of a table or 1 / 65,535 of the whole below; above, half a step for each summand.
    margin = np.where(span > 0, table / 255 + products * span / 50_000, 1)
    return lowest, np.hstack([-margin, above, highest + margin]).astype(np.float32)


def _order(assignments: NDArray[np.integer[Any]], rows: Integers) -> Integers:
    """Return the order of tokens in the file: by list, then row, then as they came."""
    # Lists that fit 16 bits are sorted by radix. Rows mostly come in order: then a stable sort by list does all.
    narrow = assignments.astype(np.uint16) if len(assignments) and assignments.max() < 1 << 16 else assignments
    if (rows[1:] >= rows[:-1]).all():
        return np.argsort(narrow, kind="stable")
    by_row = np.argsort(rows, kind="stable")
    return by_row[np.argsort(narrow[by_row], kind="stable")]


def _ranges(weights: Integers, budget: int) -> Iterator[tuple[int, int]]:
    """Cut lists into ranges [first, last) of at most ``budget`` in weight, but at least one list."""
    stops = np.cumsum(weights)
    first = 0
    while first < len(weights):
        before = stops[first] - weights[first]
        last = max(first + 1, int(np.searchsorted(stops, before + budget, side="right")))
        yield first, last
        first = last


def _header(width: int, lists: int, tokens: int) -> bytes:
    return struct.pack("<8sIIQQ", _MAGIC, _VERSION, width, lists, tokens).ljust(_ALIGNMENT, b"\0")


def _data_start(lists: int) -> int:
    return _ALIGNMENT + -(-lists * 8 // _ALIGNMENT) * _ALIGNMENT
