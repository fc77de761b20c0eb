"""From tokens found to windows worth rescoring: what a window would score if all that is known of it is what was found.

A window that a query token did not find scores there at most as its last token found: that bound stands for it
(Lee et al., "Rethinking the role of token retrieval in multi-vector retrieval", NeurIPS 2023).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def best_found(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best k tokens of each query token among those found in several segments.

    parts: scores (n, k_i) and rows (n, k_i) of each segment, the rows already told apart between segments (-inf, -1:
    none) -> scores (n, up to k) best first, rows alike; among equal scores those of the first segment come first.
    """
    if len(parts) == 1:
        return parts[0][0][:, :k], parts[0][1][:, :k]
    scores, rows = np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def candidates(scores: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the ``count`` most promising windows of one query, best first; fewer if fewer were found.

    scores (n, k) of the tokens found by each of n query tokens, best first; rows (n, k) the windows they are in (-inf
    and -1: none). A window's score is ``sum_i max(scores[i, j] where rows[i, j] is it, else the least of scores[i])``;
    windows of equal score come by number.
    """
    n, k = rows.shape
    found = rows >= 0
    # Relative to the least score, what is missing adds nothing: a window needs its own finds alone. A query token that
    # found nothing tells no windows apart.
    least = np.min(scores, axis=1, keepdims=True, initial=np.inf, where=found)
    # Sorted as integers of (window, query token, place), each query token's best find in a window comes first among its
    # finds there; one key is sorted many times faster than three indirectly.
    places, tokens = k.bit_length(), n.bit_length()
    keys = np.sort(((rows << (tokens + places)) | (np.arange(n)[:, None] << places) | np.arange(k))[found])
    keys = keys[_first_of_each(keys >> places)]
    token, place = (keys >> places) & ((1 << tokens) - 1), keys & ((1 << places) - 1)
    windows = keys >> (tokens + places)
    starts = np.flatnonzero(_first_of_each(windows))
    gains = (scores - least)[token, place]
    totals = np.add.reduceat(gains, starts) if len(starts) else gains
    best: NDArray[np.int64] = windows[starts][np.argsort(-totals, kind="stable")[:count]]
    return best


def _first_of_each(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the first of each run of equal values."""
    first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first
