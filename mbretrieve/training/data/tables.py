"""Where rows come from: JSON lines, parquet, datasets of the Hub, each as a table or as a stream.

A table answers for any row by its number and holds no more than one row's place in memory: JSON lines are found by
their bytes' offsets (a compressed file is first unpacked to a temporary one, because gzip cannot be read from the
middle), parquet and the Hub's datasets are memory-mapped by Hugging Face's ``datasets``. A stream is read front to
back.
"""

import gzip
import hashlib
import importlib
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.jsonl import bounded_lines, parse, read_lines, reading
from mbretrieve.training.config import SourceConfig
from mbretrieve.training.data import digests

Row = Mapping[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".tsv")


class Table(Protocol):
    """Rows by their number."""

    @property
    def digest(self) -> str:
        """What the rows are, as a hash."""

    def __len__(self) -> int:
        """Return how many rows there are."""

    def row(self, at: int) -> Row:
        """Read one row. Raises: DataError, with the place, for one that is damaged."""

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Read rows in their order from ``start`` on, each with its number."""

    def place(self, at: int) -> str:
        """Say where a row stands, as a person would look it up."""


class JsonLines:
    """A table of JSON lines, one object a line; gzip too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path):
            self._file = _plain_file(path)
            self.digest = digests.of_open(self._file)
            self._offsets = _line_offsets(self._file, path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def row(self, at: int) -> Row:
        """Read one row."""
        return parse(self._line(at), self.place(at))

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Read rows in their order."""
        return ((at, self.row(at)) for at in range(start, len(self)))

    def place(self, at: int) -> str:
        """Say where a row stands."""
        return f"{self._path}:{at + 1}"

    def _line(self, at: int) -> bytes:
        start, end = self._offsets[at], self._offsets[at + 1]
        return os.pread(self._file.fileno(), end - start, start)


class TabLines(JsonLines):
    """A table of values parted by tabs, their names in the first line: the judgements of BEIR's layout."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._names = self._values(0)

    def __len__(self) -> int:
        return super().__len__() - 1

    def row(self, at: int) -> Row:
        """Read one row."""
        values = self._values(at + 1)
        if len(values) != len(self._names):
            raise DataError(f"{self.place(at)}: {len(values)} values parted by tabs, expected {', '.join(self._names)}")
        return dict(zip(self._names, values, strict=True))

    def place(self, at: int) -> str:
        """Say where a row stands."""
        return super().place(at + 1)

    def _values(self, line: int) -> list[str]:
        return self._line(line).decode("utf-8", "replace").rstrip("\r\n").split("\t")


class LineStream:
    """JSON lines read front to back, without knowing how many there are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise DataError(f"{path} is not there: expected a file of JSON lines")

    @cached_property
    def digest(self) -> str:
        """What the rows are, as a hash."""
        with reading(self._path):
            return digests.of_file(self._path)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Read rows in their order."""
        for at, (place, line) in enumerate(read_lines(self._path)):
            if at >= start:
                yield at, parse(line, place)

    def place(self, at: int) -> str:
        """Say where a row stands."""
        return f"{self._path}:{at + 1}"


class HubTable:
    """A table of Hugging Face's ``datasets``: parquet files, and what is on the Hub or in a folder of that layout.

    ``file`` is the one that the rows are read from, if there is one.
    """

    def __init__(self, rows: Any, name: str, file: Path | None = None) -> None:
        self._rows, self._name = rows, name
        self.digest = digests.of_rows(rows) if file is None else digests.of_file(file)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, at: int) -> Row:
        """Read one row."""
        found: Row = self._rows[at]
        return found

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Read rows in their order."""
        return ((at, row) for at, row in enumerate(self._rows.skip(start), start))

    def place(self, at: int) -> str:
        """Say where a row stands."""
        return f"{self._name} row {at}"


class HubStream:
    """A dataset of the Hub, read as it is downloaded; or a parquet ``file``."""

    def __init__(self, rows: Any, name: str, file: Path | None = None) -> None:
        self._rows, self._name, self._of = rows, name, file

    @cached_property
    def digest(self) -> str:
        """What the rows are, as a hash."""
        return digests.of_first_rows(self._rows) if self._of is None else digests.of_file(self._of)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Read rows in their order."""
        return enumerate(self._rows.skip(start), start)

    def place(self, at: int) -> str:
        """Say where a row stands."""
        return f"{self._name} row {at}"


Stream = LineStream | HubStream


