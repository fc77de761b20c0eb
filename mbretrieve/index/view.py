"""What a reader holds of one generation: every live window's place, its documents, the mapped segments."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.catalogue import Catalogue, Integers, damaged
from mbretrieve.index.records import LAYOUTS
from mbretrieve.index.segments import PackedSegment, RawSegment, open_codebook, open_segment

Scores = NDArray[np.float32]


class Found(NamedTuple):
    """Windows that were scored for one query: their positions, rising, and their scores."""

    positions: Integers
    scores: Scores


class Ranked(NamedTuple):
    """A document that may be among the best: its place in the view, its score and the position of its best window."""

    document: int
    score: float
    position: int


@dataclass(frozen=True)
class View:
    """One generation in memory.

    Windows have positions 0..W-1, ordered by content; documents have places 0..N-1, ordered by key.
    ``content`` (W,), ``window`` (W,), ``segment`` (W,) an index into ``segments``, ``row`` (W,), ``span`` (W, 2);
    ``keys`` (N,) the documents' keys, ``first`` and ``last`` (N,) the range of positions of each one's windows;
    ``by_first`` (N,) the documents' places in the order of ``first``.
    """

    segments: list[RawSegment | PackedSegment]
    window: Integers
    segment: Integers
    row: Integers
    span: Integers
    keys: Integers
    first: Integers
    last: Integers
    by_first: Integers

    @cached_property
    def every_document(self) -> Integers:
        """The places of all documents."""
        return np.arange(len(self.keys))

    @cached_property
    def _every_position(self) -> Integers:
        return np.arange(len(self.row))

    @cached_property
    def at_rows(self) -> list[Integers]:
        """For each segment the position of the window in each of its rows, -1 where it has none any more: (rows,)."""
        found = [np.full(segment.record.rows, -1, dtype=np.int64) for segment in self.segments]
        for number, at in enumerate(found):
            here = np.flatnonzero(self.segment == number)
            at[self.row[here]] = here
        return found

    def selected(self, positions: Integers) -> list[NDArray[np.bool_]]:
        """Return for each segment which of its rows hold one of some windows: (rows,)."""
        if len(positions) == len(self.row):
            return self._live
        wanted = np.zeros(len(self.row) + 1, dtype=bool)  # one more, for the rows that hold none: -1
        wanted[positions] = True
        return [wanted[at] for at in self.at_rows]

    @cached_property
    def _live(self) -> list[NDArray[np.bool_]]:
        return [at >= 0 for at in self.at_rows]

    @cached_property
    def is_packed(self) -> NDArray[np.bool_]:
        """Which segments are packed."""
        return np.array([isinstance(segment, PackedSegment) for segment in self.segments], dtype=bool)

    @cached_property
    def packed_windows(self) -> int:
        """How many windows are in packed segments."""
        return int(self.is_packed[self.segment].sum())

    def tokens(self, positions: Integers) -> int:
        """Count the tokens of some windows."""
        return sum(
            int((segment.offsets[rows + 1] - segment.offsets[rows]).sum())
            for segment, _, rows in self.by_segment(positions)
        )

    @cached_property
    def packed_tokens(self) -> int:
        """How many tokens are in packed segments, dead ones included."""
        return sum(segment.record.tokens for segment in self.segments if isinstance(segment, PackedSegment))

    def owners(self, positions: Integers) -> Integers:
        """Return the documents that own some windows (several may share one), rising."""
        firsts = self._firsts
        wanted = np.unique(positions - self.window[positions])  # a content's first position names it
        starts, stops = np.searchsorted(firsts, wanted), np.searchsorted(firsts, wanted, side="right")
        counts = stops - starts
        return np.sort(
            self.by_first[np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())]
        )

    @cached_property
    def _firsts(self) -> Integers:
        return self.first[self.by_first]

    def positions(self, documents: Integers) -> Integers:
        """Return the positions of the windows of some documents, rising, each once though documents may share them."""
        if len(documents) == len(self.keys):
            return self._every_position
        wanted = np.zeros(len(self.row) + 1, dtype=np.int64)
        np.add.at(wanted, self.first[documents], 1)
        np.add.at(wanted, self.last[documents], -1)
        return np.flatnonzero(np.cumsum(wanted[:-1]) > 0)

    def by_segment(self, positions: Integers) -> Iterator[tuple[RawSegment | PackedSegment, Integers, Integers]]:
        """Yield each segment that holds some of the windows, their indices in ``positions``, and their rows, rising.

        positions (P,), rising.
        """
        if len(positions) == len(self.row):  # all: they need no sorting each time
            for segment, at, live in zip(self.segments, self.at_rows, self._live, strict=True):
                if len(rows := np.flatnonzero(live)):
                    yield segment, at[rows], rows
            return
        order = np.lexsort((self.row[positions], self.segment[positions]))
        numbers = self.segment[positions][order]
        for number, segment in enumerate(self.segments):
            first, last = np.searchsorted(numbers, [number, number + 1])
            if first < last:
                some = order[first:last]
                yield segment, some, self.row[positions[some]]

    def best(self, found: Found, documents: Integers, k: int) -> list[Ranked]:
        """Return the best ``k`` of some documents by their best window, and all that tie with the last of them.

        A document none of whose windows was scored is not among the best.
        """
        if 4 * len(found.positions) < len(documents):
            owners = self.owners(found.positions)
            at = np.minimum(np.searchsorted(documents, owners), len(documents) - 1)
            documents = owners[documents[at] == owners]
        first = np.searchsorted(found.positions, self.first[documents])
        last = np.searchsorted(found.positions, self.last[documents])
        documents, first, last = (array[first < last] for array in (documents, first, last))
        if not len(documents):
            return []
        # Documents may share windows, so their ranges may repeat or not rise: reduceat takes them as pairs, from each
        # first to the next last, and every second result is of the gap between two documents.
        padded = np.append(found.scores, np.float32(-np.inf))
        scores = np.maximum.reduceat(padded, np.stack([first, last], axis=1).ravel())[::2]
        if np.isnan(scores).any():
            raise IndexFormatError("a score is not a number: `mbretrieve verify` names the damaged file")
        cut = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else -np.inf
        return [
            Ranked(
                int(documents[i]),
                float(scores[i]),
                int(found.positions[first[i] + int(np.argmax(found.scores[first[i] : last[i]]))]),
            )
            for i in np.flatnonzero(scores >= cut)
        ]

    def check(self, positions: Integers) -> None:
        """Check the stored bytes of some windows' vectors. Raises: IndexFormatError naming a damaged file."""
        for segment, _, rows in self.by_segment(positions):
            segment.check_rows(rows)


