"""Exact search against the formula written out, and what its memory bounds must not change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.evaluation import exact
from mbretrieve.types import FloatArray, Head


def unit(rng: np.random.Generator, rows: int) -> FloatArray:
    vectors = rng.standard_normal((rows, 4)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 60))
def test_maxsim_of_the_best_window(seed: int, k: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    queries = [unit(rng, rng.integers(1, 4)) for _ in range(3)]
    documents = [(f"d{i}", [unit(rng, rng.integers(1, 6)) for _ in range(rng.integers(1, 4))]) for i in range(7)]
    found = exact.search("colbert", queries, exact.grouped(documents, rows=group), k)
    for query, ranking in zip(queries, found, strict=True):
        scores = {id: max(float((query @ rows.T).max(axis=1).sum()) for rows in windows) for id, windows in documents}
        wanted = sorted(scores.items(), key=lambda pair: -pair[1])[:k]
        assert [id for id, _ in ranking] == [id for id, _ in wanted]
        assert [score for _, score in ranking] == pytest.approx([score for _, score in wanted], abs=1e-5)


@pytest.mark.parametrize("kind", ["colbert", "dense"])
def test_equal_scores_rank_by_id_across_groups(kind: Head) -> None:
    one = np.eye(4, dtype=np.float32)[:1]
    documents = [(id, [one]) for id in "dbeac"]
    for rows in (1, 2, 100):
        [ranking] = exact.search(kind, [one], exact.grouped(documents, rows=rows), 3)
        assert ranking == [("a", 1.0), ("b", 1.0), ("c", 1.0)]


def test_only_those_named_for_a_query_are_ranked() -> None:
    rng = np.random.default_rng(3)
    queries, documents = [unit(rng, 2) for _ in range(3)], [(f"d{i}", [unit(rng, 4)]) for i in range(7)]
    among: list[set[str]] = [{"d1", "d5", "none"}, set(), {f"d{i}" for i in range(7)}]
    whole = exact.search("colbert", queries, exact.grouped(documents), 7)
    for rows in (1, 9, 100):
        found = exact.search("colbert", queries, exact.grouped(documents, rows=rows), 7, among)
        for ranked, of_query, some in zip(found, whole, among, strict=True):
            expected = [(id, score) for id, score in of_query if id in some]
            assert [id for id, _ in ranked] == [id for id, _ in expected]
            assert [score for _, score in ranked] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_nothing_gives_nothing() -> None:
    one = np.eye(4, dtype=np.float32)[:1]
    assert exact.search("dense", [one], [], 3) == [[]]
    with pytest.raises(ValueError, match="k is 0"):
        exact.search("dense", [one], [], 0)
