"""Paired tests against scipy, against what chance must give, and by hand."""

import sys

import numpy as np
import pytest
from scipy import stats

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.evaluation import significance
from mbretrieve.evaluation.significance import compare, paired_bootstrap, paired_t_test


def named(values: np.ndarray) -> dict[str, float]:
    return {f"q{row}": float(value) for row, value in enumerate(values)}


@pytest.mark.parametrize("seed", range(5))
def test_the_t_test_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(size=60), rng.uniform(size=60) + 0.05
    ours = compare(named(a), named(b), "t-test")
    theirs = stats.ttest_rel(b, a)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_interval_is_scipys_and_p_near_the_t_tests(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.02, 0.2, 400)
    low, high, p = paired_bootstrap(differences)
    theirs = stats.bootstrap((differences,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    interval = theirs.confidence_interval
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=2e-3)
    assert p == pytest.approx(paired_t_test(differences)[2], abs=0.02)


def test_equal_systems_are_called_different_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    called = sum(paired_bootstrap(rng.normal(size=50), samples=400)[2] < 0.05 for _ in range(400))
    assert 6 <= called <= 36  # 20 expected


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(size=100)
    whole = paired_bootstrap(differences, samples=1_000)
    monkeypatch.setattr(significance, "_CELLS", 700)
    assert paired_bootstrap(differences, samples=1_000) == whole


def test_wins_losses_and_the_worst_queries() -> None:
    a = {"q1": 0.5, "q2": 1.0, "q3": 0.2, "q4": 0.7}
    b = {"q4": 0.7, "q3": 0.9, "q2": 0.1, "q1": 0.25}
    result = compare(a, b)
    assert (result.wins, result.losses, result.ties) == (1, 2, 1)
    assert result.difference == pytest.approx(result.b - result.a)
    assert result.worst(10) == [("q2", 1.0, 0.1), ("q1", 0.5, 0.25)]
    assert result.worst(1) == [("q2", 1.0, 0.1)]
    assert result.low <= result.difference <= result.high


@pytest.mark.parametrize("test", ["bootstrap", "t-test"])
def test_a_system_against_itself(test: significance.Test) -> None:
    scores = named(np.linspace(0, 1, 9))
    result = compare(scores, scores, test)
    assert (result.difference, result.p, result.worst(5)) == (0.0, 1.0, [])


def test_a_constant_gain_is_certain() -> None:
    a = named(np.array([0.25, 0.5, 0.125]))
    b = {query: score + 0.25 for query, score in a.items()}
    assert compare(a, b, "t-test").p == 0.0
    assert compare(a, b).p == pytest.approx(1 / 10_001)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({"q1": 1.0, "q2": 1.0}, {"q2": 1.0, "q3": 0.0}, r"\(1 only in the first, 1 only in the second\)"),
        ({"q1": 1.0}, {"q1": 1.0}, "1 query in common"),
        ({}, {}, "0 query in common"),
    ],
)
def test_results_that_cannot_be_paired(a: dict[str, float], b: dict[str, float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        compare(a, b)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(MissingExtraError, match=r'pip install "mbretrieve\[eval\]"'):
        paired_t_test(np.ones(3))


def test_a_comparison_in_lines_shows_the_texts() -> None:
    result = compare({"q1": 0.5, "q2": 1.0, "q3": 0.2}, {"q3": 0.9, "q2": 0.1, "q1": 0.25})
    lines = significance.describe(result, ("old", "new"), {"q2": "capital\nof France"})
    assert lines[0] == "A  0.5667  old"
    assert lines[3] == "B wins 1 queries, loses 2, ties 0"
    assert lines[-2:] == ["  1.000 -> 0.100  q2  capital of France", "  0.500 -> 0.250  q1"]
