"""MaxSim of one question in numpy, for a process that does without torch: see ``sparing``. Formulas: ``search``."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.scoring.blocks import Places, maxsim_by_blocks, take
from mbretrieve.scoring.compressed import SCALES, CompressedTokens
from mbretrieve.scoring.native import native_maxsim, native_scorer

Floats = NDArray[np.float32]


def maxsim_rows(
    query: Floats, tokens: NDArray[Any], bounds: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> Floats:
    """Score one query against documents laid end to end, as ``search.maxsim_ragged_batch`` does.

    Shapes: query (I, dim) float32, tokens (T, dim) float16 or float32, perhaps mapped, bounds (D + 1,), rows (R,) ->
    (R,). Raises: ValueError if a scored document has no token.
    """
    if (by_kernel := native_maxsim(query, tokens, bounds, rows)) is not None:
        return by_kernel

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
    return codes_scorer(query, tokens, bounds, coarse)(rows)


def codes_scorer(
    query: Floats, tokens: CompressedTokens, bounds: NDArray[np.int64], coarse: Floats | None = None
) -> Callable[[NDArray[np.int64] | None], Floats]:
    """Return a function from rows (R,) to what ``maxsim_codes`` says of them, (R,): for who asks it in turns."""
    if (by_kernel := native_scorer(query, tokens, bounds, coarse)) is not None:
        return by_kernel
    add = _by_numbers(query, tokens) or _by_tables(query, tokens)
    of_centroids = np.ascontiguousarray((query @ tokens.centroids.T if coarse is None else coarse).T)  # (L, I)

    def similarities(places: Places) -> Iterator[tuple[int, Floats]]:
        codes = take(tokens.codes, places)
        sums = of_centroids.take(take(tokens.assignments, places), axis=0)
        add(sums, codes[:, :-1])
        sums *= SCALES[codes[:, -1:]]
        yield 0, sums

    def score(rows: NDArray[np.int64] | None) -> Floats:
        scores: Floats = maxsim_by_blocks([len(query)], bounds, rows, similarities)[0]
        return scores

    return score


def _by_tables(query: Floats, tokens: CompressedTokens) -> Callable[[Floats, NDArray[np.uint8]], None]:
    """Return what adds to (t, I) the products of a query with what the codes (t, stages * groups) stand for."""
    stages, groups, entries, width = tokens.residuals.shape
    parts = query.reshape(len(query), groups, width).transpose(1, 2, 0)  # (groups, width, I)
    tables = (tokens.residuals @ parts).reshape(stages * groups, entries, -1)

    def add(sums: Floats, codes: NDArray[np.uint8]) -> None:
        for table, of_group in zip(tables, codes.T, strict=True):
            sums += table.take(of_group, axis=0)

    return add


def _by_numbers(query: Floats, tokens: CompressedTokens) -> Callable[[Floats, NDArray[np.uint8]], None] | None:
    """Return what ``_by_tables`` does, if a code is a number: ``q . (lowest + code * steps)``."""
    if (spaced := tokens.spacing) is None:
        return None
    lowest, steps = spaced
    weights, least = (query * steps).T, query @ lowest  # (groups, I), (I,)

    def add(sums: Floats, codes: NDArray[np.uint8]) -> None:
        sums += codes.astype(np.float32) @ weights
        sums += least

    return add
