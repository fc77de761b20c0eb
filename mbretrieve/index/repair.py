"""Mending a damaged index: what follows from the rest is made again, what is lost is dropped and named.

The texts, the documents' rows and the vectors in the segments are what nothing else holds; words, filters, counts and
inverted lists follow from them. All that is done is one transaction: killed, it can be run again.
"""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError, MbretrieveError
from mbretrieve.index.catalogue import (
    CODEBOOK_COLUMNS,
    FILE,
    SEGMENT_COLUMNS,
    WINDOW_COLUMNS,
    Catalogue,
    Integers,
    checksum,
    put_meta,
    translated,
    window_checksums,
)
from mbretrieve.index.filters import stored_value
from mbretrieve.index.inverting import Inverter
from mbretrieve.index.lock import writer_lock
from mbretrieve.index.records import LAYOUTS
from mbretrieve.index.salvage import Salvaged, rewrite, salvage
from mbretrieve.index.segments import open_codebook
from mbretrieve.index.vectors import VectorStore
from mbretrieve.index.verify import wrong_filters, wrong_words
from mbretrieve.index.words import content_words

NAMED = 20  # ids in a line

Check = Callable[[Catalogue], Iterator[str]]


def repair(index: Path, memory: int) -> list[str]:
    """Mend an index, working in about ``memory`` bytes; returns what was done and what is lost (empty: nothing was
    wrong).

    Raises: IndexFormatError if the catalogue itself cannot be read any more; IndexBusyError.
    """
    with writer_lock(index), contextlib.closing(Catalogue.open_to_write(index)) as catalogue, translated(index):
        # A value that is no text any more is to be read all the same: its row is then known by its checksum.
        catalogue.connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        catalogue.connection.execute("BEGIN IMMEDIATE")
        store = VectorStore(catalogue, memory)
        try:
            done = _Repair(catalogue, store).run()
            if done:
                store.finish()
                put_meta(catalogue.connection, "generation", catalogue.newest_generation() + 1)
                catalogue.connection.execute("COMMIT")
                store.sweep()
        finally:
            store.undo()
            with contextlib.suppress(sqlite3.Error):  # what cannot roll back does so when it is opened next
                if catalogue.connection.in_transaction:
                    catalogue.connection.execute("ROLLBACK")
        return done


