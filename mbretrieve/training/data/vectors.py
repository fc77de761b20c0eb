"""A teacher's vectors of a source's rows, made once: a teacher at every step would cost more than a small student."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.training.data.digests import joined, of_file

NAMES = ("queries", "positives")


class TeacherVectors:
    """``queries.npy`` and ``positives.npy`` of a folder, memory-mapped: (rows, dim) float16 or float32 each.

    Raises: DataError for a file that is missing or no such array, or has another number of rows than the source.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        self._sides = [_open(folder / f"{name}.npy", rows) for name in NAMES]
        widths = [side.shape[1] for side in self._sides]
        if widths[0] != widths[1]:
            raise DataError(f"{folder}: queries have {widths[0]} numbers and positives {widths[1]}, expected as many")
        self.dim: int = widths[0]
        self.digest = joined(of_file(folder / f"{name}.npy") for name in NAMES)

    def __getitem__(self, at: int) -> NDArray[np.float32]:
        """Return a row's two vectors, the query's and the positive's: (2, dim)."""
        return np.stack([np.asarray(side[at], np.float32) for side in self._sides])


def _open(path: Path, rows: int) -> NDArray[np.floating]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an array ({error}): make the teacher's vectors again") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype not in (np.float16, np.float32):
        raise DataError(f"{path} is no array of vectors, expected (rows, dim) of float16 or float32")
    if len(found) != rows:
        raise DataError(
            f"{path} has {len(found)} vectors, expected {rows}, one for each row of the source: make them again"
        )
    return found
