"""What numpy does in two steps: runs of equal values, distinct values, and the numbers of many ranges."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def first_of_each(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the first of each run of equal values, (n,)."""
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first


def greatest(scores: NDArray[Any], k: int) -> float:
    """Return the ``k``-th greatest of at least ``k`` scores."""
    return float(np.partition(scores, len(scores) - k)[len(scores) - k])


def best_of(scores: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """Mark the ``k`` greatest of scores (n,), and all that tie with the last of them; all if there are fewer."""
    return np.asarray(scores >= greatest(scores, k)) if k < len(scores) else np.ones(len(scores), dtype=bool)


def to_array(numbers: Collection[int]) -> Integers:
    """Return numbers as a rising array."""
    return np.sort(np.fromiter(numbers, dtype=np.int64, count=len(numbers)))


def distinct(values: Integers) -> Integers:
    """Return the values of an array of any shape, each once, rising."""
    # Not np.unique: it imports numpy.ma first, 40 ms of a command that searches once.
    ordered = np.sort(values, axis=None)
    return ordered[first_of_each(ordered)]


def is_among(values: Integers, some: Integers) -> NDArray[np.bool_]:
    """Mark the values (n,) that are among some others, in any order."""
    ordered = np.sort(some)  # nor np.isin, which calls np.unique
    return np.searchsorted(ordered, values, side="right") > np.searchsorted(ordered, values)


def spread(starts: Integers, stops: Integers) -> Integers:
    """Return the numbers of the ranges [start, stop), one range after the other."""
    counts = stops - starts
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(int(counts.sum()))
