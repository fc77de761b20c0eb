"""Packing: live windows of raw segments become a packed one under a codebook; packed ones become a larger one.

Whatever the size of what is packed, a bounded part of it is in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index import plan
from mbretrieve.index.arrays import first_of_each, spread
from mbretrieve.index.codebooks import Codebook, train_codebook
from mbretrieve.index.lists import merge_lists, write_lists
from mbretrieve.index.records import Layout
from mbretrieve.index.segments import PackedSegment, PackedWriter, Written
from mbretrieve.index.windows import Table
from mbretrieve.scoring.native import prepare
from mbretrieve.types import Progress

Integers = NDArray[np.int64]

BLOCK_TOKENS = 1 << 16
LOSS_TOKENS = 16384
# Held out of training to measure what a codebook loses of vectors to come: the last tenth of each source. Windows of
# one file are alike: a codebook that has seen some of them loses less of the others than it will of new files.
HELD_OUT = 10
LEAST_HELD_OUT = 1 << 13


class Decoded:
    """A packed segment's vectors (tokens, dim), decoded where they are read."""

    def __init__(self, segment: PackedSegment) -> None:
        self._segment = segment
        self.shape = (segment.record.tokens, len(segment.codebook.rotation))

    def __getitem__(self, at: Integers | slice) -> NDArray[np.float32]:
        segment, codebook = self._segment, self._segment.codebook
        return codebook.restore(codebook.decode(segment.assignments[at], segment.codes[at]))


class Source(NamedTuple):
    """Vectors (tokens, dim) to be packed, where each row's begin, the rows' windows, and the rows that live, rising."""

    vectors: NDArray[Any] | Decoded
    offsets: Integers
    windows: Table
    rows: Integers
    pooled: NDArray[np.float32] | None
    """Each row's dense vector in a joint index, (all rows, pooled_dim)."""

    def pooled_of(self, rows: Integers) -> NDArray[np.float32] | None:
        """Return the dense vectors of some rows."""
        return None if self.pooled is None else np.asarray(self.pooled[rows])

    @property
    def tokens(self) -> int:
        """How many vectors live."""
        return int((self.offsets[self.rows + 1] - self.offsets[self.rows]).sum())


def sample(sources: Sequence[Source], tokens: int, seed: int = 0) -> NDArray[np.float32]:
    """Return at most so many of the sources' live vectors, (n, dim), each as likely as any other."""
    counts = np.array([source.tokens for source in sources])
    total = int(counts.sum())
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(tokens, total), replace=False))
    parts = []
    for source, first, count in zip(sources, np.cumsum(counts) - counts, counts, strict=True):
        here = drawn[(drawn >= first) & (drawn < first + count)] - first
        ends = np.cumsum(source.offsets[source.rows + 1] - source.offsets[source.rows])
        at = np.searchsorted(ends, here, side="right")
        places = source.offsets[source.rows[at] + 1] - (ends[at] - here)
        parts.append(np.asarray(source.vectors[places], dtype=np.float32))
    return np.concatenate(parts)