def load_view(catalogue: Catalogue) -> View:
    """Read a generation's windows and documents and map its segments.

    Raises: FileNotFoundError if a writer has dropped one of the segments since; IndexFormatError for what does not fit.
    """
    layout = LAYOUTS[catalogue.kind]
    records = catalogue.segments()
    books = {book.key: open_codebook(catalogue.index, book, catalogue.dim) for book in catalogue.codebooks()}
    if any(record.codebook is not None and record.codebook not in books for record in records):
        raise damaged(catalogue.index, "a segment's codebook is not there")
    segments = [open_segment(catalogue.index, record, layout, catalogue.dim, books) for record in records]
    for segment in segments:
        # Mapped now: a writer may drop the segment before the first search needs it.
        _ = segment.lists if isinstance(segment, PackedSegment) else segment.near
    windows = catalogue.windows()
    content, window, named, row, tokens = windows[:, :5].T
    keys = np.array([record.key for record in records], dtype=np.int64)
    number = np.searchsorted(keys, named)
    if len(windows) and (number.max() >= len(keys) or (keys[number] != named).any()):
        raise damaged(catalogue.index, "a window is in a segment that is not there")
    for i, segment in enumerate(segments):
        rows, lengths = row[number == i], tokens[number == i]
        if len(rows) and (rows.min() < 0 or rows.max() >= len(segment.offsets) - 1):
            raise damaged(catalogue.index, "a window is outside its segment")
        if (segment.offsets[rows + 1] - segment.offsets[rows] != lengths).any():
            raise damaged(catalogue.index, "a window has not the tokens its segment says")
    documents = catalogue.integers("SELECT key, content FROM documents ORDER BY key", columns=2)
    first, last = np.searchsorted(content, documents[:, 1]), np.searchsorted(content, documents[:, 1], side="right")
    if (first == last).any():
        raise damaged(catalogue.index, "a document has no window")
    # Copied: a column of the table would keep the whole of it and be read in leaps.
    copy = np.ascontiguousarray
    return View(
        segments,
        copy(window),
        number,
        copy(row),
        copy(windows[:, 5:7]),
        copy(documents[:, 0]),
        first=first,
        last=last,
        by_first=np.argsort(first, kind="stable"),
    )
