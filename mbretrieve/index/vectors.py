"""Where the vectors are: the writer's segments, written, packed and merged within its transaction."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index import plan
from mbretrieve.index.catalogue import FOLDERS, Catalogue, Integers, checksum, window_checksums
from mbretrieve.index.files import StoredFile, sweep
from mbretrieve.index.merging import SegmentSize, segments_of_one_sort, segments_to_merge
from mbretrieve.index.records import LAYOUTS
from mbretrieve.index.segments import (
    PackedSegment,
    RawSegment,
    SegmentRecord,
    SegmentWriter,
    Written,
    open_codebook,
    open_segment,
    store_codebook,
)

if TYPE_CHECKING:
    from mbretrieve.index.codebooks import Codebook
    from mbretrieve.index.packing import Source

PACK_TOKENS = 1 << 20  # written as they came before they are packed, though nothing was committed
MOST_CODEBOOKS = 4  # each costs a search a look at its centroids: `compact` makes one of many


class VectorStore:
    """The segments and codebooks of an index, for its writer: all it does is part of the catalogue's transaction."""

    def __init__(self, catalogue: Catalogue, memory: int) -> None:
        self._catalogue, self.memory = catalogue, memory
        self._index, self._database = catalogue.index, catalogue.connection
        self._layout, self._dim = LAYOUTS[catalogue.kind], catalogue.dim
        self._segment: SegmentWriter | None = None
        self._segment_key = 0  # of the segment being written; 0 is nobody's
        self._codebooks: dict[int, Codebook] = {}
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

    def drop(self, content: int) -> None:
        """Forget a content's windows; their vectors stay until their segment is rewritten."""
        rows = self._database.execute("SELECT segment, tokens FROM windows WHERE content = ?", (content,)).fetchall()
        for segment, tokens in rows:
            self._count_live(segment, -1, -tokens)
        self._database.execute("DELETE FROM windows WHERE content = ?", (content,))

    def put(self, content: int, window: int, vectors: NDArray[Any], span: tuple[int, int]) -> None:
        """Put a window's vectors into the open segment, and where they are into the catalogue."""
        segment = self._open_segment()
        row = segment.append(vectors)
        place = (content, window, self._segment_key, row, len(vectors), *span)
        hashed = int(window_checksums(np.array([place], dtype=np.int64))[0])
        self._database.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*place, hashed))
        self._count_live(self._segment_key, 1, len(vectors))
        if self._catalogue.bits is not None and segment.tokens >= PACK_TOKENS:
            self._pack_raw()

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
            "INSERT INTO files VALUES (?, ?, ?, ?)", [(folder, file.name, file.size, file.checksums) for file in files]
        )

    def finish(self) -> None:
        """Make the segment being written durable, and drop from the catalogue what nothing names any more."""
        self._finish_segment()
        execute = self._database.execute
        execute("DELETE FROM segments WHERE live_rows = 0")
        execute(
            "DELETE FROM codebooks WHERE key NOT IN (SELECT codebook FROM segments WHERE codebook IS NOT NULL)"
            " AND key != (SELECT max(key) FROM codebooks)"
        )
        execute("DELETE FROM files WHERE folder NOT IN (SELECT name FROM segments UNION SELECT name FROM codebooks)")

    def _finish_segment(self) -> None:
        if self._segment is None:
            return
        segment, key = self._segment, self._segment_key
        files = segment.finish(self.memory)
        self._complete_segment(key, segment.name, segment.rows, segment.tokens, None, files)
        self._segment, self._segment_key = None, 0

    def tidy(self) -> None:
        """Pack what came as vectors if it is much, and merge segments that are many and small, or mostly dead."""
        if self._catalogue.bits is not None:
            wait = plan.RAW_TOKENS if self._catalogue.codebooks() else plan.EXACT_TOKENS
            if self._raw_tokens() > wait:
                self._pack_raw()
        for keys in segments_to_merge(self._sizes()):
            self._merge(keys)

    def compact(self, *, retrain: bool) -> None:
        """Bring all live vectors into as few segments as can be; ``retrain``: under one codebook trained for them."""
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

    def _raw_tokens(self) -> int:
        [(tokens,)] = self._catalogue.rows("SELECT coalesce(sum(live_tokens), 0) FROM segments WHERE codebook IS NULL")
        return int(tokens)

    def _all_tokens(self) -> int:
        """Return how many tokens the index has, or is expected to have soon."""
        [(tokens,)] = self._catalogue.rows("SELECT coalesce(sum(live_tokens), 0) FROM segments")
        return max(int(tokens), self.expected)

    def _merge(self, keys: Collection[int]) -> None:
        """Copy the live windows of some segments, raw or of one codebook, into one."""
        segments = [self._map(record) for record in self._catalogue.segments() if record.key in keys]
        windows = [self._catalogue.windows(segment.record.key) for segment in segments]
        packed = [segment for segment in segments if isinstance(segment, PackedSegment)]
        if packed:
            from mbretrieve.index.packing import merge

            codebook = packed[0].record.codebook
            rows = [some[:, 3] for some in windows]
            self.replace(windows, merge(self._index, packed[0].codebook, packed, rows, self.memory), codebook)
        else:
            for segment, some in zip(segments, windows, strict=True):
                assert isinstance(segment, RawSegment)
                segment.verify()  # or a changed byte would get a good checksum
                into = self._open_segment()
                new = [into.append(segment.vectors[slice(*segment.offsets[row : row + 2])]) for row in some[:, 3]]
                self._move(some, self._segment_key, new)
        self.retire(keys)

    def _pack_raw(self, *, patient: bool = True) -> None:
        """Pack all raw segments, the one being written included, into one; unless they should wait for others."""
        from mbretrieve.index.packing import Source, pack

        sources, windows, keys = [], [], []
        for record in self._catalogue.segments():
            if record.codebook is not None:
                continue
            some = self._catalogue.windows(record.key)
            if record.key == self._segment_key:
                assert self._segment is not None
                vectors, offsets = self._segment.written()
            else:
                segment = self._map(record)
                assert isinstance(segment, RawSegment)
                segment.verify()
                vectors, offsets = segment.vectors, segment.offsets
            if len(some):
                sources.append(Source(vectors, offsets, some[:, 3]))
                windows.append(some)
            keys.append(record.key)
        if sources:
            chosen = self._codebook_for(sources, patient=patient)
            if chosen is None:
                return
            key, codebook = chosen
            self.replace(windows, pack(self._index, codebook, sources), key)
        self.retire(keys)
        if self._segment is not None:
            self._database.execute("DELETE FROM segments WHERE key = ?", (self._segment_key,))
            self.undo()

    def _retrain(self) -> None:
        """Pack every live window again, under one codebook trained for all of them."""
        from mbretrieve.index.packing import Decoded, Source, pack, runs, train

        living = {size.key for size in self._sizes()}
        segments = [self._map(record) for record in self._catalogue.segments() if record.key in living]
        windows = [self._catalogue.windows(segment.record.key) for segment in segments]
        sources = []
        for segment, some in zip(segments, windows, strict=True):
            segment.verify()
            vectors = Decoded(segment) if isinstance(segment, PackedSegment) else segment.vectors
            sources.append(Source(vectors, segment.offsets, some[:, 3]))
        bits = self._catalogue.bits
        assert bits is not None
        codebook = train(sources, bits, self._all_tokens(), self.memory)
        key = self._put_codebook(codebook)
        for source, some in zip(sources, windows, strict=True):
            for first, last in runs(source.offsets, source.rows, PACK_TOKENS):
                part = source._replace(rows=source.rows[first:last])
                self.replace([some[first:last]], pack(self._index, codebook, [part]), key)
        self.retire([segment.record.key for segment in segments])

    def replace(self, windows: Sequence[Integers], packed: Written, codebook: int | None) -> None:
        """Complete a new segment, to whose rows the windows (n, 7) of others, in their order, moved."""
        key = self._put_segment(packed.name)
        self._complete_segment(key, packed.name, packed.rows, packed.tokens, codebook, packed.files)
        self._move(np.concatenate(windows), key, np.arange(packed.rows))

    def _move(self, windows: Integers, segment: int, rows: Sequence[int] | Integers) -> None:
        """Say that windows (n, 7) are in another segment now, and in which rows of it."""
        moved = windows.copy()
        moved[:, 2] = segment
        moved[:, 3] = rows
        hashed = np.column_stack([moved, window_checksums(moved)]).tolist()
        self._database.executemany("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", hashed)
        self._count_live(segment, len(moved), int(moved[:, 4].sum()))

    def retire(self, keys: Collection[int]) -> None:
        """Say that segments hold nothing any more; the commit drops them."""
        self._database.executemany(
            "UPDATE segments SET live_rows = 0, live_tokens = 0 WHERE key = ?", [(key,) for key in keys]
        )

    def _map(self, record: SegmentRecord) -> RawSegment | PackedSegment:
        if record.codebook is not None and record.codebook not in self._codebooks:
            for book in self._catalogue.codebooks():
                if book.key == record.codebook:
                    self._codebooks[book.key] = open_codebook(self._index, book, self._dim)
        return open_segment(self._index, record, self._layout, self._dim, self._codebooks)

    def _codebook_for(self, sources: Sequence["Source"], *, patient: bool) -> "tuple[int, Codebook] | None":
        """Return the codebook for new vectors: the newest if it suits them, or one trained for them.

        None if they are unlike the old ones, but too few to be trained on: who is patient waits for more.
        """
        from mbretrieve.index.packing import loss, train

        bits = self._catalogue.bits
        assert bits is not None
        if records := self._catalogue.codebooks():
            newest = records[-1]
            if newest.key not in self._codebooks:
                self._codebooks[newest.key] = open_codebook(self._index, newest, self._dim)
            codebook = self._codebooks[newest.key]
            tokens = sum(source.tokens for source in sources)
            few = tokens < plan.DRIFT_TOKENS
            if len(records) >= MOST_CODEBOOKS or (few and not patient):
                return newest.key, codebook
            if loss(codebook, sources) <= plan.DRIFT * newest.error:
                return newest.key, codebook
            if few:
                return None
        trained = train(sources, bits, self._all_tokens(), self.memory)
        return self._put_codebook(trained), trained

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
