"""Folders of immutable files, mapped by readers, with a checksum for every 16 KiB of each file, checked before its use,
and parity by which a file is restored where few blocks are damaged.

A folder is written under a name that begins with a dot, made durable, renamed, and counts once the catalogue names it.
"""

import contextlib
import io
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.arrays import distinct, spread
from mbretrieve.index.parity import Parity

BLOCK = 16 * 1024
"""Bytes that are checked together. A search reads some kilobytes here and there: of blocks of 64 KiB a cold one had to
check four times as many bytes as it used, and blocks of 4 KiB only moved that time into the loop over them."""
HEADER = 128


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What the catalogue knows of a file: its size in bytes, the CRC-32 of each 16 KiB block of it (little-endian
    uint32), and the ``parity`` of these blocks, which is left empty for those who only read the file."""

    name: str
    size: int
    checksums: bytes
    parity: bytes = b""


class Draft:
    """A folder that is being written: ``finish`` makes it durable under its final name, ``close`` without it removes
    what was written."""

    def __init__(self, parent: Path) -> None:
        self.name = secrets.token_hex(8)
        self.path = parent / f".{self.name}"
        self.path.mkdir(parents=True)

    def finish(self, names: Sequence[str]) -> list[StoredFile]:
        """Make the folder with these files, which were synced, durable; returns what the catalogue is to know."""
        files = [describe(self.path / name) for name in names]
        for other in self.path.iterdir():
            if other.name not in names:
                other.unlink()
        sync_folder(self.path)
        self.path.rename(self.path.with_name(self.name))
        sync_folder(self.path.parent)
        return files

    def close(self) -> None:
        """Remove what was not finished."""
        shutil.rmtree(self.path, ignore_errors=True)  # `finish` has renamed it


class MappedFolder:
    """A committed folder. Its arrays are mapped for reading, and stay readable after the folder was removed."""

    def __init__(self, path: Path, files: Iterable[StoredFile]) -> None:
        self.path = path
        self._files = {file.name: file for file in files}
        self._unchecked = {file.name: np.ones(len(file.checksums) // 4, dtype=bool) for file in self._files.values()}
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        for name, file in self._files.items():
            if len(file.checksums) != 4 * -(-file.size // BLOCK):
                raise self.damaged(name, f"the catalogue has {len(file.checksums) // 4} checksums for it")

    def map(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """Map an array file of this type and shape. Raises: IndexFormatError if it is another one."""
        raw = self.raw(name)
        header = npy_header(dtype, shape)
        # Compared, not read: what another wrote is not parsed, and type and shape are known from the catalogue.
        if raw[:HEADER].tobytes() != header or len(raw) != HEADER + np.dtype(dtype).itemsize * int(np.prod(shape)):
            raise self.damaged(name, f"it is not a file of {np.dtype(dtype)} {shape}")
        return raw[HEADER:].view(dtype).reshape(shape)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Map a whole file. Raises: FileNotFoundError; IndexFormatError if its size is not the catalogue's."""
        if name not in self._bytes:
            if name not in self._files:
                raise self.damaged(name, "the catalogue does not name it")
            size = (self.path / name).stat().st_size
            if size != self._files[name].size:
                raise self.damaged(name, f"it has {size:,} bytes, not {self._files[name].size:,}")
            self._bytes[name] = np.memmap(self.path / name, dtype=np.uint8, mode="r")
        return self._bytes[name]

    def check(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Check the blocks that hold these ranges of a file's bytes, each block once. Raises: IndexFormatError."""
        unchecked = self._unchecked[name]
        if not unchecked.any():
            return
        some = stops > starts
        blocks = spread(starts[some] // BLOCK, (stops[some] - 1) // BLOCK + 1)
        self._check_blocks(name, distinct(blocks[unchecked[blocks]]).tolist())

    def check_rows(self, name: str, array: NDArray[Any], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Check the blocks that hold these ranges of a mapped array's rows, as ``check`` does."""
        width = array.strides[0]
        self.check(name, HEADER + starts * width, HEADER + stops * width)

    def verify(self) -> None:
        """Check every block of every file. Raises: IndexFormatError naming the first file that differs."""
        for name, unchecked in self._unchecked.items():
            self._check_blocks(name, range(len(unchecked)))

    def verify_file(self, name: str) -> None:
        """Check every block of a file. Raises: IndexFormatError."""
        self._check_blocks(name, np.flatnonzero(self._unchecked[name]).tolist())

    def problems(self) -> Iterator[str]:
        """Yield a line for each file that is not as it was written."""
        for name, file in self._files.items():
            try:
                self.raw(name)
            except IndexFormatError as error:
                yield str(error)
            except FileNotFoundError as error:
                yield f"{error.filename} is missing"
            else:
                changed = np.flatnonzero(~self.sound_blocks(name))
                if len(changed):
                    more = f", and {len(changed) - 1:,} more blocks" if len(changed) > 1 else ""
                    yield str(self.damaged(name, f"{_bytes(int(changed[0]), file)} were changed{more}"))

    def is_sound(self, name: str) -> bool:
        """Say whether a file is as it was written."""
        return self.has_size(name) and bool(self.sound_blocks(name).all())

    def has_size(self, name: str) -> bool:
        """Say whether a file is there, and as large as the catalogue says."""
        path = self.path / name
        return path.is_file() and path.stat().st_size == self._files[name].size

    def sound_blocks(self, name: str) -> NDArray[np.bool_]:
        """Say which blocks of a file, which need not be there or of its size, are as they were written."""
        return np.fromiter((block is not None for block in self.blocks(name)), dtype=bool)

    def blocks(self, name: str) -> Iterator[bytes | None]:
        """Yield every block of a file, which need not be there or of its size; None for one that is not as it was."""
        with contextlib.ExitStack() as stack:
            path = self.path / name
            file = stack.enter_context(path.open("rb") if path.is_file() else io.BytesIO())
            for block, kept in enumerate(np.frombuffer(self._files[name].checksums, dtype="<u4")):
                data = file.read(min(BLOCK, self._files[name].size - block * BLOCK))
                yield data if data and zlib.crc32(data) == kept else None

    def damaged(self, name: str, what: str) -> IndexFormatError:
        """Say that a file is damaged."""
        return IndexFormatError(
            f"{self.path / name} is damaged: {what}; run `mbretrieve repair`, restore it from a copy, or index again"
        )

    def _check_blocks(self, name: str, blocks: Iterable[int]) -> None:
        raw = self.raw(name)
        expected = np.frombuffer(self._files[name].checksums, dtype="<u4")
        for block in blocks:
            if zlib.crc32(raw[block * BLOCK : (block + 1) * BLOCK].data) != expected[block]:
                raise self.damaged(name, f"{_bytes(block, self._files[name])} were changed")
            self._unchecked[name][block] = False


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """Return the header of a numpy file (format 1.0), always ``HEADER`` bytes so that it can be written last."""
    description = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    text = f"{description!r}".encode("ascii")
    prefix = b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little")
    return prefix + text.ljust(HEADER - 11) + b"\n"


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as a numpy file, and make it durable."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    with path.open("wb") as file:
        file.write(npy_header(array.dtype, array.shape))
        file.write(little.data)
        file.flush()
        os.fsync(file.fileno())


class ArrayWriter:
    """Appends rows to a numpy file whose length is known when it is finished."""

    def __init__(self, path: Path, dtype: DTypeLike, row: tuple[int, ...]) -> None:
        self.path, self._dtype, self._row = path, np.dtype(dtype), row
        self._file: BinaryIO = path.open("w+b")
        self._file.write(npy_header(dtype, (0, *row)))

    def append(self, rows: NDArray[Any]) -> None:
        """Write some rows behind those that were."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype.newbyteorder("<")).data)

    def mapped(self, length: int) -> NDArray[Any]:
        """Return what was appended."""
        self._file.flush()
        shape = (length, *self._row)
        mapped: NDArray[Any] = np.memmap(self.path, dtype=self._dtype, mode="r", offset=HEADER, shape=shape)
        return mapped

    def finish(self, length: int) -> None:
        """Write how many rows there are, make the file durable and close it."""
        self._file.seek(0)
        self._file.write(npy_header(self._dtype, (length, *self._row)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close the file, whatever is in it."""
        with contextlib.suppress(OSError):  # what a full disk did not take need not be taken now
            self._file.close()


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files below a folder take."""
    return sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file())


def sweep(folder: Path, named: Iterable[str]) -> None:
    """Remove the folders that the catalogue does not name: what killed writers left, what was dropped."""
    keep = set(named)
    if folder.is_dir():
        for child in folder.iterdir():
            if child.name not in keep:
                shutil.rmtree(child, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(path: Path) -> StoredFile:
    """Return what the catalogue is to know of a file."""
    checksums = bytearray()
    size = path.stat().st_size
    parity = Parity(size, BLOCK)
    with path.open("rb") as file:
        for number in range(-(-size // BLOCK)):
            block = file.read(BLOCK)
            checksums += zlib.crc32(block).to_bytes(4, "little")
            parity.add(number, block)
    return StoredFile(path.name, size, bytes(checksums), parity.rows.tobytes())


def restore(folder: Path, file: StoredFile) -> bool:
    """Put a damaged file in its place again, as it was and durable, if its parity still says what is lost of it.

    Returns whether it did: not where two blocks of a group are lost. The file need not be there, nor its folder.
    """
    parity = Parity(file.size, BLOCK)
    if not parity.begin(file.parity):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{file.name}"
    lost: dict[int, int] = {}  # by group
    try:
        with draft.open("wb") as into:
            for number, block in enumerate(MappedFolder(folder, [file]).blocks(file.name)):
                if block is not None:
                    into.seek(number * BLOCK)
                    into.write(block)
                    parity.add(number, block)
                elif lost.setdefault(parity.group(number), number) != number:
                    return False
            for group, number in lost.items():
                into.seek(number * BLOCK)
                into.write(parity.rows[group, : file.size - number * BLOCK].data)
            into.flush()
            os.fsync(into.fileno())
        if (found := describe(draft)).checksums != file.checksums or found.parity != file.parity:
            return False
        draft.rename(folder / file.name)
        sync_folder(folder)
        return True
    finally:
        draft.unlink(missing_ok=True)


def _bytes(block: int, file: StoredFile) -> str:
    return f"bytes {block * BLOCK} to {min((block + 1) * BLOCK, file.size)}"
