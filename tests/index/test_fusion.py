"""Fusion, on rankings small enough to add up by hand."""

import pytest

from mbretrieve.index.fusion import reciprocal_rank_fusion, weighted_sum


def test_weighted_sum_takes_meaning_by_its_best_and_words_by_their_height() -> None:
    joined = weighted_sum({"a": 8.0, "b": 4.0, "c": -2.0}, {"b": 30.0, "d": 15.0}, weight=0.5)
    by_words = 0.5 * (30 / 30) / (10 / 8 + 0.02) / 5
    assert joined == pytest.approx({"a": 1.0, "b": 0.5 + by_words, "c": -0.25, "d": by_words / 2})


def test_words_count_as_far_as_they_tell_documents_apart_and_meaning_does_not() -> None:
    def share(alike: int, meaning: float) -> float:
        """What words add for the best, where so many others have them too, and are so far from it by meaning."""
        semantic = {f"d{i}": 1.0 - meaning * (i > 0) for i in range(20)}
        return weighted_sum(semantic, {f"d{i}": 30.0 for i in range(1 + alike)}, 0.1)["d0"] - 1.0

    assert share(alike=9, meaning=0.1) == 0
    assert share(alike=8, meaning=0.1) == pytest.approx(0.1 / 0.12 / 5)
    assert share(alike=0, meaning=0.3) == pytest.approx(0.1 / 0.32 / 5)
    assert share(alike=0, meaning=0.0) == pytest.approx(0.3)


def test_weighted_sum_of_nothing_or_zeros() -> None:
    assert weighted_sum({}, {}, 1.0) == {}
    assert weighted_sum({"a": 0.0}, {"b": 0.0}, 1.0) == {"a": 0.0, "b": 0.0}
    assert weighted_sum({"a": -4.0, "b": -2.0}, {}, 1.0) == {"a": -1.0, "b": -0.5}


def test_reciprocal_ranks_are_added() -> None:
    joined = reciprocal_rank_fusion({"a": 3.0, "b": 2.0}, {"b": 9.0, "c": 9.0, "d": 1.0}, weight=0.5)
    assert joined == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 0.5 / 61, "c": 0.5 / 61, "d": 0.5 / 63})


def test_reciprocal_ranks_of_nothing() -> None:
    assert reciprocal_rank_fusion({}, {}, 1.0) == {}
    assert reciprocal_rank_fusion({}, {"a": 0.0}, 0.5, k=1) == {"a": 0.25}
