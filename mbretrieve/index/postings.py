"""The inverted index of full-text search: which contents have a word, and how often, as blobs that numpy reads whole.

It is kept in runs, each of the contents written since the run before: a commit writes one run, and runs are merged as
they become many (`inverting`). SQLite's own, FTS5, takes a microsecond for each row that it scores, and of a question's
common words each is in a tenth of the rows; a posting takes some nanoseconds here, so that no row is left out.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.catalogue import Catalogue, Integers, damaged

K1, B = 1.2, 0.75  # of BM25, as FTS5 and Lucene have them
BLOCK = 4096  # lengths in a row of their table
LENGTH = np.dtype("<u4")
SMALL = 64  # postings of a row that is kept in records of one size: most words are rare, and many are read at once
_RECORD = np.dtype([("content", "<u4"), ("count", "<u4")])
MAX_CONTENT = 2**32 - 1
_HEAD = struct.Struct("<BBQ")  # of a larger row: bytes a gap and bytes a count, and the first content
_WIDTHS = (1, 2, 4, 8)
_ALL_RUNS = "run IN (SELECT run FROM runs)"


class Postings(NamedTuple):
    """The contents that have a word, (n,) int64 ascending, and how often each has it, (n,) integers of any width."""

    contents: Integers
    counts: NDArray[np.integer[Any]]


def encode(postings: Postings) -> bytes:
    """Write postings: few as records, many as the first content, the gaps and the counts, as narrow as they allow."""
    size = len(postings.contents)
    if size <= SMALL:
        records = np.empty(size, dtype=_RECORD)
        records["content"], records["count"] = postings
        return records.tobytes()
    gaps, counts = np.diff(postings.contents), postings.counts
    gap_bytes, count_bytes = _width(gaps), _width(counts)
    head = _HEAD.pack(gap_bytes, count_bytes, int(postings.contents[0]))
    return head + gaps.astype(f"<u{gap_bytes}").tobytes() + counts.astype(f"<u{count_bytes}").tobytes()


def decode(size: int, data: bytes) -> Postings:
    """Read what ``encode`` wrote of ``size`` postings. Records one after the other are read as one row."""
    if size <= SMALL:
        return _records(data)
    gap_bytes, count_bytes, first = _HEAD.unpack_from(data)
    contents = np.empty(size, dtype=np.int64)
    contents[0] = first
    contents[1:] = np.frombuffer(data, f"<u{gap_bytes}", size - 1, _HEAD.size)
    np.cumsum(contents, out=contents)
    counts = np.frombuffer(data, f"<u{count_bytes}", size, _HEAD.size + gap_bytes * (size - 1))
    return Postings(contents, counts)


def _records(data: bytes) -> Postings:
    records = np.frombuffer(data, _RECORD)
    return Postings(records["content"].astype(np.int64), records["count"])


def joined(parts: Sequence[Postings]) -> Postings:
    """Join postings whose contents follow each other."""
    if len(parts) == 1:
        return parts[0]
    return Postings(*map(np.concatenate, zip(*parts, strict=True))) if parts else _records(b"")


def postings_checksum(run: int, word: str, size: int, data: bytes) -> int:
    """Hash a row of the postings, its key too, as the catalogue keeps it beside them."""
    return zlib.crc32(data, word_crc(word) ^ size ^ run << 16)


@lru_cache(maxsize=1 << 16)
def word_crc(word: str) -> int:
    """Hash a word."""
    return zlib.crc32(word.encode())


def checked(index: Path, run: int, word: str, size: int, data: bytes, kept: int) -> bytes:
    """Return the data of a row of the postings. Raises: IndexFormatError if it was changed.

    A row whose key was changed is not found under its own, and of that a search knows nothing; ``verify`` does.
    """
    try:
        if postings_checksum(run, word, size, data) == kept:
            return data
    except (TypeError, AttributeError):  # its number is none, its data no bytes, its word no text
        pass
    raise damaged(index, f"the list of contents that have the word {word!r} was changed")


def decode_lengths(index: Path, block: int, data: bytes, kept: int) -> NDArray[np.uint32]:
    """Return a row of the lengths, (BLOCK,). Raises: IndexFormatError if it was changed."""
    sound = isinstance(block, int) and 0 <= block <= MAX_CONTENT // BLOCK and isinstance(data, bytes)
    if not sound or zlib.crc32(data, block) != kept:
        raise damaged(index, "the lengths of contents were changed")
    return np.frombuffer(data, LENGTH)


class Run(NamedTuple):
    """A run: its key, its first and last content, how many contents (those that have words) and postings it was written
    with, and how many of these contents were deleted since."""

    key: int
    first: int
    last: int
    contents: int
    postings: int
    deleted: int

    @property
    def checksum(self) -> int:
        """Hash what was written; how many were deleted is counted on."""
        return zlib.crc32(repr(self[:-1]).encode())


def read_runs(index: Path, query: Callable[[str], Iterable[tuple[Any, ...]]]) -> list[Run]:
    """Return the runs, oldest first. Raises: IndexFormatError if the row of one was changed."""
    rows = query("SELECT run, first, last, contents, postings, deleted, checksum FROM runs ORDER BY run")
    runs = [(Run(*fields), kept) for *fields, kept in rows]
    if any(run.checksum != kept or not isinstance(run.deleted, int) for run, kept in runs):
        raise damaged(index, "the row of a run of words was changed")
    return [run for run, _ in runs]


class Lengths(NamedTuple):
    """How many words each content has, (n,) by key, 0 for one that is not there; and what BM25 makes of that: how many
    have any, and each one's norm, (n,)."""

    words: NDArray[np.uint32]
    texts: int
    norms: NDArray[np.float64]


