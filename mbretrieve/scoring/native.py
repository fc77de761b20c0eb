"""MaxSim by the kernel of ``codes.cpp``, where this machine's compiler has built it.

It is built by ``prepare``, which whoever packs an index calls: a second's work. A process that only searches calls no
compiler before it has answered many questions, and waits for it then no more than before.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.compiled import INT, LONG, POINTER, Compiled
from mbretrieve.cores import usable_cores
from mbretrieve.scoring.blocks import extents
from mbretrieve.scoring.compressed import SCALES, CompressedTokens

Floats = NDArray[np.float32]

_LANES = 16  # query tokens that the kernel takes at a time
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}
KERNEL = Compiled(
    "mbretrieve.scoring",
    "codes",
    ("-O3", "-march=native", "-ffp-contract=fast"),
    {
        "mbretrieve_look": (POINTER, INT, INT, POINTER, LONG, POINTER, INT, POINTER, POINTER, INT),
        "mbretrieve_code_tables": (POINTER, INT, POINTER, INT, INT, INT, POINTER),
        "mbretrieve_score_vectors": (POINTER, INT, INT, POINTER, INT, POINTER, POINTER, LONG, POINTER, INT),
        "mbretrieve_score_codes": (
            *(POINTER, POINTER, POINTER, POINTER, INT, INT, INT),
            *(POINTER, POINTER, INT, LONG),
            *(POINTER, POINTER, LONG, POINTER, INT),
        ),
    },
)


def prepare() -> bool:
    """Build the kernel, unless it is there; False where it cannot be."""
    return KERNEL.get(build=True) is not None


class Laned(NamedTuple):
    """A query (I, dim) as the kernel has it, and its products with centroids (L, dim), each 16 of its tokens side by
    side in whole cache lines: columns (ceil(I / 16), dim, 16) and products (ceil(I / 16), L, 16), both float32."""

    query: Floats
    columns: Floats
    products: Floats

    def by_token(self) -> Floats:
        """Return the products with the centroids as others have them: (I, L)."""
        return self.products.transpose(0, 2, 1).reshape(-1, self.products.shape[1])[: len(self.query)]


def look(query: Floats, centroids: Floats, count: int) -> tuple[Laned, NDArray[np.int64], Floats] | None:
    """Multiply a query (I, dim) by centroids (L, dim), and return with that the ``count`` largest products of each of
    its tokens: the centroids' numbers and themselves, (I, count), largest first, equal ones by number. None: there is
    no kernel.

    What is not a number is none of the largest: -1 and -inf fill up.
    """
    kernel = KERNEL.wanted()
    if kernel is None:
        return None
    centroids = np.ascontiguousarray(centroids, dtype=np.float32)
    columns = _laned(query)
    products = _room(len(columns), len(centroids))
    numbers, largest = np.empty((len(query), count), dtype=np.int64), np.empty((len(query), count), dtype=np.float32)
    kernel.mbretrieve_look(
        *(columns.ctypes.data, *query.shape, centroids.ctypes.data, len(centroids), products.ctypes.data),
        *(count, largest.ctypes.data, numbers.ctypes.data, threads()),
    )
    return Laned(query, columns, products), numbers, largest


def native_maxsim(
    query: Floats,
    tokens: NDArray[Any],
    bounds: NDArray[np.int64],
    rows: NDArray[np.int64] | None = None,
    *,
    bfloat16: bool = False,
) -> Floats | None:
    """Return what ``arrays.maxsim_rows`` does by the kernel; None where there is none, or the arrays do not suit it.

    bfloat16: tokens are numbers of that type, as (T, dim) uint16, which numpy does not have.
    """
    kernel = KERNEL.wanted()
    kind = _KINDS.get("bfloat16" if bfloat16 else tokens.dtype.name)
    if kernel is None or kind is None or not _plain(tokens) or query.shape[1] != tokens.shape[1]:
        return None
    starts, lengths = _inside(bounds, rows, len(tokens))
    columns, out = _laned(query), np.empty(len(lengths), dtype=np.float32)
    kernel.mbretrieve_score_vectors(
        *(columns.ctypes.data, *query.shape, tokens.ctypes.data, kind),
        *(starts.ctypes.data, lengths.ctypes.data, len(lengths), out.ctypes.data, threads()),
    )
    return out


def native_scorer(
    query: Floats | Laned,
    tokens: CompressedTokens,
    bounds: NDArray[np.int64],
    coarse: Floats | None = None,
) -> Callable[[NDArray[np.int64] | None], Floats] | None:
    """Return the function of ``codes_scorer`` by the kernel; None where there is none, or the arrays do not suit it."""
    kernel = KERNEL.wanted()
    if kernel is None:
        return None
    codes, assignments = tokens.codes, tokens.assignments
    if assignments.dtype not in (np.uint16, np.uint32) or not (_plain(codes) and _plain(assignments)):
        return None
    if not isinstance(query, Laned):
        if coarse is None:
            coarse = query @ tokens.centroids.T
        query = Laned(query, _laned(query), _laned(coarse))
    count, columns, of_centroids = len(query.query), query.columns, query.products
    least = _laned(np.zeros((count, 1), dtype=np.float32))
    if (spaced := tokens.spacing) is not None:
        lowest, steps = spaced
        least = _laned((query.query @ lowest)[:, None])
        tables = _laned(query.query * steps)
    else:
        stages, groups, entries, width = tokens.residuals.shape
        residuals = np.ascontiguousarray(tokens.residuals, dtype=np.float32)
        tables = _room(len(columns), stages * groups * entries)
        kernel.mbretrieve_code_tables(
            *(columns.ctypes.data, count, residuals.ctypes.data, stages, groups, width, tables.ctypes.data)
        )

    def score(rows: NDArray[np.int64] | None) -> Floats:
        starts, lengths = _inside(bounds, rows, len(codes))
        out = np.empty(len(lengths), dtype=np.float32)
        kernel.mbretrieve_score_codes(
            *(tables.ctypes.data, of_centroids.ctypes.data, least.ctypes.data, SCALES.ctypes.data),
            *(count, codes.shape[1] - 1, spaced is not None),
            *(codes.ctypes.data, assignments.ctypes.data, assignments.itemsize == 4, len(tokens.centroids)),
            *(starts.ctypes.data, lengths.ctypes.data, len(lengths), out.ctypes.data, threads()),
        )
        return out

    return score


def _inside(
    bounds: NDArray[np.int64], rows: NDArray[np.int64] | None, tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``extents``. Raises: ValueError if they are not within the tokens there are."""
    starts, lengths = extents(bounds, rows)
    last = int((starts + lengths).max(initial=0))
    if last > tokens or starts.min(initial=0) < 0:
        raise ValueError(f"documents end at token {last}, but there are {tokens}")
    return starts, lengths


def _room(parts: int, columns: int) -> Floats:
    """Return room for what each 16 of a query's tokens have, (parts, columns, 16), in whole cache lines."""
    room = np.empty((parts * columns + 1) * _LANES, dtype=np.float32)
    first = -room.ctypes.data % 64 // room.itemsize
    return room[first : first + len(room) - _LANES].reshape(parts, columns, _LANES)


def _laned(columns: Floats) -> Floats:
    """Return (I, n) as the kernel reads it: (ceil(I / 16), n, 16), zeros where there is none of the I."""
    out = _room(-(-len(columns) // _LANES), columns.shape[1])
    for part, some in enumerate(out):
        of_part = columns[part * _LANES : (part + 1) * _LANES]
        some[:, : len(of_part)] = of_part.T
        some[:, len(of_part) :] = 0
    return out


def _plain(array: NDArray[Any]) -> bool:
    return array.flags.c_contiguous and array.dtype.isnative


def threads() -> int:
    """Return how many threads a kernel may take: torch's number, or one a core where torch is not there."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else usable_cores()
