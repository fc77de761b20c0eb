"""Documents laid end to end, scored block by block: MaxSim of what a kernel says of each block's tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Small enough to stay in a core's cache, where the whole is twice as fast as with blocks sixteen times as large (the
# similarities are then read from memory again to find their maxima).
BLOCK_TOKENS = 4096
BLOCK_MAXIMA = 8 * 1024 * 1024

Places = slice | NDArray[np.int64]
Similarities = Callable[[Places], Iterator[tuple[int, NDArray[np.float32]]]]


def maxsim_by_blocks(
    query_lengths: Sequence[int],
    bounds: NDArray[np.int64],
    rows: NDArray[np.int64] | None,
    similarities: Similarities,
) -> NDArray[np.float32]:
    """Score documents block by block: ``similarities`` yields those of some tokens with consecutive query tokens.

    Shapes: bounds (D + 1,) where the documents' tokens begin and end, rows (R,) the documents to score (None: all of
    them) -> (Q, R). Raises: ValueError if one of them has no token.
    """
    starts, lengths = extents(bounds, rows)
    scores = np.zeros((len(query_lengths), len(starts)), dtype=np.float32)
    if not len(query_lengths) or not len(starts):
        return scores
    total = sum(query_lengths)
    query_starts: NDArray[np.int64] = np.cumsum([0, *query_lengths[:-1]])
    for first, last in _blocks(lengths, max_documents=max(1, BLOCK_MAXIMA // total)):
        at = np.cumsum(lengths[first:last]) - lengths[first:last]
        maxima = np.empty((last - first, total), dtype=np.float32)
        for start, some in similarities(_places(starts[first:last], lengths[first:last])):
            np.maximum.reduceat(some, at, axis=0, out=maxima[:, start : start + some.shape[1]])
        scores[:, first:last] = np.add.reduceat(maxima, query_starts, axis=1).T
    return scores


def extents(bounds: NDArray[np.int64], rows: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the tokens of documents (R,) begin, and how many they have. Raises: ValueError if one has none."""
    selected = np.arange(len(bounds) - 1, dtype=np.int64) if rows is None else rows
    starts, lengths = bounds[selected], bounds[selected + 1] - bounds[selected]
    if len(selected) and lengths.min() < 1:
        raise ValueError(f"document {selected[lengths.argmin()]} has no token: MaxSim is the maximum over its tokens")
    return starts, lengths


def _blocks(lengths: NDArray[np.int64], max_documents: int) -> Iterator[tuple[int, int]]:
    """Cut documents into runs [first, last) of at most BLOCK_TOKENS tokens; a longer document is a run of its own."""
    ends = np.cumsum(lengths)
    first, count = 0, len(lengths)
    while first < count:
        done = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right"))
        last = min(max(last, first + 1), first + max_documents, count)
        yield first, last
        first = last


def _places(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Places:
    """Return where the tokens of some documents are, end to end: a slice where they already lie so."""
    total = int(lengths.sum())
    if np.array_equal(starts[1:], starts[:-1] + lengths[:-1]):
        return slice(int(starts[0]), int(starts[0]) + total)
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(total)


def take(array: NDArray[Any], places: Places) -> NDArray[Any]:
    """Return some rows of an array, a view where they are a slice."""
    # `take` needs a tenth of the time of an index of the same rows.
    return array[places] if isinstance(places, slice) else array.take(places, axis=0)
