"""Which window each row of a segment is: a file beside its vectors, written with them and as immutable.

What is deleted since is marked in the catalogue. So opening an index reads a bit for a window, whatever there is to be
known of it, and a search reads the windows that it found.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.arrays import first_of_each, spread
from mbretrieve.index.files import MappedFolder

WINDOWS = "windows.npy"

Integers = NDArray[np.int64]
Table = NDArray[np.uint32]
"""Rows of ``Window``s, (rows, 4)."""


class Window(NamedTuple):
    """A row: its content, which of the content's windows it is, from 0, and the characters that it spans."""

    content: int
    number: int
    start: int
    stop: int


class Places:
    """Where the windows of contents are among rows, (rows,) the content of each; those of one follow each other."""

    def __init__(self, contents: NDArray[np.integer]) -> None:
        starts = np.flatnonzero(first_of_each(contents))
        order = np.argsort(contents[starts], kind="stable")  # nearly sorted: they rise where they were written
        self._contents = contents[starts[order]].astype(np.int64)
        self._starts, self._stops = starts[order], np.append(starts[1:], len(contents))[order]

    def rows(self, contents: Integers) -> Integers:
        """Return the rows, rising, of those of some contents that are here."""
        if not len(self._contents):
            return np.empty(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._contents, contents), len(self._contents) - 1)
        at = at[self._contents[at] == contents]
        return np.sort(spread(self._starts[at], self._stops[at]))


class Windows:
    """The windows of a committed segment, mapped; each block of the file is checked before its first use.

    Raises, wherever it reads: IndexFormatError if the file is damaged.
    """

    def __init__(self, files: MappedFolder, rows: int) -> None:
        self._files = files
        self._table: Table = files.map(WINDOWS, np.uint32, (rows, len(Window._fields)))

    @property
    def table(self) -> Table:
        """All rows."""
        self._files.verify_file(WINDOWS)
        return self._table

    def contents(self, rows: Integers) -> Integers:
        """Return the contents of some rows."""
        self._check(rows)
        return np.asarray(self._table[rows, 0], dtype=np.int64)

    def __getitem__(self, row: int) -> Window:
        [window] = self.read(np.array([row]))
        return window

    def read(self, rows: Integers) -> list[Window]:
        """Return the windows in some rows."""
        self._check(rows)
        return [Window(*fields) for fields in self._table[rows].tolist()]

    @cached_property
    def places(self) -> Places:
        """Where each content is; made when first asked for."""
        return Places(np.ascontiguousarray(self.table[:, 0]))

    def _check(self, rows: Integers) -> None:
        self._files.check_rows(WINDOWS, self._table, rows, rows + 1)


def is_complete(table: Table) -> bool:
    """Say whether the windows of every content follow each other, numbered from 0."""
    starts = np.flatnonzero(first_of_each(table[:, 0]))
    numbers = np.arange(len(table)) - np.repeat(starts, np.diff(starts, append=len(table)))
    return bool((table[:, 1] == numbers).all()) and len(np.unique(table[starts, 0])) == len(starts)
