"""What a reader holds of one generation: the mapped segments, and which of their rows live."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.arrays import best_of, first_of_each, greatest, is_among
from mbretrieve.index.catalogue import Catalogue, Integers, damaged
from mbretrieve.index.segments import PackedSegment, RawSegment, open_codebook, open_segment
from mbretrieve.index.windows import Window

Scores = NDArray[np.float32]


class Found(NamedTuple):
    """Windows that were scored for one query: their positions, rising, and their scores."""

    positions: Integers
    scores: Scores

    def without(self, positions: Integers | None) -> Integers:
        """Return those of some positions that are not here."""
        nothing = self.positions[:0]
        return nothing if positions is None else positions[~is_among(positions, self.positions)]

    def joined(self, others: "Found") -> "Found":
        """Return these and others together."""
        if not len(others.positions):
            return self
        positions = np.concatenate([self.positions, others.positions])
        order = np.argsort(positions)
        return Found(positions[order], np.concatenate([self.scores, others.scores])[order])


class Ranked(NamedTuple):
    """A content that may be among the best: its score and the position of its best window."""

    content: int
    score: float
    position: int


class ByContent(NamedTuple):
    """What was found, by content: contents (C,), rising, where the windows of each start, and the end, (C + 1,), and
    the score of each, its best window's, (C,)."""

    found: Found
    contents: Integers
    starts: Integers
    scores: Scores

    def ranked(self, wanted: NDArray[np.bool_], scores: NDArray[Any] | None = None) -> list[Ranked]:
        """Return the contents that are marked, with other scores than their windows' if so."""
        scores = self.scores if scores is None else scores
        positions, of_windows = self.found
        return [
            Ranked(
                int(self.contents[i]),
                float(scores[i]),
                int(positions[first + int(np.argmax(of_windows[first:last]))]),
            )
            for i, first, last in zip(
                np.flatnonzero(wanted), self.starts[:-1][wanted], self.starts[1:][wanted], strict=True
            )
        ]