class _Repair:
    """One repair, within the catalogue's transaction. From one step to the next less may be left, never more."""

    def __init__(self, catalogue: Catalogue, store: VectorStore) -> None:
        self._catalogue, self._store, self._index = catalogue, store, catalogue.index
        self._execute = catalogue.connection.execute
        self._done: list[str] = []
        self._dropped = False

    def run(self) -> list[str]:
        """Do all there is to do; returns a line for each thing done."""
        self._database()
        self._execute("DELETE FROM files WHERE typeof(bytes) != 'integer' OR typeof(checksums) != 'blob'")
        codebooks = dict(self._codebooks())
        segments = {one.record.key: one for one in self._segments(codebooks)}
        self._drop_windows(segments)
        self._drop_documents()
        self._sources()
        for one in segments.values():
            self._write_again(one)
        self._counts()
        self._follow(wrong_filters, "the filters", self._filters)
        self._follow(wrong_words, "the words", self._words)
        return self._done

    def _database(self) -> None:
        if self._sound():
            return
        self._execute("REINDEX")
        if not self._sound():
            raise IndexFormatError(
                f"{self._index / FILE} is damaged beyond repair: restore it from a copy, or index again"
            )
        self._done.append(f"{FILE}: its indexes were made again")

    def _sound(self) -> bool:
        return [line for (line,) in self._execute("PRAGMA integrity_check(1)")] == ["ok"]

    def _codebooks(self) -> Iterator[tuple[int, Any]]:
        self._drop_changed("codebooks", CODEBOOK_COLUMNS)
        for record in self._catalogue.codebooks():
            try:
                yield record.key, open_codebook(self._index, record, self._catalogue.dim)
            except (MbretrieveError, FileNotFoundError):
                self._execute("DELETE FROM codebooks WHERE key = ?", (record.key,))
                self._done.append(f"codebooks/{record.name} is lost, and with it the vectors that it packed")

    def _segments(self, codebooks: dict[int, Any]) -> Iterator[Salvaged]:
        self._drop_changed("segments", SEGMENT_COLUMNS)
        layout, dim = LAYOUTS[self._catalogue.kind], self._catalogue.dim
        for record in self._catalogue.segments():
            found = salvage(self._index, record, layout, dim, codebooks)
            if found is None:
                self._execute("DELETE FROM segments WHERE key = ?", (record.key,))
                self._done.append(f"segments/{record.name} is lost")
            else:
                yield found

    def _drop_changed(self, table: str, columns: str) -> None:
        """Drop the rows of a table with a key that are not what was written."""
        for key, *fields, kept in self._execute(f"SELECT {columns}, checksum FROM {table}").fetchall():  # noqa: S608
            if checksum(key, *fields) != kept:
                self._execute(f"DELETE FROM {table} WHERE key = ?", (key,))  # noqa: S608 - a constant
                self._done.append(f"{FILE}: a row of {table} was changed, and is dropped")

    def _drop_windows(self, segments: dict[int, Salvaged]) -> None:
        """Drop the contents any of whose windows is lost."""
        rows = self._execute(f"SELECT {WINDOW_COLUMNS}, checksum FROM windows").fetchall()  # noqa: S608 - a constant
        numbers = np.array([_integers(row) for row in rows], dtype=np.int64).reshape(-1, 8)
        lost = window_checksums(numbers[:, :7]) != numbers[:, 7]
        for key in np.unique(numbers[:, 2]):
            here = np.flatnonzero((numbers[:, 2] == key) & ~lost)
            one = segments.get(int(key))
            lost[here] = True if one is None else ~one.holds(numbers[here, 3], numbers[here, 4])
        lost |= ~_complete(numbers)
        for content in dict.fromkeys(rows[i][0] for i in np.flatnonzero(lost)):
            self._execute("DELETE FROM windows WHERE content IS ?", (content,))

    def _drop_documents(self) -> None:
        """Drop what no longer has all its parts; the sources of what is dropped are to be read again."""
        for key, *fields, kept in self._execute("SELECT key, hash, context, text, checksum FROM contents").fetchall():
            if checksum(*fields) != kept:
                self._execute("DELETE FROM contents WHERE key = ?", (key,))
        self._execute("DELETE FROM contents WHERE key NOT IN (SELECT content FROM windows)")
        contents = {key for (key,) in self._execute("SELECT key FROM contents")}
        lost: list[str] = []
        for key, *fields, kept in self._execute(
            "SELECT key, id, content, source, metadata, checksum FROM documents"
        ).fetchall():
            id, content, source, _ = fields
            changed = checksum(*fields) != kept
            if not changed and content in contents:
                continue
            self._execute("DELETE FROM documents WHERE key = ?", (key,))
            # Of a row that was changed the source is not sure: any of them may lack a document.
            self._forget(None if changed else source)
            lost.append(str(id))
        if lost:
            self._done.append(
                f"{len(lost):,} documents are lost: {_some(lost)}; `mbretrieve index` reads their files again"
            )
        if strays := self._execute("DELETE FROM contents WHERE key NOT IN (SELECT content FROM documents)").rowcount:
            if not lost:  # the row of a document is gone, nobody knows whose
                self._forget(None)
            self._done.append(f"{FILE}: {strays:,} texts of no document are dropped")
        self._execute("DELETE FROM windows WHERE content NOT IN (SELECT key FROM contents)")

    def _forget(self, source: str | None) -> None:
        """Forget how far a source (None: every source) was read, not that it was."""
        names = [name for (name,) in self._execute("SELECT name FROM sources") if source in (None, name)]
        for name in names:
            with contextlib.suppress(UnicodeEncodeError):  # a changed name, which _sources drops
                self._execute(
                    "UPDATE sources SET state = '{}', checksum = ? WHERE name = ?", (checksum(name, "{}"), name)
                )

    def _sources(self) -> None:
        rows = self._execute("SELECT name, state, checksum FROM sources").fetchall()
        sound = [row for row in rows if checksum(*row[:2]) == row[2]]
        if len(sound) == len(rows):
            return
        # Their names may be others: every source that a document names and that is not there is one of them.
        self._execute("DELETE FROM sources")
        names = {name for (name,) in self._execute("SELECT DISTINCT source FROM documents WHERE source IS NOT NULL")}
        sound += [(name, "{}", checksum(name, "{}")) for name in names - {row[0] for row in sound}]
        self._catalogue.connection.executemany("INSERT INTO sources VALUES (?, ?, ?)", sound)
        self._done.append(f"{FILE}: the state of {len(rows) - len(sound) + len(names):,} sources is forgotten")

    def _write_again(self, one: Salvaged) -> None:
        """Copy what is left of a segment into a new one, if any file of it is not as it was."""
        if not one.damaged:
            return
        windows = self._catalogue.windows(one.record.key)
        for first, last, written in rewrite(self._index, one, windows[:, 3], self._store.memory):
            self._store.replace([windows[first:last]], written, one.record.codebook)
        self._store.retire([one.record.key])
        files = ", ".join(f"segments/{one.record.name}/{name}" for name in one.damaged)
        self._done.append(f"{files}: {len(windows):,} of {one.record.rows:,} windows were copied out of this segment")

    def _counts(self) -> None:
        changed = self._execute(
            "UPDATE segments SET live_rows = counted.rows, live_tokens = counted.tokens FROM"
            " (SELECT key AS of, count(content) AS rows, coalesce(sum(windows.tokens), 0) AS tokens FROM segments"
            "  LEFT JOIN windows ON segment = key GROUP BY key) AS counted"
            " WHERE key = of AND (live_rows, live_tokens) != (counted.rows, counted.tokens)"
        ).rowcount
        named = "SELECT name FROM segments UNION SELECT name FROM codebooks"
        strays = self._execute(f"DELETE FROM files WHERE folder NOT IN ({named})").rowcount  # noqa: S608 - a constant
        if (changed or strays) and not self._done:
            self._done.append(f"{FILE}: what it counts was counted again")

    def _follow(self, check: Check, what: str, make: Callable[[], None]) -> None:
        """Make again what follows from the documents, if it is not what follows from them."""
        try:
            wrong = any(True for _ in check(self._catalogue))
        except (MbretrieveError, UnicodeError):
            wrong = True
        if wrong:
            make()
            self._done.append(f"{FILE}: {what} were made again from the documents")

    def _filters(self) -> None:
        self._execute("DELETE FROM metadata")
        for key, metadata in self._catalogue.connection.execute("SELECT key, metadata FROM documents").fetchall():
            self._catalogue.connection.executemany(
                "INSERT INTO metadata VALUES (?, ?, ?)",
                [(name, stored_value(value), key) for name, value in json.loads(metadata).items()],
            )

    def _words(self) -> None:
        for table in ("runs", "postings", "lengths"):
            self._execute(f"DELETE FROM {table}")  # noqa: S608 - a constant
        inverter = Inverter(self._index, self._catalogue.connection)
        for key, context, text in self._catalogue.stream("SELECT key, context, text FROM contents ORDER BY key"):
            inverter.add(key, content_words(context, text))
        inverter.flush()


def _integers(row: Iterable[Any]) -> list[int]:
    """Return a row's numbers; what is none any more as a number that its checksum will not fit."""
    return [value if isinstance(value, int) else -1 for value in row]


def _complete(numbers: Integers) -> NDArray[np.bool_]:
    """Say which windows (W, 8) are in contents that have every window from 0 to their last."""
    contents, of, counts = np.unique(numbers[:, 0], return_inverse=True, return_counts=True)
    last = np.full(len(contents), -1)
    np.maximum.at(last, of, numbers[:, 1])
    complete: NDArray[np.bool_] = (last + 1 == counts)[of]
    return complete


def _some(ids: list[str]) -> str:
    more = len(ids) - NAMED
    return ", ".join(map(repr, ids[:NAMED])) + (f" and {more:,} more" if more > 0 else "")
