"""Where the vectors are: the writer's segments, written, packed and merged within its transaction."""

import zlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index import plan
from mbretrieve.index.arrays import to_array
from mbretrieve.index.catalogue import FOLDERS, Catalogue, checksum, file_checksum
from mbretrieve.index.files import StoredFile, sweep
from mbretrieve.index.merging import SegmentSize, segments_of_one_sort, segments_to_merge
from mbretrieve.index.records import Stored
from mbretrieve.index.segments import (
    PackedSegment,
    RawSegment,
    Rows,
    SegmentRecord,
    SegmentWriter,
    Written,
    open_codebook,
    open_segment,
    store_codebook,
)
from mbretrieve.index.windows import Places, Window
from mbretrieve.types import Progress

if TYPE_CHECKING:
    from mbretrieve.index.codebooks import Codebook
    from mbretrieve.index.packing import Source

PACK_TOKENS = 1 << 20  # written as they came before they are packed, though nothing was committed
COPIED_ROWS = 1 << 12  # windows that are copied before it is said
MOST_CODEBOOKS = 4  # each costs a search a look at its centroids: `compact` makes one of many


class VectorStore:
    """The segments and codebooks of an index, for its writer: all it does is part of the catalogue's transaction."""

    def __init__(self, catalogue: Catalogue, memory: int) -> None:
        self._catalogue, self.memory = catalogue, memory
        self._index, self._database = catalogue.index, catalogue.connection
        self._layout, self._dim = catalogue.layout, catalogue.dim
        self._segment: SegmentWriter | None = None
        self._segment_key = 0  # of the segment being written; 0 is nobody's
        self._codebooks: dict[int, Codebook] = {}
        self._usual_loss: dict[int, float] = {}  # by codebook, where it is more than the one it was stored with
        self._progress: Progress | None = None
        self.expected = 0

    def sweep(self) -> None:
        """Remove the folders that the catalogue does not name."""
        named = [record.name for record in self._catalogue.segments()]
        named += [record.name for record in self._catalogue.codebooks()]
        for folder in FOLDERS:
            sweep(self._index / folder, named)

    def undo(self) -> None:
        """Let go of the segment being written."""
        if self._segment is not None:
            self._segment.close()
            self._segment, self._segment_key = None, 0

    def put(self, content: int, windows: Sequence[Stored], spans: Sequence[tuple[int, int]]) -> None:
        """Put the vectors of a content's windows into the open segment, and the characters that each spans."""
        segment = self._open_segment()
        for number, (stored, span) in enumerate(zip(windows, spans, strict=True)):
            segment.append(stored, Window(content, number, *span))
        self._count_live(self._segment_key, len(windows), sum(len(stored.vectors) for stored in windows))
        if self._catalogue.bits is not None and segment.tokens >= PACK_TOKENS and segment.tokens >= self._wait():
            self._pack_raw()

    def drop(self, contents: Collection[int]) -> None:
        """Mark the windows of contents as deleted; their vectors stay until their segment is rewritten."""
        if not contents:
            return
        wanted = to_array(contents)
        if (segment := self._segment) is not None:
            rows = Places(segment.windows[:, 0]).rows(wanted)
            segment.delete(rows)
            self._count_live(self._segment_key, -len(rows), -int(np.diff(segment.offsets)[rows].sum()))
        for record in self._catalogue.segments():
            if record.key == self._segment_key:
                continue
            found = Rows(self._index, record, self._layout)
            rows = found.windows.places.rows(wanted)
            live = self._catalogue.live(record)
            rows = rows[live[rows]]
            if len(rows):
                live[rows] = False
                self.mark(record.key, live)
                self._count_live(record.key, -len(rows), -int(found.lengths(rows).sum()))

    def mark(self, segment: int, live: NDArray[np.bool_]) -> None:
        """Say which rows of a segment live; what is deleted has a row in the catalogue if there is any."""
        if live.all():
            self._database.execute("DELETE FROM deleted WHERE segment = ?", (segment,))
            return
        data = np.packbits(~live).tobytes()
        self._database.execute("REPLACE INTO deleted VALUES (?, ?, ?)", (segment, data, zlib.crc32(data, segment)))

    def _count_live(self, segment: int, rows: int, tokens: int) -> None:
        self._database.execute(
            "UPDATE segments SET live_rows = live_rows + ?, live_tokens = live_tokens + ? WHERE key = ?",
            (rows, tokens, segment),
        )

    def _open_segment(self) -> SegmentWriter:
        if self._segment is None:
            self._segment = SegmentWriter(self._index, self._layout, self._dim)
            self._segment_key = self._put_segment(self._segment.name)
        return self._segment

    def _put_segment(self, name: str) -> int:
        """Make a segment's row; ``_complete_segment`` says what is in it."""
        cursor = self._database.execute(
            "INSERT INTO segments (name, rows, tokens, codebook, checksum, live_rows, live_tokens)"
            " VALUES (?, 0, 0, NULL, '', 0, 0)",
            (name,),
        )
        key = int(cursor.lastrowid or 0)
        self._complete_segment(key, name, 0, 0, None, [])
        return key

    def _complete_segment(
        self, key: int, name: str, rows: int, tokens: int, codebook: int | None, files: Sequence[StoredFile]
    ) -> None:
        self._put_files(name, files)
        hashed = checksum(key, name, rows, tokens, codebook)
        self._database.execute(
            "UPDATE segments SET rows = ?, tokens = ?, codebook = ?, checksum = ? WHERE key = ?",
            (rows, tokens, codebook, hashed, key),
        )

    def _put_files(self, folder: str, files: Sequence[StoredFile]) -> None:
        self._database.executemany(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
            [
                (folder, file.name, file.size, file.checksums, file_checksum(folder, file), file.parity)
                for file in files
            ],
        )

    def finish(self) -> None:
        """Make the segment being written durable, and drop from the catalogue what nothing names any more."""
        self._finish_segment()
        execute = self._database.execute
        execute("DELETE FROM segments WHERE live_rows = 0")
        execute("DELETE FROM deleted WHERE segment NOT IN (SELECT key FROM segments)")
        execute(
            "DELETE FROM codebooks WHERE key NOT IN (SELECT codebook FROM segments WHERE codebook IS NOT NULL)"
            " AND key != (SELECT max(key) FROM codebooks)"
        )
        execute("DELETE FROM files WHERE folder NOT IN (SELECT name FROM segments UNION SELECT name FROM codebooks)")

    def _finish_segment(self) -> None:
        if self._segment is None:
            return
        segment, key = self._segment, self._segment_key
        self._begin("finishing", None)  # of dense vectors the graph or the lists
        files = segment.finish(self.memory)
        self._complete_segment(key, segment.name, segment.rows, segment.tokens, None, files)
        self.mark(key, segment.live)
        self._segment, self._segment_key = None, 0

    def tidy(self) -> None:
        """Pack what came as vectors if it is much, and merge segments that are many and small, or mostly dead."""
        if self._catalogue.bits is not None and self._raw_tokens() > self._wait():
            self._pack_raw()
        for keys in segments_to_merge(self._sizes()):
            self._merge(keys)

    def compact(self, *, retrain: bool, progress: Progress | None = None) -> None:
        """Bring all live vectors into as few segments as can be; ``retrain``: under one codebook trained for them."""
        self._progress = progress
        packs = self._catalogue.bits is not None
        if packs and self._raw_tokens() > (0 if self._catalogue.codebooks() else plan.EXACT_TOKENS):
            self._pack_raw(patient=False)
        if packs and retrain and self._catalogue.codebooks() and self._sizes():
            self._retrain()
        for keys in segments_of_one_sort(self._sizes()):
            self._merge(keys)

    def _sizes(self) -> list[SegmentSize]:
        """Return the sizes of all segments but the one being written."""
        return [
            SegmentSize(*row)
            for row in self._database.execute(
                "SELECT key, tokens, live_tokens, codebook FROM segments WHERE key != ? AND live_rows > 0",
                (self._segment_key,),
            )
        ]

    def _wait(self) -> int:
        """Return how many tokens may be there as they came before they are packed."""
        return plan.RAW_TOKENS if self._catalogue.codebooks() else plan.wait(self.expected)

    def _raw_tokens(self) -> int:
        [(tokens,)] = self._catalogue.rows("SELECT coalesce(sum(live_tokens), 0) FROM segments WHERE codebook IS NULL")
        return int(tokens)

    def _all_tokens(self) -> int:
        """Return how many tokens the index has, or is expected to have soon."""
        [(tokens,)] = self._catalogue.rows("SELECT coalesce(sum(live_tokens), 0) FROM segments")
        return max(int(tokens), self.expected)

    def _merge(self, keys: Collection[int]) -> None:
        """Copy the live windows of some segments, raw or of one codebook, into one."""
        records = [record for record in self._catalogue.segments() if record.key in keys]
        segments = [self._map(record) for record in records]
        living = [np.flatnonzero(self._catalogue.live(record)) for record in records]
        self._begin("merging", sum(map(len, living)))
        packed = [segment for segment in segments if isinstance(segment, PackedSegment)]
        if packed:
            from mbretrieve.index.packing import merge

            codebook = packed[0].record.codebook
            written = merge(self._index, self._layout, packed[0].codebook, packed, living, self.memory, self._progress)
            self.replace(written, codebook)
        else:
            for segment, rows in zip(segments, living, strict=True):
                assert isinstance(segment, RawSegment)
                segment.verify()  # or a changed byte would get a good checksum
                into = self._open_segment()
                for first in range(0, len(rows), COPIED_ROWS):
                    some = rows[first : first + COPIED_ROWS]
                    for row, window in zip(some.tolist(), segment.windows.table[some].tolist(), strict=True):
                        into.append(segment[row], Window(*window))
                    if self._progress is not None:
                        self._progress.advance(len(some), tokens=int(segment.lengths(some).sum()))
                self._count_live(self._segment_key, len(rows), int(segment.lengths(rows).sum()))
        self.retire(keys)

    def _pack_raw(self, *, patient: bool = True) -> None:
        """Pack all raw segments, the one being written included, into one; unless they should wait for others."""
        from mbretrieve.index.packing import Source, pack

        sources, keys = [], []
        for record in self._catalogue.segments():
            if record.codebook is not None:
                continue
            segment: SegmentWriter | RawSegment | PackedSegment
            if record.key == self._segment_key:
                assert self._segment is not None
                segment, table, live = self._segment, self._segment.windows, self._segment.live
            else:
                segment = self._map(record)
                segment.verify()
                table, live = segment.windows.table, self._catalogue.live(record)
            assert not isinstance(segment, PackedSegment)
            if live.any():
                living = np.flatnonzero(live)
                sources.append(Source(segment.vectors, segment.offsets, table, living, segment.pooled))
            keys.append(record.key)
        if sources:
            chosen = self._codebook_for(sources, patient=patient)
            if chosen is None:
                return
            key, codebook = chosen
            self._begin("packing", sum(len(source.rows) for source in sources))
            self.replace(pack(self._index, self._layout, codebook, sources, self.memory, self._progress), key)
        self.retire(keys)
        if self._segment is not None:
            self._database.execute("DELETE FROM segments WHERE key = ?", (self._segment_key,))
            self.undo()

    def _retrain(self) -> None:
        """Pack every live window again, under one codebook trained for all of them."""
        from mbretrieve.index.packing import Decoded, Source, pack, runs

        living = {size.key for size in self._sizes()}
        sources = []
        for record in self._catalogue.segments():
            if record.key in living:
                segment = self._map(record)
                segment.verify()
                vectors = Decoded(segment) if isinstance(segment, PackedSegment) else segment.vectors
                rows = np.flatnonzero(self._catalogue.live(record))
                sources.append(Source(vectors, segment.offsets, segment.windows.table, rows, segment.pooled))
        codebook = self._train(sources)
        key = self._put_codebook(codebook)
        self._begin("packing again", sum(len(source.rows) for source in sources))
        for source in sources:
            for rows in runs(source.offsets, source.windows, source.rows, PACK_TOKENS):
                part = source._replace(rows=rows)
                self.replace(pack(self._index, self._layout, codebook, [part], self.memory, self._progress), key)
        self.retire(living)

    def replace(self, written: Written, codebook: int | None) -> None:
        """Put a finished segment, all of whose rows live, into the catalogue."""
        key = self._put_segment(written.name)
        self._complete_segment(key, written.name, written.rows, written.tokens, codebook, written.files)
        self._count_live(key, written.rows, written.tokens)

    def retire(self, keys: Collection[int]) -> None:
        """Take segments out of the catalogue; their folders stay until the commit."""
        self._database.executemany("DELETE FROM segments WHERE key = ?", [(key,) for key in keys])

    def _map(self, record: SegmentRecord) -> RawSegment | PackedSegment:
        if record.codebook is not None and record.codebook not in self._codebooks:
            for book in self._catalogue.codebooks():
                if book.key == record.codebook:
                    self._codebooks[book.key] = open_codebook(self._index, book, self._dim)
        return open_segment(self._index, record, self._layout, self._dim, self._codebooks)

    def _codebook_for(self, sources: Sequence["Source"], *, patient: bool) -> "tuple[int, Codebook] | None":
        """Return the codebook for new vectors: the newest if it suits them, or one trained for them if it does better.

        None if they are unlike the old ones, but too few to be trained on: who is patient waits for more.
        """
        from mbretrieve.index.packing import hold_out, loss

        if records := self._catalogue.codebooks():
            newest = records[-1]
            if newest.key not in self._codebooks:
                self._codebooks[newest.key] = open_codebook(self._index, newest, self._dim)
            codebook = self._codebooks[newest.key]
            tokens = sum(source.tokens for source in sources)
            few = tokens < plan.DRIFT_TOKENS
            if len(records) >= MOST_CODEBOOKS or (few and not patient):
                return newest.key, codebook
            lost = loss(codebook, sources)
            if lost <= plan.DRIFT * max(newest.error, self._usual_loss.get(newest.key, 0)):
                return newest.key, codebook
            if few:
                return None
            trained = self._train(sources)
            # Of the same vectors, which neither has seen: files differ in what any codebook loses of them.
            if loss(codebook, hold_out(sources)[1]) <= plan.DRIFT * trained.error:
                # Harder to compress, not of another kind: a codebook of their own would lose nearly as much.
                self._usual_loss[newest.key] = lost
                return newest.key, codebook
        else:
            trained = self._train(sources)
        return self._put_codebook(trained), trained

    def _train(self, sources: Sequence["Source"]) -> "Codebook":
        """Train a codebook for vectors like the sources'."""
        from mbretrieve.index.packing import train

        bits = self._catalogue.bits
        assert bits is not None
        self._begin("training a codebook", None)
        return train(sources, bits, self._all_tokens(), self.memory)

    def _begin(self, what: str, windows: int | None) -> None:
        """Say what is done now, to how many windows."""
        if self._progress is not None:
            self._progress.start(what, windows)

    def _put_codebook(self, codebook: "Codebook") -> int:
        name, files = store_codebook(self._index, codebook)
        fields = (name, codebook.bits, len(codebook.centroids), self._all_tokens(), codebook.error)
        cursor = self._database.execute(
            "INSERT INTO codebooks (name, bits, lists, tokens, error, checksum) VALUES (?, ?, ?, ?, ?, '')", fields
        )
        key = int(cursor.lastrowid or 0)
        self._database.execute("UPDATE codebooks SET checksum = ? WHERE key = ?", (checksum(key, *fields), key))
        self._put_files(name, files)
        self._codebooks[key] = codebook
        return key
