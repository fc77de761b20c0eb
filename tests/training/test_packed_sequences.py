"""Packing: nothing is lost or used twice, next to nothing is wasted, and the stream goes on where it was."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.training.packed_sequences import PackedSequences, Piece

OVERHEAD = 2
Lengths = st.lists(st.integers(0, 3000), min_size=1, max_size=60).filter(any)


def stream(lengths: list[int] | np.ndarray, capacity: int = 512, seed: int = 0) -> PackedSequences:
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(lengths))

    return PackedSequences(np.asarray(lengths, dtype=np.int64), capacity, OVERHEAD, order)


def filled(pieces: list[Piece]) -> int:
    return sum(piece.length + OVERHEAD for piece in pieces)


@settings(deadline=None, max_examples=50)
@given(Lengths, st.integers(256, 1500), st.integers(0, 100))
def test_no_sequence_overflows_or_wastes_more_than_two_in_a_hundred(
    lengths: list[int], capacity: int, seed: int
) -> None:
    packed = stream(lengths, capacity, seed)
    for _ in range(40):
        assert 0.98 * capacity <= filled(next(packed)) <= capacity


def test_lengths_as_real_texts_have_them_fill_nearly_all() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 1.1, 20_000).astype(np.int64) + 1
    packed = stream(lengths, 1024)
    sequences = [next(packed) for _ in range(1500)]
    waste = 1 - sum(map(filled, sequences)) / (1024 * len(sequences))
    assert waste < 0.005
    cut = sum(piece.length < lengths[piece.text] <= 1022 for pieces in sequences for piece in pieces)
    assert cut / sum(map(len, sequences)) < 0.01  # texts that would have fitted whole are hardly ever cut


@settings(deadline=None, max_examples=40)
@given(Lengths, st.integers(0, 100))
def test_every_token_comes_once_an_epoch(lengths: list[int], seed: int) -> None:
    packed = stream(lengths, seed=seed)
    total, epochs = sum(lengths), 3
    count: Counter[tuple[int, int]] = Counter()
    while min((count[text, at] for text, n in enumerate(lengths) for at in (0, n - 1) if n), default=0) < epochs:
        for piece in next(packed):
            count.update((piece.text, at) for at in range(piece.start, piece.start + piece.length))
    # Waiting texts of a later epoch may have come in before; all tokens of the first epochs have come by now.
    assert len(count) == total
    assert min(count.values()) >= epochs


def test_the_oldest_text_begins_a_sequence_and_long_texts_are_cut_in_order() -> None:
    packed = PackedSequences(np.array([1100, 700]), 512, OVERHEAD, lambda _: np.array([0, 1]))
    first, second, third = next(packed), next(packed), next(packed)
    assert first == [Piece(0, 0, 510)]
    assert second == [Piece(0, 510, 510)]
    assert third[0] == Piece(0, 1020, 80)


@settings(deadline=None, max_examples=40)
@given(Lengths, st.integers(0, 12), st.integers(0, 100))
def test_a_restored_stream_goes_on_where_it_was(lengths: list[int], before: int, seed: int) -> None:
    whole = stream(lengths, seed=seed)
    for _ in range(before):
        next(whole)
    state = json.loads(json.dumps(whole.state()))
    resumed = stream(lengths, seed=seed)
    resumed.restore(state)
    assert [next(resumed) for _ in range(8)] == [next(whole) for _ in range(8)]


def test_what_can_never_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="expected more than the 2"):
        stream([5], capacity=2)
    with pytest.raises(ValueError, match="no token"):
        stream([0, 0])
