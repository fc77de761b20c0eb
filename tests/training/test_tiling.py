"""Tiling: the small model in the middle of each axis, its copies to both sides, blocks and layers kept whole."""

from dataclasses import replace

import pytest
import torch
from transformers import ModernBertConfig as TheirConfig
from transformers import ModernBertForMaskedLM

from mbretrieve.errors import ModelError
from mbretrieve.models.config import FULL, SLIDING, ModernBertConfig
from mbretrieve.training.masked_lm import MaskedLanguageModel
from mbretrieve.training.tiling import centred, layer_sources, tile
from tests.models.oracle import SMALL as SETTINGS

SMALL = ModernBertConfig.from_dict({**SETTINGS, "model_type": "modernbert", "attention_bias": True, "mlp_bias": True})
# 3 heads of 16 -> 6; 56 -> 71 inner; 4 layers -> 7.
LARGE = replace(SMALL, hidden_size=96, intermediate_size=71, num_attention_heads=6, num_hidden_layers=7, layer_types=())
LARGE = replace(LARGE, layer_types=tuple(SLIDING if layer % 3 else FULL for layer in range(7)))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    theirs = ModernBertForMaskedLM(TheirConfig(**SETTINGS, attention_bias=True, mlp_bias=True))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    return dict(theirs.state_dict())


@pytest.fixture(scope="module")
def tiled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tile(SMALL, state, LARGE)


def test_an_axis_holds_the_small_one_in_its_middle_and_goes_on_to_both_sides() -> None:
    assert centred(4, 9).tolist() == [2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert centred(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert centred(2, 7).tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_embeddings_and_norms_sit_in_the_middle(state: dict, tiled: dict) -> None:
    # 48 in 96: from 24 on, the copies' halves at both ends
    for name in ("embeddings.tok_embeddings.weight", "embeddings.norm.weight", "final_norm.weight", "head.norm.weight"):
        small, large = state[f"model.{name}" if "head" not in name else name], tiled[name]
        assert torch.equal(large[..., 24:72], small)
        assert torch.equal(large[..., :24], small[..., 24:])
        assert torch.equal(large[..., 72:], small[..., :24])


def test_heads_are_tiled_whole_in_queries_keys_and_values(state: dict, tiled: dict) -> None:
    for layer, source in enumerate(layer_sources(SMALL.layer_types, LARGE.layer_types)):
        small = state[f"model.layers.{source}.attn.Wqkv.weight"].view(3, 3, 16, 48)
        large = tiled[f"layers.{layer}.attn.Wqkv.weight"].view(3, 6, 16, 96)
        bias = state[f"model.layers.{source}.attn.Wqkv.bias"].view(3, 3, 16)
        for head, of in enumerate([2, 0, 1, 2, 0, 1]):  # the three in the middle, after one copy, before two
            assert torch.equal(large[:, head, :, 24:72], small[:, of])
            assert torch.equal(tiled[f"layers.{layer}.attn.Wqkv.bias"].view(3, 6, 16)[:, head], bias[:, of])
        out, big = state[f"model.layers.{source}.attn.Wo.weight"], tiled[f"layers.{layer}.attn.Wo.weight"]
        assert torch.equal(big[24:72, 16:64], out)


def test_the_gated_units_halves_are_tiled_apart(state: dict, tiled: dict) -> None:
    # 56 in 71: from 7 on
    for layer, source in enumerate(layer_sources(SMALL.layer_types, LARGE.layer_types)):
        small, large = state[f"model.layers.{source}.mlp.Wi.weight"], tiled[f"layers.{layer}.mlp.Wi.weight"]
        for half in (0, 1):
            assert torch.equal(large[half * 71 + 7 : half * 71 + 63, 24:72], small[half * 56 : half * 56 + 56])
            assert torch.equal(large[half * 71 : half * 71 + 7, 24:72], small[half * 56 + 49 : half * 56 + 56])
        out, big = state[f"model.layers.{source}.mlp.Wo.weight"], tiled[f"layers.{layer}.mlp.Wo.weight"]
        assert torch.equal(big[24:72, 7:63], out)


def test_layers_copy_layers_of_their_own_type_in_order() -> None:
    assert layer_sources(SMALL.layer_types, LARGE.layer_types) == [0, 1, 1, 0, 2, 2, 3]
    base = tuple(SLIDING if layer % 3 else FULL for layer in range(22))
    large = tuple(SLIDING if layer % 3 else FULL for layer in range(28))
    sources = layer_sources(base, large)
    assert sources[0] == 0
    assert all(base[source] == kind for source, kind in zip(sources, large, strict=True))
    for kind in (FULL, SLIDING):
        of_kind = [source for source, own in zip(sources, large, strict=True) if own == kind]
        assert of_kind == sorted(of_kind)
        assert set(of_kind) == {index for index, own in enumerate(base) if own == kind}
    assert layer_sources(base, base) == list(range(22))


def test_a_copy_of_the_first_layer_gets_a_norm_of_ones(tiled: dict) -> None:
    assert "layers.0.attn_norm.weight" not in tiled
    assert torch.equal(tiled["layers.3.attn_norm.weight"], torch.ones(96))


def test_the_tiled_weights_are_a_whole_model_and_equal_sizes_change_nothing(state: dict, tiled: dict) -> None:
    grown = MaskedLanguageModel(LARGE, tiled)
    assert torch.equal(grown.decoder.bias, state["decoder.bias"])
    assert grown.logits(torch.tensor([3, 4, 5]), torch.tensor([3])).isfinite().all()
    same = tile(SMALL, state, SMALL)
    assert set(same) == {name.removeprefix("model.") for name in state} - {"decoder.weight"}
    assert all(torch.equal(same[name], state.get(f"model.{name}", state.get(name))) for name in same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24, "num_attention_heads": 3}, "hidden_size is 24, expected at least the smaller model's 48"),
        ({"hidden_size": 96}, "head_dim is 32, expected 16"),
        ({"vocab_size": 240}, "vocab_size is 240, expected 120"),
        ({"mlp_bias": False}, "mlp_bias is False, expected True"),
    ],
)
def test_what_cannot_be_tiled_is_named(state: dict, changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tile(SMALL, state, replace(SMALL, **changes))


def test_a_type_of_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="type sliding_attention"):
        layer_sources((FULL, FULL), (FULL, SLIDING))
