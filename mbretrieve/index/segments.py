"""Segments: immutable folders of vectors, memory-mapped by readers, each file with a checksum for every 64 KiB of it.

A segment is written in a folder whose name begins with a dot, made durable, renamed, and counts once the catalogue
names it.
"""

import contextlib
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.records import Layout

BLOCK = 64 * 1024
HEADER = 128
FOLDER = "segments"
OFFSETS = "offsets.npy"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """What the catalogue knows of a segment's file: its size in bytes, and the CRC-32 of each 64 KiB block of it
    (little-endian uint32)."""

    name: str
    size: int
    checksums: bytes


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What the catalogue knows of a segment: ``rows`` windows with ``tokens`` vectors in all."""

    key: int
    name: str
    rows: int
    tokens: int
    files: tuple[SegmentFile, ...]


class SegmentWriter:
    """Writes one segment, row by row; ``finish`` makes it durable, ``close`` without it removes what was written."""

    def __init__(self, index: Path, layout: Layout, dim: int) -> None:
        self.name = secrets.token_hex(8)
        self._layout, self._dim = layout, dim
        self._final = index / FOLDER / self.name
        self._folder = index / FOLDER / f".{self.name}"
        self._folder.mkdir(parents=True)
        self._file: BinaryIO = (self._folder / layout.file).open("w+b")
        self._file.write(self._header(0))
        self._offsets = [0]

    def close(self) -> None:
        """Let go of the files; a segment that was not finished is removed."""
        with contextlib.suppress(OSError):  # what a full disk did not take need not be taken now
            self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # `finish` has renamed it

    @property
    def rows(self) -> int:
        """How many rows (windows) were written."""
        return len(self._offsets) - 1

    @property
    def tokens(self) -> int:
        """How many vectors were written."""
        return self._offsets[-1]

    def append(self, vectors: NDArray[Any]) -> int:
        """Write a window's (tokens, dim) vectors, already of the stored type; returns its row."""
        self._file.write(np.ascontiguousarray(vectors).data)
        self._offsets.append(self._offsets[-1] + len(vectors))
        return self.rows - 1

    def finish(self) -> list[SegmentFile]:
        """Make the segment durable under its final name; returns what the catalogue is to know of its files."""
        self._file.seek(0)
        self._file.write(self._header(self.tokens))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        names = [self._layout.file]
        if self._layout.many_rows:
            names.append(OFFSETS)
            with (self._folder / OFFSETS).open("wb") as file:
                offsets = np.array(self._offsets, dtype="<i8")
                file.write(npy_header(np.int64, offsets.shape) + offsets.tobytes())
                file.flush()
                os.fsync(file.fileno())
        files = [_describe(self._folder / name) for name in names]
        sync_folder(self._folder)
        self._folder.rename(self._final)
        sync_folder(self._final.parent)
        return files

    def _header(self, tokens: int) -> bytes:
        return npy_header(self._layout.dtype, (tokens, self._dim))


class Segment:
    """A committed segment, mapped for reading; it stays readable after a writer has dropped it and removed its folder.

    ``vectors`` (tokens, dim) is memory-mapped; ``offsets`` (rows + 1,) int64 says where each row's vectors begin.
    """

    def __init__(self, index: Path, record: SegmentRecord, layout: Layout, dim: int) -> None:
        self._folder = index / FOLDER / record.name
        self._files = {file.name: file for file in record.files}
        self._unchecked = {file.name: np.ones(len(file.checksums) // 4, dtype=bool) for file in record.files}
        self._maps: dict[str, Any] = {}
        self.vectors = self._map(layout.file, layout.dtype, (record.tokens, dim))
        if layout.many_rows:
            self.offsets: NDArray[np.int64] = self._map(OFFSETS, np.int64, (record.rows + 1,))
            if self.offsets[0] != 0 or self.offsets[-1] != record.tokens or (np.diff(self.offsets) < 1).any():
                raise self._damaged(OFFSETS, "its numbers do not rise from 0 to the number of tokens")
        else:
            self.offsets = np.arange(record.rows + 1, dtype=np.int64)
        self._main = layout.file

    def check_rows(self, rows: NDArray[np.int64]) -> None:
        """Check the blocks that hold these rows against their checksums, each block once. Raises: IndexFormatError."""
        first = self.vectors.offset + self.offsets[rows] * self.vectors.strides[0]
        last = self.vectors.offset + self.offsets[rows + 1] * self.vectors.strides[0] - 1
        # Rows may be longer than a block: every block between the first and the last is meant.
        depth = np.zeros(len(self._unchecked[self._main]) + 1, dtype=np.int64)
        np.add.at(depth, first // BLOCK, 1)
        np.add.at(depth, last // BLOCK + 1, -1)
        blocks = np.flatnonzero((np.cumsum(depth[:-1]) > 0) & self._unchecked[self._main])
        self._check_blocks(self._main, blocks.tolist())

    def verify(self) -> None:
        """Check every block of every file. Raises: IndexFormatError naming the first file that differs."""
        for name, unchecked in self._unchecked.items():
            self._check_blocks(name, range(len(unchecked)))

    def _check_blocks(self, name: str, blocks: Iterable[int]) -> None:
        raw = memoryview(self._maps[name].base)  # the whole file, header included
        expected = np.frombuffer(self._files[name].checksums, dtype="<u4")
        for block in blocks:
            if zlib.crc32(raw[block * BLOCK : (block + 1) * BLOCK]) != expected[block]:
                raise self._damaged(name, f"bytes {block * BLOCK} to {(block + 1) * BLOCK} were changed")
            self._unchecked[name][block] = False

    def _map(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
        path = self._folder / name
        if name not in self._files:
            raise self._damaged(name, "the catalogue does not name it")
        size = path.stat().st_size
        if size != self._files[name].size:
            raise self._damaged(name, f"it has {size:,} bytes, not {self._files[name].size:,}")
        with path.open("rb") as file:
            # Compared, not read: what another wrote is not parsed, and shape and type are known from the catalogue.
            if file.read(HEADER) != npy_header(dtype, shape):
                raise self._damaged(name, f"it is not a file of {np.dtype(dtype)} {shape}")
        array: np.memmap[Any, Any] = np.memmap(path, dtype=dtype, mode="r", offset=HEADER, shape=shape)
        self._maps[name] = array
        return array

    def _damaged(self, name: str, what: str) -> IndexFormatError:
        return IndexFormatError(f"{self._folder / name} is damaged: {what}; restore it from a copy, or index again")


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Return the first 128 bytes of a NumPy file (NEP 1, version 1.0), whatever the length: it can be written last."""
    descr = np.dtype(dtype).newbyteorder("<").str
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def segment_bytes(index: Path) -> int:
    """Return the bytes of all files under the index's segments folder."""
    return sum(path.stat().st_size for path in (index / FOLDER).rglob("*") if path.is_file())


def sweep(index: Path, named: Sequence[str]) -> None:
    """Remove the segment folders that the catalogue does not name: what killed writers left, what was dropped."""
    folder = index / FOLDER
    if folder.is_dir():
        for child in folder.iterdir():
            if child.name not in named:
                shutil.rmtree(child, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(path: Path) -> SegmentFile:
    checksums = bytearray()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksums += zlib.crc32(block).to_bytes(4, "little")
        return SegmentFile(path.name, file.tell(), bytes(checksums))
