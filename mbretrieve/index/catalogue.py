"""The catalogue: one SQLite database that says what an index holds. Its transaction is the index's commit.

It is kept in write-ahead mode, so that a reader sees the generation it opened while a writer works. Every row carries a
checksum of ours, because SQLite does not notice a changed byte inside a value.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError, IndexBusyError, IndexFormatError
from mbretrieve.index.files import StoredFile, sync_folder
from mbretrieve.index.lock import writer_lock
from mbretrieve.index.records import LAYOUTS, Layout
from mbretrieve.index.segments import CODEBOOKS, SEGMENTS, CodebookRecord, SegmentRecord
from mbretrieve.types import Kind

Integers = NDArray[np.int64]

FILE = "catalog.sqlite"
DRAFT = f"{FILE}.new"  # until it is complete
DRAFT_FILES = tuple(DRAFT + suffix for suffix in ("", "-journal", "-wal", "-shm"))
"""What a process that was killed while it made an index may have left."""
FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm", *DRAFT_FILES)
"""The catalogue, and what SQLite keeps beside it."""
FOLDERS = (SEGMENTS, CODEBOOKS)
"""The folders beside the catalogue."""
FORMAT = 4
BUSY_SECONDS = 10.0
LEAST_ROOM = 1 << 16  # bytes of a disk that is not full: twice what SQLite needs to read
MAX_PARAMETERS = 10_000  # of one statement; SQLite takes 32,766

# What SQLite says of a disk that is full or read-only; reading needs to write too, 32 KiB of shared memory.
NOT_WRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)

# A content is a text with its context, its windows and its words; documents of one content share it. So vectors are
# found again by content hash, and a document whose metadata alone changed costs one row. How many windows it has, and
# which characters they span in all, is kept with it; which they are, beside their vectors. A segment's row lives while
# its content is there: `deleted` has a bit for each row, so that a reader need not look at the contents. The parity of
# files is the last of their columns: who does not ask for it, as readers do not, does not read it.
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE codebooks (
  key INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, bits INTEGER NOT NULL, lists INTEGER NOT NULL,
  tokens INTEGER NOT NULL, error REAL NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE segments (
  key INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL, tokens INTEGER NOT NULL,
  codebook INTEGER, checksum BLOB NOT NULL, live_rows INTEGER NOT NULL, live_tokens INTEGER NOT NULL);
CREATE TABLE deleted (segment INTEGER PRIMARY KEY, rows BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE files (
  folder TEXT NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL, checksums BLOB NOT NULL, checksum BLOB NOT NULL,
  parity BLOB NOT NULL, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE contents (
  key INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL, windows INTEGER NOT NULL, start INTEGER NOT NULL,
  stop INTEGER NOT NULL, span_checksum INTEGER NOT NULL, context TEXT NOT NULL, text TEXT NOT NULL,
  checksum BLOB NOT NULL);
CREATE INDEX contents_by_hash ON contents (hash) WHERE hash != '';
CREATE TABLE documents (
  key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, content INTEGER NOT NULL, source TEXT,
  metadata TEXT NOT NULL, checksum BLOB NOT NULL);
CREATE INDEX documents_by_content ON documents (content);
CREATE INDEX documents_by_source ON documents (source) WHERE source IS NOT NULL;
CREATE TABLE metadata (name TEXT NOT NULL, value, document INTEGER NOT NULL, PRIMARY KEY (name, value, document))
  WITHOUT ROWID;
CREATE TABLE sources (name TEXT PRIMARY KEY, state TEXT NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (
  run INTEGER PRIMARY KEY AUTOINCREMENT, first INTEGER NOT NULL, last INTEGER NOT NULL, contents INTEGER NOT NULL,
  postings INTEGER NOT NULL, deleted INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE postings (
  run INTEGER NOT NULL, word TEXT NOT NULL, contents INTEGER NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
  PRIMARY KEY (run, word)) WITHOUT ROWID;
CREATE TABLE lengths (block INTEGER PRIMARY KEY, data BLOB NOT NULL, checksum INTEGER NOT NULL);
"""

CONTENT_COLUMNS = "hash, windows, start, stop, span_checksum, context, text"
SEGMENT_COLUMNS = "key, name, rows, tokens, codebook"
CODEBOOK_COLUMNS = "key, name, bits, lists, tokens, error"


# A changed byte can give a value another type, bytes for one; that must differ, not fail.
_encode = json.JSONEncoder(default=repr).encode


def checksum(*fields: str | float | None) -> bytes:
    """Hash the fields of a row (blake2b, 16 bytes), as the catalogue keeps it beside them."""
    return blake2b(_encode(fields).encode(), digest_size=16).digest()


