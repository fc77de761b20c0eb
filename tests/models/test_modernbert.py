"""The backbone against transformers' SDPA forward, and the laws of a packed stream."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ModernBertForMaskedLM, ModernBertModel

from mbretrieve.errors import ModelError
from mbretrieve.models import attention, modernbert
from mbretrieve.models.attention import Case, Kernel
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert

from .oracle import expected, got, ours, texts, theirs
from .test_attention import stand_in

TOLERANCE = 1e-5

FULL, SLIDING = "full_attention", "sliding_attention"
CONFIGS: dict[str, dict[str, Any]] = {
    "as published": {},
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1},
    "five heads of two": {"hidden_size": 10, "num_attention_heads": 5},
    "seven wide heads": {"hidden_size": 7 * 40, "num_attention_heads": 7},
    "every second layer global": {"global_attn_every_n_layers": 2, "num_hidden_layers": 5},
    "all global": {"layer_types": [FULL] * 4},
    "all sliding": {"layer_types": [SLIDING] * 4},
    "irregular layers": {"layer_types": [SLIDING, FULL, FULL, SLIDING, SLIDING], "num_hidden_layers": 5},
    "window of the token itself": {"local_attention": 1},
    "odd window": {"local_attention": 27},
    "window of 128": {"local_attention": 128},
    "window of 300": {"local_attention": 300},
    "window beyond every text": {"local_attention": 4096},
    "attention bias": {"attention_bias": True},
    "MLP bias": {"mlp_bias": True},
    "norm bias": {"norm_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
    "large eps": {"norm_eps": 1.0},
    "other thetas": {"global_rope_theta": 5e5, "local_rope_theta": 1e3},
    "tanh gelu": {"hidden_activation": "gelu_pytorch_tanh"},
    "new gelu": {"hidden_activation": "gelu_new"},
    "silu": {"hidden_activation": "silu"},
    "swish": {"hidden_activation": "swish"},
    "relu": {"hidden_activation": "relu"},
}
LENGTHS = [1, 700, 33, 2, 257, 64, 64, 65, 16, 16, 16, 128, 129, 5, 311]
SHORT = [1, 40, 33, 2, 29, 29, 16, 17, 70]  # no text is longer than the keys a block reads


@torch.no_grad()
def test_without_layers_it_is_its_normalised_embeddings() -> None:
    """transformers' config refuses to be without layers."""
    config = ModernBertConfig(vocab_size=9, hidden_size=8, num_attention_heads=1, num_hidden_layers=0, norm_eps=1.0)
    assert ModernBertConfig.from_dict(config.to_dict()) == config
    model = ModernBert(config)
    words = torch.tensor([3, 1, 4, 1, 5])
    once = torch.nn.functional.layer_norm(model.embeddings.tok_embeddings.weight[words], (8,), eps=1.0)
    assert torch.equal(model(words, [2, 3]), torch.nn.functional.layer_norm(once, (8,), eps=1.0))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_agrees_with_transformers(name: str) -> None:
    oracle = theirs(seed=len(name), **CONFIGS[name])
    model = ours(oracle)
    for lengths in (LENGTHS, SHORT):
        ids = texts(lengths)
        torch.testing.assert_close(got(model, ids), expected(oracle, ids), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_agrees_with_transformers_on_random_shapes(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=random))

    heads, layers = pick(1, 6), pick(1, 6)
    oracle = theirs(
        seed,
        num_attention_heads=heads,
        hidden_size=heads * 2 * pick(1, 20),
        intermediate_size=pick(1, 90),
        num_hidden_layers=layers,
        layer_types=[(FULL, SLIDING)[pick(0, 2)] for _ in range(layers)],
        local_attention=pick(0, 200),
        attention_bias=bool(pick(0, 2)),
        mlp_bias=bool(pick(0, 2)),
        norm_bias=bool(pick(0, 2)),
    )
    ids = texts([pick(1, 701) for _ in range(pick(1, 9))], seed)
    attended = [torch.rand(len(text), generator=random) < 0.7 for text in ids]
    model = ours(oracle)
    torch.testing.assert_close(got(model, ids), expected(oracle, ids), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(got(model, ids, attended), expected(oracle, ids, attended), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_agrees_at_8192_positions() -> None:
    oracle = theirs(hidden_size=32, num_attention_heads=1, num_hidden_layers=2, local_attention=128)
    ids = texts([8192, 100])
    torch.testing.assert_close(got(ours(oracle), ids), expected(oracle, ids), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["as published", "window of 128", "all biases", "large eps", "tanh gelu"])
@torch.no_grad()
def test_16_bits_keep_the_direction_of_every_token(name: str, dtype: torch.dtype) -> None:
    oracle = theirs(**CONFIGS[name])
    ids = texts(LENGTHS)
    states = got(ours(oracle).to(dtype), ids)
    assert states.dtype == dtype
    assert torch.cosine_similarity(states.float(), expected(oracle, ids), dim=-1).min() >= 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["flash-attn varlen", "torch varlen"])
@pytest.mark.parametrize("config", ["as published", "window of 128", "irregular layers", "window of the token itself"])
@torch.no_grad()
def test_agrees_through_the_kernels_of_gpus(
    name: str, config: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a forward on CUDA but the kernel itself and the device: no mask, bounds of the stream, filled or not."""
    oracle, kernel, calls = theirs(**CONFIGS[config]), stand_in(name, monkeypatch), []

    def chosen(case: Case) -> Kernel:
        calls.append(case)
        return kernel

    monkeypatch.setattr(attention, "choose", chosen)
    model = ours(oracle).to(dtype)
    monkeypatch.setattr(modernbert, "filling", lambda _: 0)
    for lengths in (LENGTHS, SHORT, [1]):
        ids = texts(lengths)
        states = got(model, ids)
        assert states.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(states, expected(oracle, ids), atol=TOLERANCE, rtol=0)
        assert torch.cosine_similarity(states.float(), expected(oracle, ids), dim=-1).min() >= 0.999
    assert len(calls) == 3 * oracle.config.num_hidden_layers
    assert {case.dtype for case in calls} == {dtype}


@torch.no_grad()
def test_agrees_on_the_bundled_weights() -> None:
    folder = Path(str(files("mbretrieve") / "assets" / "mini-v3"))
    oracle = ModernBertModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    state = load_file(folder / "model.safetensors")
    config = ModernBertConfig.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
    ids = texts(LENGTHS, vocab=config.vocab_size)
    want = expected(oracle, ids)
    model = ModernBert(config, state).eval()
    torch.testing.assert_close(got(model.float(), ids), want, atol=TOLERANCE, rtol=0)
    half = got(model.to(torch.bfloat16), ids).float()
    assert torch.cosine_similarity(half, want, dim=-1).min() >= 0.999


@torch.no_grad()
def test_unattended_tokens_are_queries_and_nobodys_keys() -> None:
    oracle = theirs()
    ids = texts([32, 32, 32, 300, 300, 7])
    attended = [torch.arange(len(text)) < real for text, real in zip(ids, (5, 32, 20, 12, 250, 1), strict=True)]
    attended[4][::3] = False
    states = got(ours(oracle), ids, attended)
    torch.testing.assert_close(states, expected(oracle, ids, attended), atol=TOLERANCE, rtol=0)
    changed = [torch.where(mask, text, text % 100 + 3) for text, mask in zip(ids, attended, strict=True)]
    keep = torch.cat(attended)
    again = got(ours(oracle), changed, attended)
    torch.testing.assert_close(again[keep], states[keep], atol=TOLERANCE, rtol=0)
    assert not torch.allclose(again[~keep], states[~keep])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_batch_composition_and_order_change_nothing(dtype: torch.dtype) -> None:
    model = ours(theirs()).to(dtype)
    ids = texts(LENGTHS)
    alone = [got(model, [text]) for text in ids]
    for seed in range(4):
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()[: 4 * (seed + 1)]
        together = got(model, [ids[i] for i in order]).split([len(ids[i]) for i in order])
        for i, states in zip(order, together, strict=True):
            if dtype == torch.float32:
                torch.testing.assert_close(states, alone[i], atol=TOLERANCE, rtol=0)
            else:
                assert torch.cosine_similarity(states.float(), alone[i].float(), dim=-1).min() >= 0.999


@pytest.mark.parametrize("name", ["as published", "all biases", "all sliding"])
def test_gradients_equal_transformers(name: str) -> None:
    oracle = theirs(**CONFIGS[name])
    model = ours(oracle)
    ids = texts(LENGTHS)
    attended = [torch.rand(len(text), generator=torch.Generator().manual_seed(i)) < 0.8 for i, text in enumerate(ids)]
    direction = torch.randn(sum(LENGTHS), oracle.config.hidden_size) / sum(LENGTHS)
    (expected(oracle, ids, attended) * direction).sum().backward()
    (got(model, ids, attended) * direction).sum().backward()
    want = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, want[parameter_name], atol=TOLERANCE, rtol=1e-4)


def test_inference_in_chunks_is_the_forward_of_training() -> None:
    model = ours(theirs())
    ids = texts([700, 900, 4])
    with torch.inference_mode():
        states = got(model, ids)
    torch.testing.assert_close(states, got(model, ids).detach(), atol=TOLERANCE, rtol=0)


def test_autocast_gives_the_bfloat16_result() -> None:
    oracle = theirs()
    model, ids = ours(oracle), texts(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        states = got(model, ids)
    states.float().sum().backward()
    assert torch.cosine_similarity(states.float(), expected(oracle, ids), dim=-1).min() >= 0.999
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_bfloat16_stream_trains_float32_weights() -> None:
    oracle = theirs()
    model, ids = ours(oracle), texts(LENGTHS)
    model.stream_dtype = torch.bfloat16
    states = got(model, ids)
    states.float().sum().backward()
    assert states.dtype == torch.bfloat16
    assert torch.cosine_similarity(states.float(), expected(oracle, ids), dim=-1).min() >= 0.999
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_what_is_computed_again_in_the_backward_is_what_was_computed() -> None:
    grads = []
    for checkpointing in (False, True):
        model = ours(theirs(attention_dropout=0.2, mlp_dropout=0.2)).train()
        model.checkpointing = checkpointing
        torch.manual_seed(0)
        got(model, texts(SHORT)).pow(2).sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for kept, again in zip(*grads, strict=True):
        assert torch.equal(kept, again)


@pytest.mark.parametrize("key", ["embedding_dropout", "attention_dropout", "mlp_dropout"])
def test_dropout_is_for_training_only(key: str) -> None:
    oracle = theirs(**{key: 0.5})
    model, ids = ours(oracle), texts(SHORT)
    torch.testing.assert_close(got(model, ids), expected(oracle, ids), atol=TOLERANCE, rtol=0)
    model.train()
    assert not torch.allclose(got(model, ids), got(model, ids))


def test_both_spellings_of_the_config_make_the_same_model() -> None:
    oracle = theirs(num_hidden_layers=5)
    state, ids = oracle.state_dict(), texts(LENGTHS)
    five = oracle.config.to_dict()
    four = {key: value for key, value in five.items() if key not in ("layer_types", "rope_parameters")}
    four |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    models = [ModernBert(ModernBertConfig.from_dict(config), state).eval() for config in (four, five)]
    with torch.no_grad():
        assert torch.equal(got(models[0], ids), got(models[1], ids))


def test_state_loads_with_and_without_prefix_and_passes_heads_over() -> None:
    oracle = theirs()
    masked_lm = ModernBertForMaskedLM(oracle.config).eval()
    masked_lm.model.load_state_dict(oracle.state_dict())
    state = masked_lm.state_dict()
    assert {"head.dense.weight", "decoder.bias", "model.final_norm.weight"} <= state.keys()
    config = ModernBertConfig.from_dict(oracle.config.to_dict())
    prefixed, bare = ModernBert(config, state), ModernBert(config, oracle.state_dict())
    assert prefixed.state_dict().keys() == oracle.state_dict().keys()
    assert all(torch.equal(prefixed.state_dict()[name], tensor) for name, tensor in bare.state_dict().items())


def _without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != "layers.1.attn.Wqkv.weight"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without, ["no tensor layers.1.attn.Wqkv.weight", "(144, 48)"]),
        (lambda state: state | {"final_norm.weight": torch.ones(5)}, ["final_norm.weight", "(5,)", "(48,)"]),
        (lambda state: state | {"layers.0.attn.Wo.bias": torch.ones(48)}, ["layers.0.attn.Wo.bias", "config.json"]),
        (lambda state: {}, ["no tensor embeddings.tok_embeddings.weight", "(120, 48)"]),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(change: Any, words: list[str]) -> None:
    oracle = theirs()
    with pytest.raises(ModelError) as caught:
        ModernBert(ModernBertConfig.from_dict(oracle.config.to_dict()), change(dict(oracle.state_dict())))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lengths", [[3], [5, 0], [6, -1], []])
def test_lengths_that_are_not_the_streams_are_a_programming_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="length"):
        ours(theirs(num_hidden_layers=1))(torch.ones(5, dtype=torch.int64), lengths)


def test_a_new_model_is_drawn_as_transformers_draws_it() -> None:
    config = ModernBertConfig(vocab_size=500, num_hidden_layers=2, mlp_bias=True)
    torch.manual_seed(0)
    state = ModernBert(config).state_dict()
    # A normal cut at two deviations has 0.88 of the deviation.
    assert state["layers.1.attn.Wqkv.weight"].std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)
    assert state["layers.1.mlp.Wo.weight"].std().item() == pytest.approx(0.02 * 0.8796 / 2, rel=0.01)
    assert state["embeddings.tok_embeddings.weight"].abs().max() <= 0.04
    assert torch.equal(state["final_norm.weight"], torch.ones(768))
    assert torch.equal(state["layers.0.mlp.Wi.bias"], torch.zeros(2304))


def test_import_is_light() -> None:
    code = """
import sys, torch
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert
ModernBert(ModernBertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1))(torch.ones(3).long(), [3])
print([n for n in ("torch._dynamo", "torch._inductor", "sympy", "transformers", "faiss") if n in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
