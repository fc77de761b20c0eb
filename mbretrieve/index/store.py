"""Writing: the one writer's transaction over the catalogue and the segment that goes with it."""

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mbretrieve.errors import DataError, IndexBusyError
from mbretrieve.index.catalogue import (
    BUSY_SECONDS,
    CONTENT_COLUMNS,
    Catalogue,
    checksum,
    damaged,
    put_meta,
    span_checksum,
    translated,
)
from mbretrieve.index.filters import stored_value
from mbretrieve.index.inverting import Inverter
from mbretrieve.index.lock import writer_lock
from mbretrieve.index.records import Entry, check_batch, check_document, check_text, stored_vectors, to_json
from mbretrieve.index.vectors import VectorStore
from mbretrieve.index.words import content_words
from mbretrieve.types import Metadata, Progress

MEMORY = 2 << 30
"""Bytes that a writer works in, if it is not told."""


class Writer:
    """The one writer of an index, holding its lock. What it does is there for readers after ``commit``, all or nothing.

    Used in a ``with`` block: leaving it commits, an error in it undoes what was not committed. A batch refused with
    DataError leaves the transaction as it was; after any other error only what was committed before remains.
    """

    def __init__(self, index: Path, memory: int = MEMORY) -> None:
        """Take the lock and sweep up after killed writers; work in about ``memory`` bytes whatever comes.

        Raises: IndexBusyError if another process holds the lock.
        """
        self._index = index
        with ExitStack() as stack:
            stack.enter_context(writer_lock(index))
            self._catalogue = Catalogue.open_to_write(index)
            stack.callback(self._catalogue.close)
            self._vectors = VectorStore(self._catalogue, memory)
            self._vectors.sweep()
            self._held = stack.pop_all()
        self._database = self._catalogue.connection
        self._words = Inverter(index, self._database)
        self._layout, self._dim = self._catalogue.layout, self._catalogue.dim
        self._touched: set[int] = set()  # contents that a document left; dropped at commit if none came back
        self._failed = False
        self._changes = self._database.total_changes  # as it was when the transaction began

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Undo what was not committed and let go of the lock."""
        try:
            self._undo()
        finally:
            self._held.close()

    def add(self, entries: Sequence[Entry]) -> None:
        """Add documents, each in the place of the one with its id if there is one.

        Raises: DataError naming an id: a wrong dim, NaN, no token, spans that do not fit, metadata that cannot be kept,
        an id twice in the batch; none of the batch is then written.
        """
        check_batch([entry.id for entry in entries])
        vectors = [stored_vectors(entry, self._layout, self._dim) for entry in entries]
        with self._changing():
            for entry, windows in zip(entries, vectors, strict=True):
                content = self._put_content(entry)
                self._vectors.put(content, windows, entry.spans)
                self._put_document(entry.id, content, entry.source, entry.metadata)

    def add_same(
        self, id: str, content_hash: str, text: str, context: str, metadata: Metadata, source: str | None = None
    ) -> None:
        """Add a document, or replace the one with its id, with the vectors stored under ``content_hash``.

        Those of documents deleted since the last commit are still there.
        Raises: DataError if no vectors are, ValueError if they are those of another text or context.
        """
        check_document(id, text, context, metadata, source)
        with translated(self._index):
            row = self._database.execute(
                "SELECT key, text, context FROM contents WHERE hash = ? AND hash != ''", (content_hash,)
            ).fetchone()
        if row is None:
            raise DataError(f"document {id!r} names the content {content_hash!r}, which is not here: add its vectors")
        if row[1:] != (text, context):
            raise ValueError(f"the content hash {content_hash!r} of document {id!r} is that of another text or context")
        with self._changing():
            self._put_document(id, row[0], source, metadata)

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents by id; returns how many there were."""
        with self._changing():
            return sum(self._drop_document("id", id) for id in dict.fromkeys(ids))

    def delete_source(self, source: str) -> int:
        """Delete a source with its documents; returns how many those were."""
        check_text("a source's name", source)
        with self._changing():
            keys = self._database.execute("SELECT key FROM documents WHERE source = ?", (source,)).fetchall()
            self._database.execute("DELETE FROM sources WHERE name = ?", (source,))
            return sum(self._drop_document("key", key) for (key,) in keys)

    def set_source(self, source: str, state: dict[str, Any]) -> None:
        """Keep a state (JSON values) for a source."""
        check_text("a source's name", source)
        text = to_json(state)
        with self._changing():
            self._database.execute(
                "INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (source, text, checksum(source, text))
            )

    def set_settings(self, settings: dict[str, Any]) -> None:
        """Keep the caller's settings (JSON values) in the index, in the place of earlier ones."""
        with self._changing():
            put_meta(self._database, "settings", settings)

    def expect(self, tokens: int) -> None:
        """Say about how many tokens the index will have in the end: a codebook trained on the first suits them all."""
        self._vectors.expected = tokens

    def known(self, content_hashes: Collection[str]) -> set[str]:
        """Return those of the content hashes that ``add_same`` can name, uncommitted ones included."""
        return self._catalogue.known(content_hashes)

    def commit(self) -> None:
        """Make everything since the last commit durable and visible, or, if an error is raised, nothing of it."""
        if not self._failed and self._database.total_changes == self._changes:
            self._undo()
            return
        with self._changing():
            self._drop_contents()
            self._vectors.tidy()
            self._words.flush()
            self._commit()

    def compact(self, *, retrain: bool = False, progress: Progress | None = None) -> None:
        """Commit, with all live vectors in as few segments as can be, and give back the disk that nothing needs.

        ``retrain`` trains one codebook for all of them, for vectors that outgrew theirs (sixteen times as many, or of
        another sort); it packs again what was packed, which costs a little of its exactness.
        """
        with self._changing():
            self._drop_contents()
            self._vectors.compact(retrain=retrain, progress=progress)
            self._words.compact()
            self._commit()
        with translated(self._index):
            self._database.execute("VACUUM")
            # Readers of an earlier generation need the log; whoever closes the database last drops it.
            self._database.execute("PRAGMA busy_timeout = 0")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")

    def _commit(self) -> None:
        self._vectors.finish()
        put_meta(self._database, "generation", self._catalogue.newest_generation() + 1)
        self._database.execute("COMMIT")
        self._changes = self._database.total_changes
        # Readers of an earlier generation have dropped folders mapped; one that comes too late opens the newest.
        # A segment whose commit failed stays until the next writer sweeps it: it may have been committed after all.
        self._vectors.sweep()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change the database within its transaction; whatever goes wrong undoes all that was not committed."""
        if self._failed:
            raise IndexBusyError(f"{self._index} was not written: an earlier error undid what was not committed")
        try:
            with translated(self._index):
                if not self._database.in_transaction:
                    self._database.execute("BEGIN IMMEDIATE")
                    self._changes = self._database.total_changes
                yield
        except BaseException:
            self._failed = True
            self._undo()
            raise

    def _undo(self) -> None:
        self._vectors.undo()
        self._words.clear()
        self._touched.clear()
        with contextlib.suppress(sqlite3.Error):  # a database that cannot even roll back does so when it is opened next
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def _put_content(self, entry: Entry) -> int:
        start, stop = min(start for start, _ in entry.spans), max(stop for _, stop in entry.spans)
        check = span_checksum(start, stop)
        fields = (entry.content_hash, len(entry.spans), start, stop, check, entry.context, entry.text)
        cursor = self._database.execute(
            f"INSERT INTO contents ({CONTENT_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
            (*fields, checksum(*fields)),
        )
        content = int(cursor.lastrowid or 0)
        self._words.add(content, content_words(entry.context, entry.text))
        return content

    def _put_document(self, id: str, content: int, source: str | None, metadata: Metadata) -> None:
        self._drop_document("id", id)
        text = to_json(metadata)
        cursor = self._database.execute(
            "INSERT INTO documents (id, content, source, metadata, checksum) VALUES (?, ?, ?, ?, ?)",
            (id, content, source, text, checksum(id, content, source, text)),
        )
        self._database.executemany(
            "INSERT INTO metadata VALUES (?, ?, ?)",
            [(name, stored_value(value), cursor.lastrowid) for name, value in metadata.items()],
        )

    def _drop_document(self, column: Literal["id", "key"], value: str | int) -> bool:
        row = self._database.execute(
            f"SELECT key, id, content, source, metadata, checksum FROM documents WHERE {column} = ?",  # noqa: S608
            (value,),
        ).fetchone()
        if row is None:
            return False
        key, *fields, kept = row
        id, content, _, metadata = fields
        if checksum(*fields) != kept:
            raise damaged(self._index, f"the row of document {id!r} was changed")
        self._database.executemany(
            "DELETE FROM metadata WHERE name = ? AND value = ? AND document = ?",
            [(name, stored_value(value), key) for name, value in json.loads(metadata).items()],
        )
        self._database.execute("DELETE FROM documents WHERE key = ?", (key,))
        self._touched.add(content)
        return True

    def _drop_contents(self) -> None:
        """Drop the contents that no document has any more."""
        execute = self._database.execute
        gone = []
        for content in self._touched:
            if execute("SELECT 1 FROM documents WHERE content = ?", (content,)).fetchone():
                continue
            *fields, kept = execute(
                f"SELECT {CONTENT_COLUMNS}, checksum FROM contents WHERE key = ?",  # noqa: S608 - a constant
                (content,),
            ).fetchone()
            if checksum(*fields) != kept:
                raise damaged(self._index, f"the text of content {content} was changed")
            self._words.remove(content)
            execute("DELETE FROM contents WHERE key = ?", (content,))
            gone.append(content)
        self._vectors.drop(gone)
        self._touched.clear()
