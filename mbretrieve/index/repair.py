"""Mending a damaged index: files are restored by their parity, what follows from the rest is made again, what is lost
is dropped and named.

The texts, the documents' rows and the vectors in the segments are what nothing else holds; words, filters, counts and
inverted lists follow from them. What is done to the catalogue is one transaction: killed, it can be run again.
"""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError, MbretrieveError
from mbretrieve.index.catalogue import (
    CODEBOOK_COLUMNS,
    CONTENT_COLUMNS,
    FILE,
    SEGMENT_COLUMNS,
    Catalogue,
    checksum,
    file_checksum,
    is_file_name,
    put_meta,
    translated,
)
from mbretrieve.index.files import MappedFolder, StoredFile, describe, restore
from mbretrieve.index.filters import stored_value
from mbretrieve.index.inverting import Inverter
from mbretrieve.index.lock import writer_lock
from mbretrieve.index.salvage import Salvaged, rewrite, salvage
from mbretrieve.index.segments import CODEBOOKS, SEGMENTS, open_codebook
from mbretrieve.index.vectors import VectorStore
from mbretrieve.index.verify import FILES, stored_file, wrong_filters, wrong_words
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
        self._drop_changed("codebooks", CODEBOOK_COLUMNS)
        self._drop_changed("segments", SEGMENT_COLUMNS)
        for row in self._execute("SELECT folder, name FROM files").fetchall():
            if not is_file_name(*row):
                self._execute("DELETE FROM files WHERE folder = ? AND name = ?", row)
        self._files("codebooks", CODEBOOKS)
        self._files("segments", SEGMENTS)
        self._execute("DELETE FROM files WHERE typeof(bytes) != 'integer' OR typeof(checksums) != 'blob'")
        codebooks = dict(self._codebooks())
        segments = list(self._segments(codebooks))
        self._drop_contents(segments)
        self._drop_documents()
        self._sources()
        contents = np.array([key for (key,) in self._execute("SELECT key FROM contents")], dtype=np.int64)
        recounted = [self._settle(one, one.sound & np.isin(one.windows[:, 0], contents)) for one in segments]
        self._strays(recounted=any(recounted))
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

    def _files(self, table: str, parent: str) -> None:
        """Restore what is damaged of the files of a table's folders: a file by its row, or its row by the file."""
        named = f"SELECT folder, files.name FROM files JOIN {table} ON folder = {table}.name"  # noqa: S608 - a constant
        for folder, name in self._execute(named).fetchall():
            # One by one: the parity of all of them need not fit into memory.
            [row] = self._execute(f"{FILES} WHERE folder = ? AND name = ?", (folder, name)).fetchall()
            path, shown = self._index / parent / folder, f"{parent}/{folder}/{name}"
            if (file := stored_file(row)) is not None:
                with contextlib.suppress(IndexFormatError):  # of as many checksums as no file of its size has
                    if not MappedFolder(path, [file]).is_sound(name) and restore(path, file):
                        self._done.append(f"{shown} was restored, and is as it was")
            elif (path / name).is_file():
                found = describe(path / name)
                _, _, *facts, kept = row
                if file_checksum(folder, found) == kept or facts == [found.size, found.checksums, found.parity]:
                    self._put_file(folder, found)
                    self._done.append(f"{FILE}: what it says of {shown} was changed, and is made again from the file")

    def _put_file(self, folder: str, file: StoredFile) -> None:
        self._execute(
            "UPDATE files SET bytes = ?, checksums = ?, parity = ?, checksum = ? WHERE folder = ? AND name = ?",
            (file.size, file.checksums, file.parity, file_checksum(folder, file), folder, file.name),
        )

    def _codebooks(self) -> Iterator[tuple[int, Any]]:
        for record in self._catalogue.codebooks():
            try:
                yield record.key, open_codebook(self._index, record, self._catalogue.dim)
            except (MbretrieveError, FileNotFoundError):
                self._execute("DELETE FROM codebooks WHERE key = ?", (record.key,))
                self._done.append(f"codebooks/{record.name} is lost, and with it the vectors that it packed")

    def _segments(self, codebooks: dict[int, Any]) -> Iterator[Salvaged]:
        layout, dim = self._catalogue.layout, self._catalogue.dim
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

    def _drop_contents(self, segments: list[Salvaged]) -> None:
        """Drop the contents that were changed, or any of whose windows is lost."""
        held: Counter[int] = Counter()
        for one in segments:
            contents, counts = np.unique(one.windows[one.sound, 0], return_counts=True)
            held.update(dict(zip(contents.tolist(), counts.tolist(), strict=True)))
        for key, *fields, kept in self._execute(
            f"SELECT key, {CONTENT_COLUMNS}, checksum FROM contents"  # noqa: S608 - a constant
        ).fetchall():
            if checksum(*fields) != kept or held[key] != fields[1]:
                self._execute("DELETE FROM contents WHERE key = ?", (key,))

    def _drop_documents(self) -> None:
        """Drop what no longer has all its parts; the sources of what is dropped are to be read again."""
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

    def _settle(self, one: Salvaged, live: NDArray[np.bool_]) -> bool:
        """Copy the rows of a segment that live into a new one, if any file of it is not as it was; or else see to what
        the catalogue says of them, and return whether it was wrong."""
        key, name = one.record.key, one.record.name
        if one.damaged:
            for written in rewrite(self._index, one, np.flatnonzero(live), self._store.memory):
                self._store.replace(written, one.record.codebook)
            self._store.retire([key])
            files = ", ".join(f"segments/{name}/{file}" for file in one.damaged)
            count = int(np.count_nonzero(live))
            self._done.append(f"{files}: {count:,} of {len(live):,} windows were copied out of this segment")
            return False
        counts = int(np.count_nonzero(live)), int(np.diff(one.offsets)[live].sum())
        changed = self._execute(
            "UPDATE segments SET live_rows = ?, live_tokens = ? WHERE key = ? AND (live_rows, live_tokens) != (?, ?)",
            (*counts, key, *counts),
        ).rowcount
        with contextlib.suppress(IndexFormatError):
            if np.array_equal(self._catalogue.live(one.record), live):
                return bool(changed)
        self._store.mark(key, live)
        return True

    def _strays(self, *, recounted: bool) -> None:
        """Drop what is said of segments that are not there."""
        named = "SELECT name FROM segments UNION SELECT name FROM codebooks"
        strays = self._execute(f"DELETE FROM files WHERE folder NOT IN ({named})").rowcount  # noqa: S608 - a constant
        strays += self._execute("DELETE FROM deleted WHERE segment NOT IN (SELECT key FROM segments)").rowcount
        if (recounted or strays) and not self._done:
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


def _some(ids: list[str]) -> str:
    more = len(ids) - NAMED
    return ", ".join(map(repr, ids[:NAMED])) + (f" and {more:,} more" if more > 0 else "")
