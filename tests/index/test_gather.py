"""From tokens found to windows: the vectorised gathering against a dictionary, and the best of several segments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.index.gather import best_found, candidates


def found(seed: int, n: int, k: int, windows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw what a search finds: scores best first, some tokens finding less than k."""
    rng = np.random.default_rng(seed)
    # Scores are multiples of 1/8, and an eighth of their spans is exact: sums are the same in any order, ties are many.
    scores = -np.sort(-rng.integers(-20, 20, (n, k)) / 8, axis=1).astype(np.float32)
    rows = rng.integers(0, windows, (n, k))
    missing = np.arange(k) >= (rng.random((n, 1)) < share) * k + rng.integers(0, k + 1, (n, 1))
    scores[missing], rows[missing] = -np.inf, -1
    return scores, rows


def by_dictionary(scores: np.ndarray, rows: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    finds: dict[int, dict[int, float]] = {}
    for i, (token_scores, token_rows) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True)):
        for score, row in zip(token_scores, token_rows, strict=True):
            if row >= 0:
                finds.setdefault(row, {}).setdefault(i, score)
    least = [min((s for s in token if s > -np.inf), default=0.0) for token in scores.tolist()]
    missing = [low - (max(token[0], low) - low) / 4 for token, low in zip(scores.tolist(), least, strict=True)]
    totals = {row: sum(found.get(i, missing[i]) for i in range(len(scores))) for row, found in finds.items()}
    best = sorted(totals, key=lambda row: (-totals[row], row))[:count]
    return best, [totals[row] - sum(missing) for row in best]


@pytest.mark.usefixtures("kernels")
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 20),
    k=st.integers(1, 40),
    windows=st.sampled_from([1, 7, 100, 1 << 40]),
    count=st.sampled_from([1, 5, 1000]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_candidates_are_those_of_a_dictionary(
    seed: int, n: int, k: int, windows: int, count: int, share: float
) -> None:
    scores, rows = found(seed, n, k, windows, share)
    order = np.random.default_rng(seed).permutation(k)
    windows, above = candidates(scores[:, order], rows[:, order], count)
    expected, by_hand = by_dictionary(scores, rows, count)
    assert windows.tolist() == expected
    np.testing.assert_allclose(above, by_hand, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), depths=st.lists(st.integers(1, 30), min_size=1, max_size=4), k=st.integers(1, 40))
def test_the_best_of_segments_are_the_best_of_all(seed: int, depths: list[int], k: int) -> None:
    parts = [found(seed + i, 5, depth, 50, 0.5) for i, depth in enumerate(depths)]
    scores, rows = best_found(parts, k)
    scores, rows = (
        -np.sort(-scores, axis=1),
        np.take_along_axis(rows, np.argsort(-scores, axis=1, kind="stable"), axis=1),
    )
    every = np.hstack([part[0] for part in parts])
    assert (scores == -np.sort(-every, axis=1)[:, :k]).all()
    assert ((rows < 0) == np.isneginf(scores)).all()
    pairs = [
        set(zip(*(np.hstack(some)[i].tolist() for some in zip(*parts, strict=True)), strict=True)) for i in range(5)
    ]
    assert all(set(zip(scores[i].tolist(), rows[i].tolist(), strict=True)) <= pairs[i] for i in range(5))
