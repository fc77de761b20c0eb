"""MaxSim over compressed tokens by the kernel of ``codes.cpp``, where this machine's compiler has built it.

It is built by ``prepare``, which whoever packs an index calls: a second's work. A process that only searches calls no
compiler before it has answered many questions, and waits for it then no more than before.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.compiled import INT, LONG, POINTER, Compiled
from mbretrieve.cores import usable_cores
from mbretrieve.scoring.blocks import extents
from mbretrieve.scoring.compressed import SCALES, CompressedTokens, spacing

_LANES = 16  # query tokens that the kernel takes at a time
_MANY = 32  # scorers asked for in a process that is taken to be there to stay
KERNEL = Compiled(
    "mbretrieve.scoring",
    "codes",
    ("-O3", "-march=native", "-ffp-contract=fast"),
    {
        "mbretrieve_score_codes": (
            *(POINTER, POINTER, POINTER, INT, INT, INT),
            *(POINTER, POINTER, INT, LONG),
            *(POINTER, POINTER, LONG, POINTER, INT),
        )
    },
)
_asked = 0


def prepare() -> bool:
    """Build the kernel, unless it is there; False where it cannot be."""
    return KERNEL.get(build=True) is not None


def native_scorer(
    query: NDArray[np.float32],
    tokens: CompressedTokens,
    bounds: NDArray[np.int64],
    coarse: NDArray[np.float32] | None = None,
) -> Callable[[NDArray[np.int64] | None], NDArray[np.float32]] | None:
    """Return the function of ``codes_scorer`` by the kernel; None where there is none, or the arrays do not suit it."""
    kernel = KERNEL.get()
    if kernel is None:
        _ask()
        return None
    codes, assignments = tokens.codes, tokens.assignments
    if assignments.dtype not in (np.uint16, np.uint32) or not (_plain(codes) and _plain(assignments)):
        return None
    _, groups, _, width = tokens.residuals.shape
    if coarse is None:
        coarse = query @ tokens.centroids.T
    if (spaced := spacing(tokens.residuals)) is not None:
        lowest, steps = spaced
        coarse = coarse + (query @ lowest)[:, None]
        products = query * steps
    else:
        parts = query.reshape(len(query), groups, width).transpose(1, 2, 0)  # (groups, width, I)
        products = (tokens.residuals @ parts).reshape(-1, len(query)).T  # (I, stages * groups * 256)
    of_centroids, tables = _laned(coarse), _laned(products)

    def score(rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        starts, lengths = extents(bounds, rows)
        last = int((starts + lengths).max(initial=0))
        if last > len(codes) or starts.min(initial=0) < 0:
            raise ValueError(f"documents end at token {last}, but there are {len(codes)}")
        out = np.empty(len(lengths), dtype=np.float32)
        kernel.mbretrieve_score_codes(
            *(tables.ctypes.data, of_centroids.ctypes.data, SCALES.ctypes.data),
            *(len(query), codes.shape[1] - 1, spaced is not None),
            *(codes.ctypes.data, assignments.ctypes.data, assignments.itemsize == 4, len(tokens.centroids)),
            *(starts.ctypes.data, lengths.ctypes.data, len(lengths), out.ctypes.data, _threads()),
        )
        return out

    return score


def _laned(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (I, n) as the kernel reads it, 16 of the I in a row, in whole cache lines: (ceil(I / 16), n, 16)."""
    parts = -(-len(columns) // _LANES)
    room = np.zeros(parts * columns.shape[1] * _LANES + _LANES, dtype=np.float32)
    first = -room.ctypes.data % 64 // room.itemsize
    out = room[first : first + len(room) - _LANES].reshape(parts, columns.shape[1], _LANES)
    for part, some in enumerate(out):
        of_part = columns[part * _LANES : (part + 1) * _LANES]
        some[:, : len(of_part)] = of_part.T
    return out


def _plain(array: NDArray[Any]) -> bool:
    return array.flags.c_contiguous and array.dtype.isnative


def _threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else usable_cores()


def _ask() -> None:
    """Count, and let the kernel be built beside a process that asks again and again."""
    global _asked
    _asked += 1
    if _asked == _MANY:
        threading.Thread(target=prepare, daemon=True).start()
