"""Is one system better than another on these queries, and on which? Paired tests over per-query scores."""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError, MissingExtraError

Test = Literal["bootstrap", "t-test"]

SAMPLES = 10_000
_CELLS = 1 << 22  # how many resampled differences are held at once


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on the same queries: ``difference`` is B's mean minus A's, ``low`` to ``high`` its 95% interval.

    ``p`` is two-sided: how often a difference at least this large comes from systems that are equal.
    ``changes`` are (query, A's score, B's score), B's greatest loss first.
    """

    test: Test
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int
    ties: int
    changes: list[tuple[str, float, float]]

    def worst(self, count: int) -> list[tuple[str, float, float]]:
        """The queries on which B loses most to A: at most ``count``, and only losses."""
        return [change for change in self.changes[:count] if change[2] < change[1]]


def describe(comparison: Comparison, names: tuple[str, str], texts: Mapping[str, str], count: int = 10) -> list[str]:
    """A comparison in lines for a person: the means, the test, wins and losses, and the worst queries with their texts.

    ``texts`` are the queries'; one that is not there is shown by its id alone.
    """
    a, b = names
    lines = [
        f"A  {comparison.a:.4f}  {a}",
        f"B  {comparison.b:.4f}  {b}",
        f"B - A  {comparison.difference:+.4f}  95% interval {comparison.low:+.4f} to {comparison.high:+.4f}, "
        f"p = {comparison.p:.4g} (paired {comparison.test})",
        f"B wins {comparison.wins} queries, loses {comparison.losses}, ties {comparison.ties}",
    ]
    worst = comparison.worst(count)
    if worst:
        lines.append("B's greatest losses (A's score -> B's):")
    for query, of_a, of_b in worst:
        text = " ".join(texts.get(query, "").split())
        lines.append(f"  {of_a:.3f} -> {of_b:.3f}  {query}  {text[:120]}".rstrip())
    return lines


def compare(a: Mapping[str, float], b: Mapping[str, float], test: Test = "bootstrap") -> Comparison:
    """Compare two systems by their scores on each query.

    Raises: DataError if they were not scored on the same queries, or on fewer than two; MissingExtraError for a t-test.
    """
    if a.keys() != b.keys():
        only_a, only_b = len(a.keys() - b.keys()), len(b.keys() - a.keys())
        raise DataError(
            f"the two results are not over the same queries ({only_a} only in the first, {only_b} only in the second): "
            "compare results of one task on the same data"
        )
    if len(a) < 2:
        raise DataError(f"{len(a)} query in common: a paired test needs at least two")
    queries = sorted(a)
    first = np.array([a[query] for query in queries])
    second = np.array([b[query] for query in queries])
    differences = second - first
    low, high, p = (paired_bootstrap if test == "bootstrap" else paired_t_test)(differences)
    changes = sorted(zip(queries, first.tolist(), second.tolist(), strict=True), key=lambda row: row[2] - row[1])
    return Comparison(
        test=test,
        a=float(first.mean()),
        b=float(second.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        changes=changes,
    )


def paired_bootstrap(differences: NDArray[np.float64], samples: int = SAMPLES) -> tuple[float, float, float]:
    """95% interval of the mean difference and the two-sided p-value, by resampling queries with replacement.

    The interval is the percentiles' (Efron and Tibshirani 1993, 13.3). For p the differences are shifted to a mean of
    0, the null hypothesis, and the share of means at least as far from 0 as the observed one is taken (16.4, and Sakai
    2006), the observed sample counted too, so that p is never 0. The seed is fixed: equal results give an equal p.
    """
    rng = np.random.default_rng(0)
    size = len(differences)
    observed = differences.mean()
    rows = max(1, _CELLS // size)
    means = np.concatenate(
        [
            differences[rng.integers(0, size, (min(rows, samples - start), size))].mean(axis=1)
            for start in range(0, samples, rows)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    # A rounding error must not make an equal mean a smaller one.
    far = np.abs(means - observed) >= abs(observed) - 1e-12
    return float(low), float(high), float((far.sum() + 1) / (samples + 1))


def paired_t_test(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """95% interval of the mean difference and the two-sided p-value of Student's paired test (Student 1908)."""
    try:
        special = importlib.import_module("scipy.special")
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy", "eval", "the t-test") from error
    size, mean = len(differences), float(differences.mean())
    error_of_mean = float(differences.std(ddof=1)) / math.sqrt(size)
    if error_of_mean == 0.0:  # every query differs by the same: certain, or no difference at all
        return mean, mean, 1.0 if mean == 0.0 else 0.0
    p = 2.0 * float(special.stdtr(size - 1, -abs(mean) / error_of_mean))
    reach = float(special.stdtrit(size - 1, 0.975)) * error_of_mean
    return mean - reach, mean + reach, p
