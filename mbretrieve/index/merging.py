"""Which segments a commit rewrites, so that small commits leave few files behind and deletes give the disk back."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

FAN = 8  # segments of one size become one of the next size, so a vector is copied once a size
SMALLEST = 1 << 14  # tokens; smaller segments are of one size
LARGEST = 1 << 19  # tokens; larger segments are left alone while they live: a commit must not copy the whole index


class SegmentSize(NamedTuple):
    """A segment's key, its vectors, and those of them that a window names."""

    key: int
    tokens: int
    live_tokens: int


def segments_to_merge(sizes: Sequence[SegmentSize]) -> list[int]:
    """Return the keys of the segments whose live windows are to be copied into the segment being written.

    Those of one size class once they are FAN, and each that is dead by more than half.
    """
    classes: defaultdict[int, list[int]] = defaultdict(list)
    keys = []
    for size in sizes:
        if 0 < size.live_tokens < size.tokens / 2:
            keys.append(size.key)
        elif 0 < size.live_tokens <= LARGEST:
            classes[_size_class(size.live_tokens)].append(size.key)
    for members in classes.values():
        if len(members) >= FAN:
            keys += members
    return keys


def _size_class(tokens: int) -> int:
    size, limit = 0, SMALLEST
    while tokens > limit:
        size, limit = size + 1, limit * FAN
    return size