@dataclass(frozen=True)
class View:
    """One generation: its segments, and which rows of each live, (rows,) bool.

    A window's position is its row, counted on from segment to segment: nothing has to be read to know it, and the
    windows of a content have consecutive ones.
    """

    segments: list[RawSegment | PackedSegment]
    live: list[NDArray[np.bool_]]

    @cached_property
    def firsts(self) -> Integers:
        """The position of each segment's first row, and of the end: (segments + 1,)."""
        return np.cumsum([0] + [len(rows) for rows in self.live])

    @cached_property
    def is_packed(self) -> list[bool]:
        """Which segments are packed."""
        return [isinstance(segment, PackedSegment) for segment in self.segments]

    @cached_property
    def every_position(self) -> Integers:
        """The positions of all live windows, rising."""
        return np.flatnonzero(np.concatenate([np.empty(0, dtype=bool), *self.live]))

    @cached_property
    def _every_part(self) -> tuple[Integers, Integers]:
        return self._by_packing(self.every_position)

    def by_packing(self, positions: Integers) -> tuple[Integers, Integers]:
        """Part positions, rising, into those of packed and of raw segments."""
        return self._every_part if positions is self.every_position else self._by_packing(positions)

    def _by_packing(self, positions: Integers) -> tuple[Integers, Integers]:
        parts = np.split(positions, np.searchsorted(positions, self.firsts[1:-1]))
        nothing = positions[:0]
        packed = [part for part, is_packed in zip(parts, self.is_packed, strict=False) if is_packed]
        raw = [part for part, is_packed in zip(parts, self.is_packed, strict=False) if not is_packed]
        return np.concatenate([nothing, *packed]), np.concatenate([nothing, *raw])

    @property
    def packed_windows(self) -> int:
        """How many live windows are in packed segments."""
        return len(self._every_part[0])

    @cached_property
    def packed_tokens(self) -> int:
        """How many tokens are in packed segments, dead ones included."""
        return sum(segment.record.tokens for segment in self.segments if isinstance(segment, PackedSegment))

    def tokens(self, positions: Integers) -> int:
        """Count the tokens of some windows."""
        return sum(int(segment.lengths(rows).sum()) for segment, _, rows in self.by_segment(positions))

    def positions(self, contents: Integers | None) -> Integers:
        """Return the positions, rising, of the windows of some contents, rising; None: of all."""
        if contents is None:
            return self.every_position
        found = [np.empty(0, dtype=np.int64)]
        for segment, live, first in zip(self.segments, self.live, self.firsts[:-1], strict=True):
            rows = segment.windows.places.rows(contents)
            found.append(first + rows[live[rows]])
        return np.concatenate(found)

    def positions_of_best(self, contents: Integers, scores: NDArray[Any], most: int, least: int) -> Integers:
        """Return the positions, rising, of the windows of those of some contents, rising, that score highest: as
        many of these as have at most ``most`` windows together, and ``least`` of them however many they have."""
        positions = self.positions(contents)
        if len(positions) <= most:
            return positions
        places = np.searchsorted(contents, self.contents(positions))
        order = np.argsort(-scores, kind="stable")
        together = np.cumsum(np.bincount(places, minlength=len(contents))[order])
        kept = np.zeros(len(contents), dtype=bool)
        kept[order[: max(least, int(np.searchsorted(together, most, side="right")))]] = True
        return positions[kept[places]]

    def selected(self, positions: Integers) -> list[NDArray[np.bool_]]:
        """Return for each segment which of its rows hold one of some windows: (rows,)."""
        if positions is self.every_position:
            return self.live
        wanted = np.zeros(self.firsts[-1], dtype=bool)
        wanted[positions] = True
        return np.split(wanted, self.firsts[1:-1]) if self.segments else []

    def at(self, number: int, rows: Integers) -> Integers:
        """Return the positions of rows of a segment; -1 for those that do not live, and for -1: any shape."""
        return np.where((rows >= 0) & self.live[number][rows], self.firsts[number] + rows, -1)

    def by_segment(self, positions: Integers) -> Iterator[tuple[RawSegment | PackedSegment, slice, Integers]]:
        """Yield each segment that holds some of the windows, where they stand in ``positions``, and their rows, rising.

        positions (P,), rising.
        """
        ends = np.searchsorted(positions, self.firsts)
        for segment, first, start, stop in zip(self.segments, self.firsts, ends, ends[1:], strict=False):
            if start < stop:
                yield segment, slice(start, stop), positions[start:stop] - first

    def contents(self, positions: Integers) -> Integers:
        """Return the content of each of some windows, whose positions rise."""
        found = np.empty(len(positions), dtype=np.int64)
        for segment, some, rows in self.by_segment(positions):
            found[some] = segment.windows.contents(rows)
        return found

    def windows(self, positions: Integers) -> list[Window]:
        """Return which windows have some positions, rising."""
        return [window for segment, _, rows in self.by_segment(positions) for window in segment.windows[rows]]

    def kept(self, position: int) -> NDArray[np.float32]:
        """Return the vectors of the window that has a position, as they are kept: (n, dim); they are not checked."""
        number = int(np.searchsorted(self.firsts, position, side="right")) - 1
        return self.segments[number].kept(position - int(self.firsts[number]))

    def best(self, found: Found, k: int) -> list[Ranked]:
        """Return the best ``k`` contents by their best window, and all that tie with the last of them.

        Every content has a document: the best k documents have the best k contents.
        """
        if not len(found.positions):
            return []
        by = self.by_content(found)
        return by.ranked(best_of(by.scores, k))

    def score_of(self, found: Found, k: int) -> float:
        """Return the score of the ``k``-th best content by its best window; -inf if there are fewer."""
        scores = self.by_content(found).scores
        return greatest(scores, k) if k <= len(scores) else -np.inf

    def by_content(self, found: Found) -> "ByContent":
        """Bring the windows found, at least one, together by content."""
        contents = self.contents(found.positions)
        starts = np.flatnonzero(first_of_each(contents))
        scores = np.maximum.reduceat(found.scores, starts)
        if np.isnan(scores).any():
            raise IndexFormatError("a score is not a number: `mbretrieve verify` names the damaged file")
        return ByContent(found, contents[starts], np.append(starts, len(contents)), scores)

    def check(self, positions: Integers) -> None:
        """Check the stored bytes of some windows' vectors. Raises: IndexFormatError naming a damaged file."""
        for segment, _, rows in self.by_segment(positions):
            segment.check_rows(rows)


def load_view(catalogue: Catalogue) -> View:
    """Map a generation's segments, and read which of their rows live.

    Raises: FileNotFoundError if a writer has dropped one of the segments since; IndexFormatError for what does not fit.
    """
    layout = catalogue.layout
    records = catalogue.segments()
    books = {book.key: open_codebook(catalogue.index, book, catalogue.dim) for book in catalogue.codebooks()}
    if any(record.codebook is not None and record.codebook not in books for record in records):
        raise damaged(catalogue.index, "a segment's codebook is not there")
    segments = [open_segment(catalogue.index, record, layout, catalogue.dim, books) for record in records]
    for segment in segments:
        # Mapped now: a writer may drop the segment before the first search needs it.
        if segment.dense is not None:
            _ = segment.dense.near
        elif isinstance(segment, PackedSegment):
            _ = segment.lists
    return View(segments, [catalogue.live(record) for record in records])
