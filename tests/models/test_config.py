"""Every spelling of config.json, against transformers' reading of it, and what is refused by name."""

import json
from importlib.resources import files
from typing import Any

import pytest
from transformers import ModernBertConfig as TheirConfig

from mbretrieve.errors import ModelError
from mbretrieve.models.config import ModernBertConfig

FULL, SLIDING = "full_attention", "sliding_attention"
BASE: dict[str, Any] = {"model_type": "modernbert", "num_hidden_layers": 6}


def rope(full: float, sliding: float) -> dict[str, Any]:
    return {
        FULL: {"rope_type": "default", "rope_theta": full},
        SLIDING: {"rope_type": "default", "rope_theta": sliding},
    }


# transformers 4's spelling, transformers 5's.
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"layer_types": [FULL, SLIDING, SLIDING] * 2, "rope_parameters": rope(160000.0, 10000.0)}),
    ({"global_attn_every_n_layers": 2}, {"layer_types": [FULL, SLIDING] * 3}),
    ({"global_attn_every_n_layers": 1}, {"layer_types": [FULL] * 6}),
    ({"global_attn_every_n_layers": 6}, {"layer_types": [FULL] + [SLIDING] * 5}),
    ({"global_rope_theta": 7.0, "local_rope_theta": 5}, {"rope_parameters": rope(7.0, 5.0)}),
    ({"global_rope_theta": 7.0}, {"rope_parameters": {FULL: {"rope_theta": 7.0}}}),
    ({"local_rope_theta": 7.0}, {"rope_parameters": {SLIDING: {"rope_theta": 7.0}}}),
    ({"local_attention": 10}, {"sliding_window": 5}),
    ({"local_attention": 11}, {"local_attention": 11, "sliding_window": 5}),
    ({"local_attention": 0}, {"sliding_window": 0}),
]


@pytest.mark.parametrize(("four", "five"), PAIRS)
def test_both_spellings_say_the_same(four: dict[str, Any], five: dict[str, Any]) -> None:
    one, other = ModernBertConfig.from_dict(BASE | four), ModernBertConfig.from_dict(BASE | five)
    assert (one.layer_types, one.half_window, one.rope_thetas) == (
        other.layer_types,
        other.half_window,
        other.rope_thetas,
    )


@pytest.mark.parametrize("config", [config for pair in PAIRS for config in pair])
def test_transformers_reads_the_same(config: dict[str, Any]) -> None:
    mine, its = ModernBertConfig.from_dict(BASE | config), TheirConfig(**(BASE | config))
    assert list(mine.layer_types) == its.layer_types
    assert mine.half_window == its.sliding_window
    # transformers 5.3 adds a rope_type beside the records where all layers are global.
    assert mine.rope_thetas == {kind: its.rope_parameters[kind]["rope_theta"] for kind in (FULL, SLIDING)}


def test_flat_rope_keys_stand_in_for_a_missing_record() -> None:
    mixed = {"rope_type": "default", "rope_theta": 3.0}
    for parameters, thetas in (
        (mixed, (3.0, 3.0)),
        (mixed | rope(7.0, 5.0), (7.0, 5.0)),  # as transformers 5.3 writes it where all layers are of one type
        (mixed | {SLIDING: {"rope_theta": 5.0}}, (3.0, 5.0)),
    ):
        config = ModernBertConfig.from_dict(BASE | {"rope_parameters": parameters})
        assert (config.global_rope_theta, config.local_rope_theta) == thetas


def test_the_defaults_are_transformers() -> None:
    mine, its = ModernBertConfig(), TheirConfig()
    shared = set(ModernBertConfig.__dataclass_fields__) & set(its.to_dict())
    assert len(shared) > 15
    for key in shared - {"layer_types", "pad_token_id"}:
        assert getattr(mine, key) == getattr(its, key), key
    assert list(mine.layer_types) == its.layer_types


def test_new_spelling_counts_where_both_stand() -> None:
    both = {"global_attn_every_n_layers": 2, "global_rope_theta": 1.0, "local_rope_theta": 1.0}
    new = {"layer_types": [SLIDING] * 6, "rope_parameters": rope(7.0, 5.0)}
    assert ModernBertConfig.from_dict(BASE | both | new) == ModernBertConfig.from_dict(BASE | new)


def test_a_flat_rope_record_holds_for_every_layer() -> None:
    flat = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    assert ModernBertConfig.from_dict(BASE | flat).rope_thetas == {FULL: 500.0, SLIDING: 500.0}