class Lookup:
    """From ids to a table's rows, in 16 bytes a row: a Python dict of ids would take ten times as much.

    Ids are found by a 64-bit hash; the row that is read says whether it is the one.
    """

    def __init__(self, table: Table, key: str, name: str) -> None:
        self._table, self._key, self._name = table, key, name
        self.digest = table.digest
        hashes = np.fromiter((_hash(str(row.get(key))) for _, row in table.rows()), np.uint64, len(table))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes: NDArray[np.uint64] = hashes[self._order]

    def __getitem__(self, identifier: Any) -> Row:
        """Return the row of an id. Raises: KeyError if there is none."""
        at = int(np.searchsorted(self._hashes, _hash(str(identifier))))
        if at < len(self._hashes):
            row = self._table.row(int(self._order[at]))
            if str(row.get(self._key)) == str(identifier):
                return row
        raise KeyError(f"{self._name} has no {self._key} {identifier!r}")


def open_table(source: SourceConfig, name: str | None = None) -> Table:
    """Open a source's rows, or its table of a name (a file of a folder, a configuration of a dataset on the Hub).

    Raises: DataError for what is not there or cannot be read; MissingExtraError.
    """
    if source.path is None:
        split = _split_of(source, name) if name else source.split
        return HubTable(_load_hub(source, name or source.config, split), _hub_place(source, name))
    path = _find(Path(source.path).expanduser(), name or source.split)
    if path.suffix == ".parquet":
        return HubTable(_load("parquet", str(path), data_files=str(path), split="train"), str(path), path)
    return TabLines(path) if path.suffix == ".tsv" else JsonLines(path)


def open_stream(source: SourceConfig) -> Stream:
    """Open a source's rows to be read front to back. Raises: as ``open_table``."""
    if source.path is None:
        rows = _load_hub(source, source.config, source.split, streaming=True)
        return HubStream(rows, _hub_place(source, None))
    path = _find(Path(source.path).expanduser(), source.split)
    if path.suffix == ".parquet":
        rows = _load("parquet", str(path), data_files=str(path), split="train", streaming=True)
        return HubStream(rows, str(path), path)
    return LineStream(path)


def hub_configs(source: SourceConfig) -> Sequence[str]:
    """Return the names of a dataset's configurations. Raises: as ``open_table``."""
    with _hub_errors(str(source.hub)):
        names: list[str] = _datasets().get_dataset_config_names(source.hub, revision=source.revision)
    return names


def _split_of(source: SourceConfig, config: str) -> str:
    """Return the split asked for, or the only one a configuration has: tables of texts are named after themselves."""
    with _hub_errors(str(source.hub)):
        splits = _datasets().get_dataset_split_names(source.hub, config, revision=source.revision)
    if source.split not in splits and len(splits) > 1:
        raise DataError(f"{source.hub} {config} has no split {source.split!r}, it has {', '.join(splits)}")
    return source.split if source.split in splits else str(splits[0])


def _find(path: Path, name: str) -> Path:
    """Return the file at a path, or the one of a name in a folder."""
    if path.is_dir():
        for suffix in SUFFIXES:
            if (found := path / f"{name}{suffix}").is_file():
                return found
        raise DataError(f"{path} has no {name}.jsonl: expected it, as one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path} is not there: expected a file or a folder of {', '.join(SUFFIXES)}")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path} is of no kind that is read: expected {', '.join(SUFFIXES)}")
    return path


# JSON lines


def _plain_file(path: Path) -> IO[bytes]:
    """Open a file for reading at any place; what is compressed is unpacked to a file that vanishes when closed."""
    if path.suffix != ".gz":
        return path.open("rb")
    plain = tempfile.TemporaryFile(prefix="mbretrieve-")  # noqa: SIM115 - it is the table's, and goes with it
    with gzip.open(path) as packed:
        shutil.copyfileobj(packed, plain, 2**20)
    plain.seek(0)
    return plain


def _line_offsets(file: IO[bytes], path: Path) -> "array[int]":
    """Return where each line starts, and where the last one ends."""
    offsets = array("q", [0])
    for line in bounded_lines(file, path):
        offsets.append(offsets[-1] + len(line))
    if len(offsets) == 1:
        raise DataError(f"{path} is empty: expected one JSON object a line")
    return offsets


# Hugging Face's datasets


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "train", "reading parquet and datasets of the Hub") from error


def _load_hub(source: SourceConfig, config: str | None, split: str, **options: Any) -> Any:
    revision = source.revision
    return _load(str(source.hub), str(source.hub), name=config, split=split, revision=revision, **options)


def _load(builder: str, title: str, **options: Any) -> Any:
    with _hub_errors(title):
        return _datasets().load_dataset(builder, **options)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    hub = _datasets()
    try:
        yield
    except (OSError, ValueError, hub.exceptions.DatasetsError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} cannot be read as a dataset ({first})") from error


def _hub_place(source: SourceConfig, name: str | None) -> str:
    return " ".join(part for part in (source.hub, name or source.config, source.split) if part)


def _hash(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode("utf-8", "replace"), digest_size=8).digest(), "little")
