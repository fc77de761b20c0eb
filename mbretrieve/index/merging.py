"""Which segments a commit rewrites, so that small commits leave few files behind and deletes give the disk back."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

FAN = 8  # segments of one size become one of the next size, so a vector is copied once a size
SMALLEST = 1 << 14  # tokens; smaller segments are of one size
LARGEST_RAW = 1 << 19  # tokens; larger raw segments are left alone while they live: nothing is gained by copying them


class SegmentSize(NamedTuple):
    """A segment's key, its vectors, those of them that a window names, and its codebook (None: it is raw)."""

    key: int
    tokens: int
    live_tokens: int
    codebook: int | None = None


def segments_to_merge(sizes: Sequence[SegmentSize]) -> list[list[int]]:
    """Return groups of keys; the live windows of each group are to be copied into one segment.

    A group is of one codebook, and has the segments of one size class once they are FAN, and those of any size that are
    dead by more than half.
    """
    classes: defaultdict[tuple[int | None, int], list[int]] = defaultdict(list)
    groups: defaultdict[int | None, list[int]] = defaultdict(list)
    for size in sizes:
        if 0 < size.live_tokens < size.tokens / 2:
            groups[size.codebook].append(size.key)
        elif size.live_tokens > 0 and (size.codebook is not None or size.live_tokens <= LARGEST_RAW):
            classes[size.codebook, _size_class(size.live_tokens)].append(size.key)
    for (codebook, _), members in classes.items():
        if len(members) >= FAN:
            groups[codebook] += members
    return list(groups.values())


def segments_of_one_sort(sizes: Sequence[SegmentSize]) -> list[list[int]]:
    """Return groups of keys as ``segments_to_merge`` does, but of all segments that are not as good as can be."""
    sorts: defaultdict[int | None, list[SegmentSize]] = defaultdict(list)
    for size in sizes:
        sorts[size.codebook].append(size)
    return [
        [size.key for size in members]
        for members in sorts.values()
        if len(members) > 1 or members[0].live_tokens < members[0].tokens
    ]


def _size_class(tokens: int) -> int:
    size, limit = 0, SMALLEST
    while tokens > limit:
        size, limit = size + 1, limit * FAN
    return size