def test_a_null_local_theta_is_the_global_one() -> None:
    # As transformers 4 reads it; 5 fails on it.
    null = {"global_rope_theta": 500.0, "local_rope_theta": None}
    assert ModernBertConfig.from_dict(BASE | null).rope_thetas == {FULL: 500.0, SLIDING: 500.0}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, ["model_type", "'bert'", "'modernbert'"]),
        ({"model_type": None}, ["model_type", "None"]),
        ({"model_type": "modernbert-decoder"}, ["model_type", "modernbert-decoder"]),
        ({"is_causal": True}, ["is_causal"]),
        ({"is_decoder": True}, ["is_decoder"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling", "yarn"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config"]),
        ({"head_dim": 32}, ["head_dim", "32", "64"]),
        ({"hidden_activation": "quick_gelu"}, ["hidden_activation", "quick_gelu", "gelu_pytorch_tanh"]),
        ({"hidden_activation": 3}, ["hidden_activation", "3", "str"]),
        ({"hidden_size": "768"}, ["hidden_size", "'768'", "int"]),
        ({"hidden_size": 768.0}, ["hidden_size", "768.0", "int"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"hidden_size": 100}, ["hidden_size", "100", "num_attention_heads", "12"]),
        ({"hidden_size": 36}, ["hidden_size", "36", "even"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True", "int"]),
        ({"vocab_size": -1}, ["vocab_size", "-1"]),
        ({"norm_eps": -1.0}, ["norm_eps", "-1.0"]),
        ({"norm_eps": float("nan")}, ["norm_eps", "nan"]),
        ({"norm_bias": 1}, ["norm_bias", "1", "bool"]),
        ({"mlp_dropout": 1.0}, ["mlp_dropout", "1.0"]),
        ({"pad_token_id": 50368}, ["pad_token_id", "50368", "vocab_size"]),
        ({"layer_types": [FULL]}, ["layer_types", "1 layers", "6"]),
        ({"layer_types": [FULL] * 5 + ["chunked_attention"]}, ["layer_types", "chunked_attention"]),
        ({"layer_types": "full"}, ["layer_types", "'full'"]),
        ({"layer_types": []}, ["layer_types", "[]"]),
        ({"layer_types": [[FULL]] * 6}, ["layer_types"]),
        ({"global_attn_every_n_layers": 0}, ["global_attn_every_n_layers", "0"]),
        ({"global_attn_every_n_layers": 2.5}, ["global_attn_every_n_layers", "2.5", "int"]),
        ({"local_attention": -1}, ["local_attention", "-1"]),
        ({"local_attention": 128, "sliding_window": 128}, ["sliding_window", "128", "local_attention"]),
        ({"global_rope_theta": "big"}, ["global_rope_theta", "'big'", "float"]),
        ({"global_rope_theta": 0}, ["global_rope_theta", "0"]),
        ({"local_rope_theta": -5.0}, ["local_rope_theta", "-5.0"]),
        ({"rope_parameters": 5}, ["rope_parameters", "5"]),
        ({"rope_parameters": {FULL: 5}}, [f"rope_parameters.{FULL}", "5"]),
        ({"rope_parameters": {FULL: {"rope_type": "linear"}}}, [f"rope_parameters.{FULL}.rope_type", "linear"]),
        ({"rope_parameters": {"type": "ntk"}}, ["rope_parameters.rope_type", "ntk"]),
        ({"rope_parameters": {SLIDING: {"factor": 2.0}}}, [f"rope_parameters.{SLIDING}.factor"]),
        ({"rope_parameters": {SLIDING: {"partial_rotary_factor": 0.5}}}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {SLIDING: {}, "chunked_attention": {}}}, ["rope_parameters.chunked_attention"]),
    ],
)
def test_what_is_not_computed_is_refused_by_name(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        ModernBertConfig.from_dict(BASE | config)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("config", [config for pair in PAIRS for config in pair])
def test_what_is_written_is_read_back_by_all(config: dict[str, Any]) -> None:
    mine = ModernBertConfig.from_dict(BASE | config | {"norm_eps": 0.5, "cls_token_id": 7, "mlp_bias": True})
    written = json.loads(json.dumps(mine.to_dict()))
    assert ModernBertConfig.from_dict(written) == mine
    assert written["cls_token_id"] == 7
    its = TheirConfig(**written)
    assert (list(mine.layer_types), mine.norm_eps, True) == (its.layer_types, its.norm_eps, its.mlp_bias)
    only_four = {key: value for key, value in written.items() if key not in ("layer_types", "rope_parameters")}
    assert ModernBertConfig.from_dict(only_four) == mine


def test_irregular_layers_have_no_spelling_in_four() -> None:
    irregular = ModernBertConfig(num_hidden_layers=3, layer_types=(SLIDING, FULL, SLIDING))
    assert "global_attn_every_n_layers" not in irregular.to_dict()
    stale = ModernBertConfig.from_dict(irregular.to_dict() | {"global_attn_every_n_layers": 3})
    assert "global_attn_every_n_layers" not in stale.to_dict()


def test_the_bundled_config_is_kept_whole() -> None:
    bundled = json.loads((files("mbretrieve") / "assets" / "mini-v3" / "config.json").read_text("utf-8"))
    config = ModernBertConfig.from_dict(bundled)
    assert (config.norm_eps, config.head_dim, config.half_window) == (1.0, 64, 64)
    assert bundled.items() <= config.to_dict().items()
