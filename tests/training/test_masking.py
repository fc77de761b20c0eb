"""Masks: what may be chosen, how often, what is shown instead; the same for the same seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.training.masking import mask_tokens

MASK, VOCABULARY = 3, 100
ORDINARY = np.arange(5, VOCABULARY)


def drawn(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, size)


def test_three_in_ten_are_chosen_and_shown_as_bert_shows_them() -> None:
    ids = drawn(0, 400_000)
    inputs, chosen = mask_tokens(ids, ORDINARY, MASK, np.random.default_rng(1))
    ordinary = ids >= 5
    assert abs(chosen.sum() / ordinary.sum() - 0.3) < 0.005
    shown, was = inputs[chosen], ids[chosen]
    assert abs((shown == MASK).mean() - 0.8) < 0.005
    assert abs((shown == was).mean() - 0.1) < 0.005  # a tenth, and few of those drawn anew that fell on themselves
    others = (shown != MASK) & (shown != was)
    assert abs(others.mean() - 0.1) < 0.005
    assert set(np.unique(shown[others])) == set(ORDINARY)


@given(st.integers(0, 1000), st.integers(0, 300), st.floats(0, 1))
def test_what_is_not_chosen_stays_and_special_tokens_are_never_chosen(seed: int, size: int, rate: float) -> None:
    ids = drawn(seed, size)
    inputs, chosen = mask_tokens(ids, ORDINARY, MASK, np.random.default_rng(seed), rate)
    assert (inputs[~chosen] == ids[~chosen]).all()
    assert (ids[chosen] >= 5).all()
    again = mask_tokens(ids, ORDINARY, MASK, np.random.default_rng(seed), rate)
    assert (again.inputs == inputs).all()
    assert (again.chosen == chosen).all()


def test_all_or_none_can_be_chosen() -> None:
    ids = drawn(2, 1000)
    assert not mask_tokens(ids, ORDINARY, MASK, np.random.default_rng(0), 0.0).chosen.any()
    assert (mask_tokens(ids, ORDINARY, MASK, np.random.default_rng(0), 1.0).chosen == (ids >= 5)).all()
