"""The operations counted from the config are those that torch counts of the forward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mbretrieve.bench import flops
from mbretrieve.bench.shapes import SHAPES
from mbretrieve.models.config import ModernBertConfig
from tests.models.oracle import ours, texts, theirs


@pytest.mark.parametrize("lengths", [[16], [33, 33], [48, 17, 1]])
def test_a_forward_in_which_all_tokens_see_each_other(lengths: list[int]) -> None:
    """transformers' forward, text by text, so that neither padding nor a window is in it."""
    model = theirs(local_attention=256)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for text in texts(lengths):
            model(text[None])
    assert flops.documents(ours(model).config, [], lengths) == counter.get_total_flops()


def test_our_own_forward() -> None:
    model = ours(theirs(local_attention=256))
    [text] = texts([64])  # whole tiles of keys
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model(text, [64])
    assert flops.document(model.config, [], 64) == counter.get_total_flops()


def test_a_projection_is_a_matrix_more() -> None:
    config = ModernBertConfig(hidden_size=48, num_attention_heads=3)
    with FlopCounterMode(display=False) as counter:
        torch.randn(7, 48) @ torch.randn(48, 16)
    with_head = flops.document(config, [(48, 16)], 7)
    assert with_head - flops.document(config, [], 7) == counter.get_total_flops()


@given(length=st.integers(1, 90), window=st.none() | st.integers(0, 100))
def test_pairs_are_those_of_the_mask(length: int, window: int | None) -> None:
    place = torch.arange(length)
    distance = (place - place[:, None]).abs()
    assert flops.pairs(length, window) == int((distance <= (length if window is None else window)).sum())


def test_modernbert_base_in_numbers() -> None:
    """22 layers of 4 * 768^2 + 3 * 768 * 1152 weights; 8 of them global, 14 with at most 129 keys a query."""
    config = SHAPES["base"]
    weights = 22 * (4 * 768**2 + 3 * 768 * 1152)
    pairs = 8 * 8192**2 + 14 * (8192 * 129 - 64 * 65)
    assert flops.document(config, [], 8192) == 2 * 8192 * weights + 4 * 768 * pairs