def span_checksum(start: int, stop: int) -> int:
    """Hash which characters a content spans, for who reads its row but not its text."""
    return zlib.crc32(b"%d %d" % (start, stop))


def is_file_name(folder: object, name: object) -> bool:
    """Say whether this can be a file in one of our folders: an index that somebody else made leads nowhere else."""
    return all(isinstance(part, str) and re.fullmatch(r"\w[\w.]*", part) for part in (folder, name))


def file_checksum(folder: str, file: StoredFile) -> bytes:
    """Hash the row of a file."""
    return checksum(folder, file.name, file.size, zlib.crc32(file.checksums), zlib.crc32(file.parity))


@contextmanager
def translated(index: Path) -> Iterator[None]:
    """Turn SQLite's errors, and a disk's, into ours: one line that names the index."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a closed connection is a mistake in the program
    except sqlite3.DatabaseError as error:
        code = _code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexBusyError(f"{index} is in use by another process: try again when it is done") from error
        if code in NOT_WRITABLE:
            raise _unusable(index, str(error), full=code == sqlite3.SQLITE_FULL) from error
        raise unreadable(index, str(error)) from error
    except UnicodeDecodeError as error:  # SQLite quotes a damaged schema, and Python cannot read the quotation
        raise unreadable(index, "its schema is not text") from error
    except OSError as error:
        raise _unusable(index, error.strerror or str(error), full=error.errno == errno.ENOSPC) from error


def _unusable(index: Path, why: str, *, full: bool) -> IndexBusyError:
    """Say that a disk took no more, or nothing. Where it is full SQLite may call that an error of the disk."""
    with contextlib.suppress(OSError):
        full = full or shutil.disk_usage(index if index.exists() else index.parent).free < LEAST_ROOM
    if full:
        return IndexBusyError(f"{index} cannot be used: its disk is full; make room for it; what was committed is safe")
    return IndexBusyError(
        f"{index} cannot be used ({why}): see to its disk and its permissions; what was committed is safe"
    )


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary code; Python's own complaint, of text that is not UTF-8, has none and means damage."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def damaged(index: Path, what: str) -> IndexFormatError:
    """Say that a row of the catalogue is damaged."""
    return IndexFormatError(
        f"{index / FILE} is damaged ({what}): run `mbretrieve repair`, restore it from a copy, or index again"
    )


def unreadable(index: Path, what: str) -> IndexFormatError:
    """Say that the catalogue is damaged where ``repair``, which needs to read it, is no help."""
    return IndexFormatError(f"{index / FILE} is damaged ({what}): restore it from a copy, or index again")


def create_catalogue(
    index: Path, kind: Kind, dim: int, identity: Mapping[str, Any], bits: int | None, pooled_dim: int = 0
) -> None:
    """Make the folder and its empty catalogue, complete or not at all.

    Raises: DataError if something is there already, IndexBusyError if the folder cannot be written.
    """
    if kind not in LAYOUTS or dim < 1:
        raise ValueError(f"kind {kind!r} with dim {dim}; one of {', '.join(LAYOUTS)} and at least 1 were expected")
    if pooled_dim < 0 or (kind == "joint") != bool(pooled_dim):
        raise ValueError(f"kind {kind!r} with pooled_dim {pooled_dim}; of a joint index alone at least 1 was expected")
    with translated(index):
        if index.exists():
            _refuse_others(index)  # before a lock file is left among them
        index.mkdir(parents=True, exist_ok=True)
    with writer_lock(index), translated(index):
        _refuse_others(index)
        if (index / FILE).exists():
            raise DataError(f"{index} already is an index: open it, or remove it first")
        for name in DRAFT_FILES:  # SQLite would play a journal of another draft back into this one
            (index / name).unlink(missing_ok=True)
        draft = index / DRAFT
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            meta = {
                "format": FORMAT,
                "kind": kind,
                "dim": dim,
                "bits": bits,
                "identity": dict(identity),
                "generation": 0,
                "settings": {},
                **({"pooled_dim": pooled_dim} if pooled_dim else {}),
            }
            for name, value in meta.items():
                put_meta(connection, name, value)
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        descriptor = os.open(draft, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        draft.rename(index / FILE)
        sync_folder(index)


def _refuse_others(index: Path) -> None:
    """Raise DataError if what is at ``index`` is no folder, or holds what is not an index's."""
    if not index.is_dir():
        raise DataError(f"{index} is a file; name a new or empty folder for the index")
    if foreign := {path.name for path in index.iterdir()} - {*FILES, "lock", *FOLDERS}:
        raise DataError(f"{index} holds other files ({min(foreign)}); name a new or empty folder for the index")


