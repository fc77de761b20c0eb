"""Linear layers that do what follows in the same pass, against the formulas."""

import pytest
import torch
import torch.nn.functional as F

from mbretrieve.models import fused
from mbretrieve.models.modernbert import _ACTIVATION

from .oracle import expected, got, ours, texts, theirs

needs_onednn = pytest.mark.skipif(not fused._is_built(), reason="this torch or CPU has no bfloat16 in oneDNN")


def test_every_activation_has_both_spellings() -> None:
    assert fused.ACTIVATIONS.keys() == _ACTIVATION.keys()


@needs_onednn
@pytest.mark.parametrize("tokens", [1, 3, 300])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_they_are_their_formulas(tokens: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator).to(torch.bfloat16)
        for shape in ((tokens, 96), (160, 96), (160,), (tokens, 80))
    )
    assert fused.serves(x, weight)
    for rows in (slice(80), slice(80, 160)):  # halves of a matrix, as the gated unit has them
        part = bias[rows] if biased else None
        plain = F.linear(x.float(), weight[rows].float(), None if part is None else part.float())
        for name, activation in _ACTIVATION.items():
            made = fused.activated(x, weight[rows], part, name).float()
            torch.testing.assert_close(made, activation(plain), atol=0.02, rtol=0.01)
        torch.testing.assert_close(
            fused.multiplied(x, weight[rows], part, other).float(), plain * other, atol=0.02, rtol=0.01
        )
        torch.testing.assert_close(
            fused.added(x, weight[rows], part, other).float(), plain + other, atol=0.02, rtol=0.01
        )


@needs_onednn
def test_they_serve_inference_in_bfloat16_alone() -> None:
    x, weight = torch.zeros(3, 8, dtype=torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16)
    assert not fused.serves(x, weight)  # a gradient may be asked for
    with torch.no_grad():
        assert fused.serves(x, weight)
        assert not fused.serves(x.float(), weight.float())
        assert not fused.serves(x, weight.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert not fused.serves(x, weight)


@needs_onednn
@pytest.mark.parametrize("activation", sorted(_ACTIVATION))
@torch.no_grad()
def test_a_model_by_them_keeps_the_direction_of_every_token(activation: str) -> None:
    oracle, ids = theirs(hidden_activation=activation, mlp_bias=True, attention_bias=True), texts([300, 40, 7])
    states = got(ours(oracle).to(torch.bfloat16), ids)
    assert torch.cosine_similarity(states.float(), expected(oracle, ids), dim=-1).min() >= 0.999
