"""From tokens found to windows worth rescoring: what each would score if all known of it is what was found.

Where a query token found nothing in a window, the window scores at most as the last token it found elsewhere (Lee et
al., "Rethinking the role of token retrieval in multi-vector retrieval", NeurIPS 2023). The bound is seldom reached, so
a little less stands for what is missing.
"""

from collections.abc import Sequence
from ctypes import CDLL

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.arrays import first_of_each
from mbretrieve.index.kernels import KERNELS

_BELOW = 1 / 4
"""How far below the least score found a missing one is taken to lie, in spans of the scores its query token found.

Share of the exact best 10 of 12,000 functions (1.16 M tokens of code, 300 questions) among the best 100, by this factor
0, 1/8, 1/4, 3/8, 1/2: .866 .881 .887 .889 .888 (16 of 4,096 lists probed, k = 512), .938 .955 .959 .958 .952 (32 of
1,024, k = 1,024), .964 .966 .960 .949 .936 (32 of 4,096, k = 2,048). The more a query token found of what was visited,
the less is missing by chance; with the tenth to the sixth of it that ``plan.TABLE`` asks for, 1/4 needs a fifth less
windows than 1/8 to be scored for the same recall, at 1.3 and at 12.6 million tokens.
"""


def best_found(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best k tokens of each query token among those found in several segments.

    parts: scores (n, k_i) and rows (n, k_i) of each segment, the rows already told apart between segments (-inf, -1:
    none) -> scores (n, up to k), rows alike, in any order; of several segments, among equal scores those of the first.
    """
    if len(parts) == 1 and parts[0][0].shape[1] <= k:
        return parts[0]
    scores, rows = np.hstack([part[0] for part in parts]), np.hstack([part[1] for part in parts])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def candidates(
    scores: NDArray[np.float32], rows: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ``count`` most promising windows of one query, best first, and how far each is thought to score above
    a window of which nothing was found; fewer if fewer were found.

    scores (n, k) of the tokens found by each of n query tokens, in any order; rows (n, k) the windows they are in (-inf
    and -1: none). A window's score is ``sum_i max(scores[i, j] where rows[i, j] is it, else missing[i])`` with
    ``missing[i] = least of scores[i] - (best - least) / 4``; windows of equal score come by number.
    """
    if (kernel := KERNELS.wanted()) is not None:
        return _by_kernel(kernel, scores, rows, count)
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    n, k = rows.shape
    found = rows >= 0
    # Relative to the missing score, what is missing adds nothing: a window needs its own finds alone. A query token
    # that found nothing tells no windows apart.
    least = np.min(scores, axis=1, keepdims=True, initial=np.inf, where=found)
    missing = least - _BELOW * (scores[:, :1] - least)
    # Sorted as integers of (window, query token, place), each query token's best find in a window comes first among its
    # finds there; one key is sorted many times faster than three indirectly.
    places, tokens = k.bit_length(), n.bit_length()
    keys = np.sort(((rows << (tokens + places)) | (np.arange(n)[:, None] << places) | np.arange(k))[found])
    keys = keys[first_of_each(keys >> places)]
    token, place = (keys >> places) & ((1 << tokens) - 1), keys & ((1 << places) - 1)
    windows = keys >> (tokens + places)
    starts = np.flatnonzero(first_of_each(windows))
    gains = (scores - missing)[token, place]
    totals = np.add.reduceat(gains, starts) if len(starts) else gains
    # Sorting them all would take more time than the rest of this function.
    good = np.flatnonzero(totals >= np.partition(totals, -count)[-count]) if count < len(totals) else slice(None)
    order = np.argsort(-totals[good], kind="stable")[:count]
    return windows[starts][good][order], totals[good][order]


def _by_kernel(
    kernel: CDLL, scores: NDArray[np.float32], rows: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    scores, rows = np.ascontiguousarray(scores, dtype=np.float32), np.ascontiguousarray(rows, dtype=np.int64)
    most = min(count, rows.size)
    windows, totals = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.float32)
    found = np.zeros(1, dtype=np.int64)
    kernel.mbretrieve_candidates(
        *(scores.ctypes.data, rows.ctypes.data, *rows.shape, _BELOW, most),
        *(windows.ctypes.data, totals.ctypes.data, found.ctypes.data),
    )
    return windows[: found[0]], totals[: found[0]]