def read_lengths(catalogue: Catalogue) -> Lengths:
    """Return the lengths of the generation that ``catalogue`` reads; they are read once and kept with it."""
    if (found := _LENGTHS.get(catalogue)) is None:
        found = _LENGTHS[catalogue] = _read_lengths(catalogue)
    return found


_LENGTHS: WeakKeyDictionary[Catalogue, Lengths] = WeakKeyDictionary()


def _read_lengths(catalogue: Catalogue) -> Lengths:
    runs = read_runs(catalogue.index, catalogue.rows)  # or the words of a run might be missing in silence
    rows = catalogue.rows("SELECT block, data, checksum FROM lengths ORDER BY block")
    blocks = [(block, decode_lengths(catalogue.index, block, data, kept)) for block, data, kept in rows]
    lengths = np.zeros((blocks[-1][0] + 1 if blocks else 0, BLOCK), dtype=LENGTH)
    for block, numbers in blocks:
        lengths[block] = numbers
    words = lengths.reshape(-1)
    texts = int(np.count_nonzero(words))
    if texts != sum(run.contents - run.deleted for run in runs):
        raise damaged(catalogue.index, "the lengths of contents are not those of the runs of words")
    average = words.sum() / texts if texts else 1.0
    return Lengths(words, texts, K1 * (1 - B + B * words / average))


def count_contents(catalogue: Catalogue, words: Collection[str]) -> dict[str, int]:
    """Return for each word that is there how many contents have it; deleted ones may be among them."""
    counts: Counter[str] = Counter()
    for word, contents in catalogue.rows_among(
        f"SELECT word, max(1, coalesce(CAST(contents AS INTEGER), 1)) FROM postings WHERE {_ALL_RUNS} AND word",  # noqa: S608 - a constant
        words,
    ):
        counts[word] += contents
    return counts


def completions(catalogue: Catalogue, word: str, most: int) -> dict[str, int]:
    """Return the words that begin with one and are longer, as ``count_contents``: those ``most`` that most have."""
    return dict(
        catalogue.rows(
            "SELECT word, CAST(coalesce(sum(contents), 1) AS INTEGER) FROM postings"  # noqa: S608 - a constant
            f" WHERE {_ALL_RUNS} AND word > ? AND word < ?"
            " GROUP BY word ORDER BY 2 DESC, 1 LIMIT ?",
            (word, f"{word}\U0010ffff", most),
        )
    )


def read_postings(catalogue: Catalogue, word: str, longer: Collection[str]) -> tuple[Postings, Postings]:
    """Return the postings of a word, and of it and ``longer`` words together; deleted contents may be among them."""
    rows = catalogue.rows_among(
        f"SELECT run, word, contents, data, checksum FROM postings WHERE {_ALL_RUNS} AND word",  # noqa: S608
        [word, *longer],
    )
    whole: list[Postings] = []
    others: list[Postings] = []
    small: list[bytes] = []
    for row in rows:
        checked(catalogue.index, *row)
    for _, found, size, data, _ in sorted(rows, key=itemgetter(0)):
        if found == word:
            whole.append(decode(size, data))
        elif size <= SMALL:
            small.append(data)
        else:
            others.append(decode(size, data))
    alone = joined(whole)
    return alone, summed([alone, *others, _records(b"".join(small))]) if others or small else alone


def summed(parts: Sequence[Postings]) -> Postings:
    """Return the contents that are in any of ``parts``, repeated perhaps, with the sums of their counts."""
    contents = np.concatenate([part.contents for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    if not len(contents):
        return Postings(contents, counts)
    order = np.argsort(contents, kind="stable")  # which is fast where parts are ascending
    contents = contents[order]
    first = np.flatnonzero(np.diff(contents, prepend=-1))
    return Postings(contents[first], np.add.reduceat(counts[order], first))


def _width(numbers: NDArray[np.integer[Any]]) -> int:
    largest = int(numbers.max(initial=0))
    return next(width for width in _WIDTHS if largest < 1 << 8 * width)