def hold_out(sources: Sequence[Source]) -> tuple[Sequence[Source], Sequence[Source]]:
    """Part sources into what a codebook is trained on and what its error is measured on; too few serve for both."""
    ends = [len(source.rows) - len(source.rows) // HELD_OUT for source in sources]
    unseen = [source._replace(rows=source.rows[end:]) for source, end in zip(sources, ends, strict=True)]
    if sum(source.tokens for source in unseen) < LEAST_HELD_OUT:
        return sources, sources
    return [source._replace(rows=source.rows[:end]) for source, end in zip(sources, ends, strict=True)], unseen


def train(sources: Sequence[Source], bits: int, tokens: int, memory: int) -> Codebook:
    """Train a codebook on the sources for an index of so many tokens, in no more than ``memory`` bytes.

    Its error is that of windows it was not trained on, nor on their neighbours.
    """
    seen, unseen = hold_out(sources)
    prepare()  # what is packed will be searched: a second beside the minutes that it takes to get here
    lists = plan.lists(tokens)
    # Training holds the sample some eight times over: as it came, rotated, less its centroids, coded, decoded.
    most = max(1024, memory // (32 * sources[0].vectors.shape[1]))
    drawn = sample(seen, min(max(plan.SAMPLE_TOKENS, plan.SAMPLE_PER_LIST * lists), most))
    codebook = train_codebook(drawn, min(lists, max(1, len(drawn) // plan.LEAST_PER_LIST)), bits)
    return codebook if unseen is seen else replace(codebook, error=loss(codebook, unseen))


def loss(codebook: Codebook, sources: Sequence[Source]) -> float:
    """Return the mean squared error of the sources' vectors under a codebook, estimated from some of them."""
    rotated = codebook.rotate(sample(sources, LOSS_TOKENS))
    assigned = codebook.assign(rotated)
    return codebook.squared_error(rotated, assigned, codebook.encode(rotated, assigned))


def runs(offsets: Integers, windows: Table, rows: Integers, tokens: int) -> Iterator[Integers]:
    """Cut rows into runs of about so many tokens, none within a content."""
    starts = np.append(np.flatnonzero(first_of_each(windows[rows, 0])), len(rows))
    ends = np.cumsum(offsets[rows + 1] - offsets[rows])
    for first, last in _cut(ends[starts[1:] - 1], tokens):
        yield rows[starts[first] : starts[last]]


def pack(
    index: Path,
    layout: Layout,
    codebook: Codebook,
    sources: Sequence[Source],
    memory: int,
    progress: Progress | None = None,
) -> Written:
    """Write the sources' live rows as one packed segment; memory: see ``SegmentWriter.finish``."""

    def blocks() -> Iterator[_Block]:
        for source in sources:
            for some in _row_blocks(source.offsets, source.rows):
                lengths = source.offsets[some + 1] - source.offsets[some]
                vectors = source.vectors[_places(source.offsets, some)]
                rotated = codebook.rotate(np.asarray(vectors, dtype=np.float32))
                assigned = codebook.assign(rotated)
                codes = codebook.encode(rotated, assigned)
                yield _Block(rotated, assigned, codes, lengths, source.windows[some], source.pooled_of(some))
                if progress is not None:
                    progress.advance(len(some), tokens=len(codes))

    return _write(index, layout, codebook, blocks(), memory)


class Coded(NamedTuple):
    """A packed segment's arrays: its tokens' (tokens,) and (tokens, bytes), and its rows' as those of a ``Source``."""

    assignments: NDArray[np.integer[Any]]
    codes: NDArray[np.uint8]
    offsets: Integers
    windows: Table
    pooled: NDArray[np.float32] | None


def repack(index: Path, layout: Layout, codebook: Codebook, coded: Coded, rows: Integers, memory: int) -> Written:
    """Copy some rows, rising, of a packed segment's arrays into a new one, its lists made from the decoded tokens."""

    def blocks() -> Iterator[_Block]:
        for some in _row_blocks(coded.offsets, rows):
            lengths = coded.offsets[some + 1] - coded.offsets[some]
            at = _places(coded.offsets, some)
            assigned, codes = np.asarray(coded.assignments[at]), np.asarray(coded.codes[at])
            pooled = None if coded.pooled is None else np.asarray(coded.pooled[some])
            yield _Block(codebook.decode(assigned, codes), assigned, codes, lengths, coded.windows[some], pooled)

    return _write(index, layout, codebook, blocks(), memory)


class _Block(NamedTuple):
    """Some rows' tokens: rotated (t, padded), assigned (t,), coded (t, bytes); each row's length, window and dense
    vector, if they have them."""

    rotated: NDArray[np.float32]
    assigned: NDArray[np.integer[Any]]
    codes: NDArray[np.uint8]
    lengths: Integers
    windows: Table
    pooled: NDArray[np.float32] | None


def _write(index: Path, layout: Layout, codebook: Codebook, blocks: Iterator[_Block], memory: int) -> Written:
    writer = PackedWriter(index, layout, codebook)
    try:
        assignments: list[NDArray[np.integer[Any]]] = []
        products: list[NDArray[np.uint8]] = []
        for block in blocks:
            writer.append(block.assigned, block.codes, block.lengths, block.windows, block.pooled)
            if writer.lists is not None:
                assignments.append(block.assigned)
                products.append(codebook.pack_products(block.rotated, block.assigned))
        if writer.lists is not None:
            lengths = writer.row_lengths()
            write_lists(
                writer.lists,
                len(codebook.centroids),
                np.concatenate(assignments),
                np.concatenate(products),
                np.repeat(np.arange(len(lengths)), lengths),
            )
        return Written(writer.name, writer.rows, writer.tokens, writer.finish(memory))
    finally:
        writer.close()


def merge(
    index: Path,
    layout: Layout,
    codebook: Codebook,
    segments: Sequence[PackedSegment],
    rows: Sequence[Integers],
    memory: int,
    progress: Progress | None = None,
) -> Written:
    """Copy the live rows of packed segments of one codebook into one segment."""
    writer = PackedWriter(index, layout, codebook)
    try:
        maps = []
        for segment, live in zip(segments, rows, strict=True):
            segment.verify()  # or a changed byte would get a good checksum
            new = np.full(segment.record.rows, -1, dtype=np.int64)
            new[live] = writer.rows + np.arange(len(live))
            maps.append(new)
            for some in _row_blocks(segment.offsets, live):
                lengths = segment.offsets[some + 1] - segment.offsets[some]
                at = _places(segment.offsets, some)
                pooled = None if segment.pooled is None else segment.pooled[some]
                writer.append(segment.assignments[at], segment.codes[at], lengths, segment.windows.table[some], pooled)
                if progress is not None:
                    progress.advance(len(some), tokens=int(lengths.sum()))
        # What is mapped, and what the build left behind, wants its share of the memory, too.
        if writer.lists is not None:
            merge_lists(writer.lists, [segment.lists for segment in segments], maps, memory // 4)
        return Written(writer.name, writer.rows, writer.tokens, writer.finish(memory))
    finally:
        writer.close()


def _row_blocks(offsets: Integers, rows: Integers) -> Iterator[Integers]:
    for first, last in _cut(np.cumsum(offsets[rows + 1] - offsets[rows]), BLOCK_TOKENS):
        yield rows[first:last]


def _cut(ends: Integers, tokens: int) -> Iterator[tuple[int, int]]:
    """Cut what ends after so many tokens each into runs [first, last) of about so many; what is longer is a run of its
    own."""
    first = 0
    while first < len(ends):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + tokens, side="right")))
        yield first, last
        first = last


def _places(offsets: Integers, rows: Integers) -> Integers | slice:
    """Return where the tokens of some rows, rising, are: a slice if they lie end to end."""
    if len(rows) == rows[-1] - rows[0] + 1:
        return slice(int(offsets[rows[0]]), int(offsets[rows[-1] + 1]))
    return spread(offsets[rows], offsets[rows + 1])