def put_meta(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Write one named JSON value into the catalogue."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, text, checksum(name, text)))


class Catalogue:
    """A connection to an index's catalogue: ``open`` for reading one generation, ``open_to_write`` for the writer."""

    def __init__(self, index: Path, connection: sqlite3.Connection, *, frozen: bool) -> None:
        self.index = index
        self.connection = connection
        self._frozen = _stamp(index) if frozen else None
        self._close = weakref.finalize(self, connection.close)
        self._lock = threading.RLock()
        self._meta: dict[str, Any] = {}

    @classmethod
    def open(cls, index: Path) -> Self:
        """Open the newest generation for reading, on a read-only disk too.

        Raises: IndexFormatError if this is no index, or one of a newer format, or damaged.
        """
        file = _existing(index)
        with translated(index):
            try:
                # Not mode=ro: the last reader to leave could not clean up after a killed writer.
                return cls._reading(index, _connect(file, "mode=rw"), frozen=False)
            except sqlite3.OperationalError as error:
                if _code(error) not in NOT_WRITABLE:
                    raise
            # A folder that cannot be written: SQLite reads it only on the promise that nobody else writes it either.
            log = file.with_name(f"{FILE}-wal")
            if log.exists() and log.stat().st_size:
                raise IndexBusyError(
                    f"{index} was left by a writer that was stopped, and is read-only: open it once where it is not"
                )
            return cls._reading(index, _connect(file, "immutable=1"), frozen=True)

    @classmethod
    def _reading(cls, index: Path, connection: sqlite3.Connection, *, frozen: bool) -> Self:
        catalogue = cls(index, connection, frozen=frozen)
        try:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            catalogue._read_meta()
        except BaseException:
            connection.close()
            raise
        return catalogue

    @classmethod
    def open_to_write(cls, index: Path) -> Self:
        """Open for the one writer, who holds the lock."""
        with translated(index):
            catalogue = cls(index, _connect(_existing(index), "mode=rw"), frozen=False)
            try:
                catalogue.connection.execute("PRAGMA synchronous = FULL")  # a commit outlives a power cut
                catalogue._read_meta()
            except BaseException:
                catalogue.connection.close()
                raise
            return catalogue

    def close(self) -> None:
        """Close the connection; nothing can be read after. A catalogue that nobody holds any more closes itself."""
        self._close()

    @property
    def kind(self) -> Kind:
        """Which kind of vectors the index holds."""
        kind: Kind = self._meta["kind"]
        return kind

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return int(self._meta["dim"])

    @property
    def layout(self) -> Layout:
        """How the vectors are stored in segments."""
        return LAYOUTS[self.kind]._replace(pooled_dim=int(self._meta.get("pooled_dim", 0)))

    @property
    def bits(self) -> int | None:
        """How many bits a dimension of a packed vector has; None if vectors are never packed."""
        bits: int | None = self._meta["bits"]
        return bits

    @property
    def identity(self) -> dict[str, Any]:
        """What the maker of the index said of the model."""
        return dict(self._meta["identity"])

    @property
    def settings(self) -> dict[str, Any]:
        """What the caller keeps in the index."""
        return dict(self._meta["settings"])

    @property
    def generation(self) -> int:
        """How many commits led here."""
        return int(self._meta["generation"])

    def newest_generation(self) -> int:
        """Return the generation as it stands, for the writer to count on."""
        [(value,)] = self.rows("SELECT value FROM meta WHERE name = 'generation'")
        return int(value)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query. Raises: IndexFormatError if the catalogue is damaged."""
        with self._lock, translated(self.index):
            rows = self.connection.execute(sql, parameters).fetchall()
            self._check_frozen()
            return rows

    def rows_among(self, sql: str, values: Collection[Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a query that ends in the name of a column, whose value is to be one of ``values``."""
        given, found = list(values), []
        for first in range(0, len(given), MAX_PARAMETERS):
            some = given[first : first + MAX_PARAMETERS]
            found += self.rows(f"{sql} IN ({', '.join('?' * len(some))})", some)
        return found

    def integers(self, sql: str, parameters: Sequence[Any] = (), *, columns: int) -> Integers:
        """Return a query's rows of integers as a (rows, columns) array."""
        return self.to_integers(self.rows(sql, parameters), columns=columns)

    def to_integers(self, rows: Sequence[tuple[Any, ...]], *, columns: int) -> Integers:
        """Return rows of integers as a (rows, columns) array. Raises: IndexFormatError if one is none."""
        try:
            return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=columns * len(rows)).reshape(
                -1, columns
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise damaged(self.index, "a number is none") from error

    def live(self, record: SegmentRecord) -> NDArray[np.bool_]:
        """Return which rows of a segment live, (rows,)."""
        [(count, data, kept)] = self.rows(
            "SELECT live_rows, deleted.rows, deleted.checksum FROM segments LEFT JOIN deleted ON segment = key"
            " WHERE key = ?",
            (record.key,),
        )
        live = np.ones(record.rows, dtype=bool)
        if data is not None:
            if not isinstance(data, bytes) or len(data) != -(-record.rows // 8) or zlib.crc32(data, record.key) != kept:
                raise damaged(self.index, "the row of what is deleted of a segment was changed")
            live &= np.unpackbits(np.frombuffer(data, np.uint8), count=record.rows) == 0
        if np.count_nonzero(live) != count:
            raise damaged(self.index, "the row of what is deleted of a segment is not that of its windows")
        return live

    def segments(self) -> list[SegmentRecord]:
        """Return all segments with their files."""
        files, records = self._files(), []
        for *fields, kept in self.rows(f"SELECT {SEGMENT_COLUMNS}, checksum FROM segments ORDER BY key"):  # noqa: S608 - a constant
            if checksum(*fields) != kept:
                raise damaged(self.index, "the row of a segment was changed")
            key, name, rows, tokens, codebook = fields
            records.append(SegmentRecord(key, name, rows, tokens, codebook, tuple(files.get(name, ()))))
        return records

    def codebooks(self) -> list[CodebookRecord]:
        """Return all codebooks with their files, the newest last."""
        files, records = self._files(), []
        for *fields, kept in self.rows(f"SELECT {CODEBOOK_COLUMNS}, checksum FROM codebooks ORDER BY key"):  # noqa: S608 - a constant
            if checksum(*fields) != kept:
                raise damaged(self.index, "the row of a codebook was changed")
            key, name, bits, lists, tokens, error = fields
            records.append(CodebookRecord(key, name, bits, lists, tokens, error, tuple(files.get(name, ()))))
        return records

    def _files(self) -> dict[str, list[StoredFile]]:
        files: dict[str, list[StoredFile]] = {}
        for folder, name, size, sums in self.rows("SELECT folder, name, bytes, checksums FROM files"):
            if not is_file_name(folder, name) or not isinstance(size, int) or not isinstance(sums, bytes):
                raise damaged(self.index, "the row of a file was changed")
            files.setdefault(folder, []).append(StoredFile(name, size, sums))
        return files

    def stream(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query, few at a time in memory."""
        with self._lock, translated(self.index):
            yield from self.connection.execute(sql)
            self._check_frozen()

    def known(self, hashes: Collection[str]) -> set[str]:
        """Return those of the content hashes whose vectors are here."""
        found = self.rows_among("SELECT DISTINCT hash FROM contents WHERE hash != '' AND hash", hashes)
        return {hash for (hash,) in found}

    def _read_meta(self) -> None:
        try:
            row = self.connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        except sqlite3.OperationalError as error:
            if _code(error) == sqlite3.SQLITE_ERROR:
                raise IndexFormatError(
                    f"{self.index / FILE} is not the catalogue of an index: name another folder"
                ) from None
            raise
        found = str(row[0]) if row else "none"
        if found != str(FORMAT):
            newer = found.isdecimal() and int(found) > FORMAT
            advice = "upgrade mbretrieve" if newer else "index again"
            raise IndexFormatError(
                f"{self.index} has index format {found}; this version reads format {FORMAT}: {advice}"
            )
        rows = self.connection.execute("SELECT name, value, checksum FROM meta").fetchall()
        if any(checksum(name, value) != kept for name, value, kept in rows):
            raise unreadable(self.index, "its description was changed")
        self._meta = {name: json.loads(value) for name, value, _ in rows}
        if missing := {"kind", "dim", "bits", "identity", "generation", "settings"} - set(self._meta):
            raise unreadable(self.index, f"it does not say its {min(missing)}")
        if self.kind not in LAYOUTS:
            raise IndexFormatError(
                f"{self.index} is a {self.kind} index, which this version cannot read: upgrade mbretrieve"
            )

    def _check_frozen(self) -> None:
        if self._frozen is not None and _stamp(self.index) != self._frozen:
            raise IndexBusyError(f"{self.index} was written while it was read from a read-only folder: open it again")


def _existing(index: Path) -> Path:
    file = index / FILE
    if not file.is_file():
        raise IndexFormatError(f"{index} is not an index: it has no {FILE}; make one with `mbretrieve index`")
    return file


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    uri = f"{file.resolve().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    return connection


def _stamp(index: Path) -> tuple[int, int, int]:
    stat = (index / FILE).stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
