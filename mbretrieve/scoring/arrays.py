"""MaxSim of one question in numpy, for a process that does without torch: see ``sparing``. Formulas: ``search``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.scoring.blocks import Places, maxsim_by_blocks, take
from mbretrieve.scoring.compressed import SCALES, CompressedTokens

Floats = NDArray[np.float32]


def maxsim_rows(
    query: Floats, tokens: NDArray[Any], bounds: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> Floats:
    """Score one query against documents laid end to end, as ``search.maxsim_ragged_batch`` does.

    Shapes: query (I, dim) float32, tokens (T, dim) float16 or float32, perhaps mapped, bounds (D + 1,), rows (R,) ->
    (R,). Raises: ValueError if a scored document has no token.
    """

    def similarities(places: Places) -> Iterator[tuple[int, Floats]]:
        yield 0, take(tokens, places).astype(np.float32) @ query.T

    scores: Floats = maxsim_by_blocks([len(query)], bounds, rows, similarities)[0]
    return scores


def maxsim_codes(
    query: Floats,
    tokens: CompressedTokens,
    bounds: NDArray[np.int64],
    rows: NDArray[np.int64] | None = None,
    coarse: Floats | None = None,
) -> Floats:
    """Score one query against compressed documents laid end to end, as ``search.maxsim_compressed`` does.

    Shapes: query (I, groups * width) float32, coarse (I, L) its products with the centroids if already known, bounds
    (D + 1,), rows (R,) -> (R,). Raises: ValueError if a scored document has no token.
    """
    stages, groups, entries, width = tokens.residuals.shape
    parts = query.reshape(len(query), groups, width).transpose(1, 2, 0)  # (groups, width, I)
    tables = (tokens.residuals @ parts).reshape(stages * groups, entries, -1)
    of_centroids = np.ascontiguousarray((query @ tokens.centroids.T if coarse is None else coarse).T)  # (L, I)

    def similarities(places: Places) -> Iterator[tuple[int, Floats]]:
        codes = take(tokens.codes, places)
        sums = of_centroids.take(take(tokens.assignments, places), axis=0)
        for table, of_group in zip(tables, codes.T, strict=False):  # the last code is the length
            sums += table.take(of_group, axis=0)
        sums *= SCALES[codes[:, -1:]]
        yield 0, sums

    scores: Floats = maxsim_by_blocks([len(query)], bounds, rows, similarities)[0]
    return scores
