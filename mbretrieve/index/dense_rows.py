"""One dense vector a row of a segment, and what finds near ones among many: written, and mapped for reading."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index import plan
from mbretrieve.index.files import ArrayWriter, MappedFolder
from mbretrieve.index.records import DENSE_FILE

if TYPE_CHECKING:
    from mbretrieve.index.derived import Near


def finish_dense(vectors: ArrayWriter, rows: int, memory: int) -> list[str]:
    """Make written vectors durable, and beside many of them the files by which they are searched; returns the names.

    memory: bytes to work in, about.
    """
    names = [vectors.path.name]
    if plan.dense_row(rows).search != "flat":
        from mbretrieve.index.derived import derive  # it needs FAISS and torch, which not every writer does

        names += derive(vectors.path.parent, vectors.mapped(rows), memory)
    vectors.finish(rows)
    return names


class DenseRows:
    """The unit ``vectors`` (rows, dim) of a committed segment. Raises: FileNotFoundError; IndexFormatError."""

    def __init__(self, files: MappedFolder, derived: frozenset[str], rows: int, dim: int) -> None:
        """Map them. derived: the segment's files by which they are searched; with none each is compared."""
        self._files, self._derived = files, derived
        self.vectors: NDArray[np.float32] = files.map(DENSE_FILE, np.float32, (rows, dim))

    def check_rows(self, rows: NDArray[np.int64]) -> None:
        """Check the blocks that hold these rows against their checksums, each block once. Raises: IndexFormatError."""
        self._files.check_rows(DENSE_FILE, self.vectors, rows, rows + 1)

    def check_run(self, first: int, last: int) -> None:
        """Check the blocks that hold the rows ``first`` to ``last`` - 1, as ``check_rows`` does."""
        self._files.check_rows(DENSE_FILE, self.vectors, np.array([first]), np.array([last]))

    @cached_property
    def near(self) -> "Near | None":
        """What finds near vectors among many, mapped when first asked for; None: compare with each.

        Raises: FileNotFoundError; IndexFormatError if it does not fit the vectors.
        """
        if not self._derived:
            return None
        from mbretrieve.index.derived import open_derived  # it needs FAISS and torch, which not every reader does

        return open_derived(self._files, self._derived, DENSE_FILE, self.vectors)
