"""What is left of a damaged segment, by blocks of 16 KiB, and copying it into a new one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.files import BLOCK, HEADER, MappedFolder
from mbretrieve.index.records import DENSE_FILE, Layout, Stored
from mbretrieve.index.segments import (
    ASSIGNMENTS,
    CODES,
    OFFSETS,
    SEGMENTS,
    SegmentRecord,
    SegmentWriter,
    Written,
    read_offsets,
)
from mbretrieve.index.windows import WINDOWS, Table, Window

if TYPE_CHECKING:
    from mbretrieve.index.codebooks import Codebook

Integers = NDArray[np.int64]

PART_TOKENS = 1 << 20  # copied into one segment; commits merge the parts


@dataclass(frozen=True)
class Salvaged:
    """A segment of which something may be lost: where its rows' vectors begin (rows + 1,), their windows, which rows
    are ``sound`` (rows,), the arrays of its main files as far as they go, and the files that are ``damaged``."""

    record: SegmentRecord
    layout: Layout
    dim: int
    codebook: "Codebook | None"
    offsets: Integers
    windows: Table
    sound: NDArray[np.bool_]
    arrays: dict[str, NDArray[Any]]
    damaged: list[str]

    @property
    def pooled(self) -> NDArray[np.float32] | None:
        """Each row's dense vector, as far as they go, if it stands beside its tokens'."""
        return self.arrays[DENSE_FILE] if self.layout.pooled_dim else None


def salvage(
    index: Path, record: SegmentRecord, layout: Layout, dim: int, codebooks: "Mapping[int, Codebook]"
) -> Salvaged | None:
    """Look at every block of a segment's files; None if nothing can be read without what is damaged."""
    codebook = None if record.codebook is None else codebooks.get(record.codebook)
    if codebook is None and record.codebook is not None:
        return None
    try:
        folder = MappedFolder(index / SEGMENTS / record.name, record.files)
        if layout.many_rows:
            folder.verify_file(OFFSETS)
        offsets = read_offsets(folder, record, layout)
    except (IndexFormatError, FileNotFoundError, KeyError):
        return None
    blocks = {file.name: folder.sound_blocks(file.name) for file in record.files}
    sound = np.ones(record.rows, dtype=bool)
    arrays: dict[str, NDArray[Any]] = {}
    rows = np.arange(record.rows + 1)
    for name, (dtype, row) in _main_files(layout, dim, codebook).items():
        if name not in blocks:
            return None
        arrays[name] = _readable(folder.path / name, dtype, row)
        width = int(np.dtype(dtype).itemsize * np.prod(row, dtype=int))
        ends = rows if name in (WINDOWS, DENSE_FILE) else offsets
        bad = np.concatenate([[0], np.cumsum(~blocks[name])])
        starts, stops = HEADER + ends[:-1] * width, HEADER + ends[1:] * width
        if stops[-1] > (len(bad) - 1) * BLOCK:
            return None
        sound &= bad[(stops - 1) // BLOCK + 1] == bad[starts // BLOCK]
        sound &= ends[1:] <= len(arrays[name])
    windows = np.zeros((record.rows, len(Window._fields)), dtype=np.uint32)
    windows[sound] = arrays.pop(WINDOWS)[np.flatnonzero(sound)]
    damaged = [name for name, good in blocks.items() if not good.all() or not folder.has_size(name)]
    return Salvaged(record, layout, dim, codebook, offsets, windows, sound, arrays, damaged)


def rewrite(index: Path, one: Salvaged, rows: Integers, memory: int) -> Iterator[Written]:
    """Copy some sound rows, rising, into new segments.

    memory: bytes to work in, about, where a large dense segment gets the files by which it is searched.
    """
    if one.codebook is not None:
        from mbretrieve.index.packing import Coded, repack, runs

        coded = Coded(one.arrays[ASSIGNMENTS], one.arrays[CODES], one.offsets, one.windows, one.pooled)
        for part in runs(one.offsets, one.windows, rows, PART_TOKENS):
            yield repack(index, one.layout, one.codebook, coded, part, memory)
    elif len(rows):
        writer = SegmentWriter(index, one.layout, one.dim)
        try:
            for row, window in zip(rows.tolist(), one.windows[rows].tolist(), strict=True):
                vectors = one.arrays[one.layout.file][one.offsets[row] : one.offsets[row + 1]]
                writer.append(Stored(vectors, None if one.pooled is None else one.pooled[row]), Window(*window))
            files = writer.finish(memory)
            yield Written(writer.name, writer.rows, writer.tokens, files)
        finally:
            writer.close()


def _main_files(layout: Layout, dim: int, codebook: "Codebook | None") -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
    """Return the files that nothing else holds, and the type and shape of a vector, or of a window, in each."""
    windows: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {WINDOWS: (np.uint32, (len(Window._fields),))}
    if layout.pooled_dim:
        windows[DENSE_FILE] = (np.float32, (layout.pooled_dim,))
    if codebook is None:
        return windows | {layout.file: (layout.dtype, (dim,))}
    from mbretrieve.index.codebooks import assignment_dtype

    assignments = assignment_dtype(len(codebook.centroids))
    return windows | {CODES: (np.uint8, (codebook.code_size,)), ASSIGNMENTS: (assignments, ())}


def _readable(path: Path, dtype: DTypeLike, row: tuple[int, ...]) -> NDArray[Any]:
    """Map what there is of an array's file, by its place alone."""
    width = int(np.dtype(dtype).itemsize * np.prod(row, dtype=int))
    count = max(0, path.stat().st_size - HEADER) // width if path.is_file() else 0
    if not count:
        return np.empty((0, *row), dtype=dtype)
    mapped: NDArray[Any] = np.memmap(path, dtype=dtype, mode="r", offset=HEADER, shape=(count, *row))
    return mapped
