"""Writing the inverted index: contents are gathered into a run, runs are merged, and what is deleted is left out."""

import sqlite3
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.postings import (
    BLOCK,
    LENGTH,
    Postings,
    Run,
    checked,
    decode,
    decode_lengths,
    encode,
    joined,
    postings_checksum,
    read_runs,
)

RUN_POSTINGS = 1 << 20  # held before they are written: at 16 bytes each, and those of a word in an array of its own
FAN = 4  # runs merged at once, at least
LARGEST = 1 << 23  # postings; a commit must not copy the whole index
FETCHED = 256  # rows of a run held while it is merged


def runs_to_merge(runs: Sequence[Run]) -> Sequence[Run]:
    """Return the newest runs that are to become one: FAN or more, the oldest no larger than the others together.

    So the runs that stay grow at least twofold, but for the FAN - 1 newest: there are few, and a posting is copied at
    most once each time the index doubles. Runs of more than LARGEST postings are left alone, unless one has lost half
    of its contents: such a run is merged with all that are newer.
    """
    chosen, newer, large = len(runs), 0, False
    for i, run in reversed(list(enumerate(runs))):
        large = large or run.postings > LARGEST
        many = not large and len(runs) - i >= FAN and run.postings <= newer
        if many or 2 * run.deleted > run.contents:
            chosen = i
        newer += run.postings
    return runs[chosen:]


class Inverter:
    """The words of one transaction: what ``add`` and ``remove`` were told is in the database after ``flush``."""

    def __init__(self, index: Path, database: sqlite3.Connection) -> None:
        self._index = index
        self._database = database
        self.clear()

    def clear(self) -> None:
        """Forget what was not flushed."""
        # Of each word a content, its count, the next content, its count ...
        self._held: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._size = 0
        self._added: list[int] = []
        self._lengths: dict[int, int] = {}

    def add(self, content: int, words: Sequence[str]) -> None:
        """Add a content, whose key is larger than any before it, with its words."""
        if not words:
            return
        held = self._held
        counts = Counter(words)
        for word, count in counts.items():
            held[word].extend((content, count))
        self._lengths[content] = len(words)
        self._added.append(content)
        self._size += len(counts)
        if self._size >= RUN_POSTINGS:
            self.flush()

    def remove(self, content: int) -> None:
        """Remove a content: its length is 0 from now on, and its postings go when their run is merged."""
        length = self._lengths.get(content)
        if not (self._block(content // BLOCK)[content % BLOCK] if length is None else length):
            return  # it has no words, and no run counts it
        self._lengths[content] = 0
        self._database.execute(
            "UPDATE runs SET deleted = deleted + 1 WHERE first <= ? AND last >= ?", (content, content)
        )

    def flush(self) -> None:
        """Write what was gathered, and merge the runs that are due."""
        lengths, held, added = self._lengths, self._held, self._added
        self.clear()
        self._put_lengths(lengths)
        if added:
            rows = ((word, Postings(*np.frombuffer(held[word], np.int64).reshape(-1, 2).T)) for word in sorted(held))
            self._put_run(rows, added[0], added[-1], len(added), sum(lengths[content] == 0 for content in added))
        if merged := runs_to_merge(read_runs(self._index, self._database.execute)):
            self._merge(merged)

    def compact(self) -> None:
        """Write what was gathered, and merge all runs into one that holds nothing deleted."""
        self.flush()
        runs = read_runs(self._index, self._database.execute)
        if len(runs) > 1 or any(run.deleted for run in runs):
            self._merge(runs)

    def _put_run(
        self, rows: Iterable[tuple[str, Postings]], first: int, last: int, contents: int, deleted: int = 0
    ) -> None:
        """Write a run of words in ascending order."""
        key = self._database.execute("INSERT INTO runs VALUES (NULL, 0, 0, 0, 0, 0, 0)").lastrowid or 0
        size = 0

        def encoded() -> Iterator[tuple[int, str, int, bytes, int]]:
            nonlocal size
            for word, postings in rows:
                data, contents = encode(postings), len(postings.contents)
                size += contents
                yield key, word, contents, data, postings_checksum(key, word, contents, data)

        self._database.executemany("INSERT INTO postings VALUES (?, ?, ?, ?, ?)", encoded())
        run = Run(key, first, last, contents, size, deleted)
        self._database.execute("REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", (*run, run.checksum))

    def _merge(self, runs: Sequence[Run]) -> None:
        """Write the live postings of ``runs`` into one, a few rows of each in memory."""
        first, last = runs[0].first, runs[-1].last
        alive = self._alive(first, last)

        def live() -> Iterator[tuple[str, Postings]]:
            rows = merge(*map(self._rows, runs), key=itemgetter(0))  # stable: equal words by run
            for word, parts in groupby(rows, key=itemgetter(0)):
                postings = joined([part for _, part in parts])
                kept = alive[postings.contents - first]
                if not kept.all():
                    postings = Postings(postings.contents[kept], postings.counts[kept])
                if len(postings.contents):
                    yield word, postings

        if alive.any():
            self._put_run(live(), first, last, int(alive.sum()))
        keys = [(run.key,) for run in runs]
        self._database.executemany("DELETE FROM postings WHERE run = ?", keys)
        self._database.executemany("DELETE FROM runs WHERE run = ?", keys)

    def _rows(self, run: Run) -> Iterator[tuple[str, Postings]]:
        """Yield the rows of a run, words ascending. Raises: IndexFormatError if one was changed."""
        word = ""
        while rows := self._database.execute(
            "SELECT word, contents, data, checksum FROM postings WHERE run = ? AND word > ? ORDER BY word LIMIT ?",
            (run.key, word, FETCHED),
        ).fetchall():
            for word, size, data, kept in rows:
                # Checked, or a changed byte would get a good checksum.
                yield word, decode(size, checked(self._index, run.key, word, size, data, kept))

    def _put_lengths(self, lengths: dict[int, int]) -> None:
        for block, contents in groupby(sorted(lengths), key=lambda content: content // BLOCK):
            numbers = self._block(block)
            for content in contents:
                numbers[content % BLOCK] = lengths[content]
            if numbers.any():
                data = numbers.tobytes()
                self._database.execute(
                    "INSERT OR REPLACE INTO lengths VALUES (?, ?, ?)", (block, data, zlib.crc32(data, block))
                )
            else:
                self._database.execute("DELETE FROM lengths WHERE block = ?", (block,))

    def _alive(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return which of the contents from ``first`` to ``last`` have words."""
        blocks = [self._block(block) for block in range(first // BLOCK, last // BLOCK + 1)]
        start = first % BLOCK
        return np.concatenate(blocks)[start : start + last - first + 1] > 0

    def _block(self, block: int) -> NDArray[np.uint32]:
        row = self._database.execute("SELECT data, checksum FROM lengths WHERE block = ?", (block,)).fetchone()
        if row is None:
            return np.zeros(BLOCK, dtype=LENGTH)
        return decode_lengths(self._index, block, *row).copy()
