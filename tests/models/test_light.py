"""The light encoder against torch's: the same model, the same vectors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mbretrieve.models import light, load_encoder
from mbretrieve.models.light import LightEncoder
from mbretrieve.models.weights import as_array, as_float32, read_arrays, read_tensors, weights_hash, write_tensors
from mbretrieve.types import Encoder, Kind
from tests.models import small
from tests.models.small import HIDDEN, TEXTS, assert_same_rows, layer

KINDS: tuple[Kind, ...] = ("colbert", "dense")
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"norm_bias": True, "attention_bias": True, "mlp_bias": True},
    "tanh": {"hidden_activation": "gelu_pytorch_tanh"},
    "silu": {"hidden_activation": "silu"},
    "relu": {"hidden_activation": "relu"},
    "all_global": {"global_attn_every_n_layers": 1},
}
LAYERS = {
    "tanh": [layer(HIDDEN, 16, bias=True, activation_function="torch.nn.modules.activation.Tanh")],
    "residual": [layer(HIDDEN, 24, use_residual=True), layer(24, 24, seed=1, use_residual=True)],
    "gelu": [layer(HIDDEN, 16, activation_function="torch.nn.modules.activation.GELU")],
    "sigmoid": [layer(HIDDEN, 16, activation_function="torch.nn.modules.activation.Sigmoid")],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "expansion": {},
    "attended": {"attend_to_expansion_tokens": True},
    "no_expansion": {"do_query_expansion": False, "query_length": 12},
    "prompts": {"query_prefix": "query: ", "document_prefix": "passage: "},
}


def assert_same(folder: Path | None, kind: Kind, **shape: Any) -> None:
    """The same identity, vectors and line scores as torch's encoder in float32."""
    found = LightEncoder.load(kind, folder, **shape)
    assert found is not None
    ours: Encoder = found
    theirs = load_encoder(kind, folder, device="cpu", dtype="float32", **shape)
    assert ours.identity == theirs.identity
    assert ours.document_capacity == theirs.document_capacity
    assert_same_rows(list(ours.encode_queries(TEXTS)), list(theirs.encode_queries(TEXTS)))
    assert_same_rows(list(ours.encode_documents(TEXTS)), list(theirs.encode_documents(TEXTS)))
    for mine, other in zip(
        ours.line_scores("read a file", TEXTS), theirs.line_scores("read a file", TEXTS), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=1e-3)
    for mine, other in zip(ours.token_offsets(TEXTS), theirs.token_offsets(TEXTS), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CONFIGS)
def test_backbones(tmp_path: Path, kind: Kind, case: str) -> None:
    assert_same(small.bare(tmp_path / "model", **CONFIGS[case]), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_without_layers(tmp_path: Path, kind: Kind) -> None:
    folder = small.bare(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensors[name] for name in tensors if "layers." not in name}, folder / "model.safetensors")
    small.edit(folder / "config.json", num_hidden_layers=0, layer_types=[])
    assert_same(folder, kind)


@pytest.mark.parametrize("case", LAYERS)
def test_projections(tmp_path: Path, case: str) -> None:
    assert_same(small.pylate(tmp_path / "model", LAYERS[case]), "colbert")


@pytest.mark.parametrize("case", SETTINGS)
def test_frames(tmp_path: Path, case: str) -> None:
    assert_same(small.pylate(tmp_path / "model", **SETTINGS[case]), "colbert")


def test_stanford(tmp_path: Path) -> None:
    assert_same(small.stanford(tmp_path / "model"), "colbert")


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundled_model_with_lengths_and_a_dim(kind: Kind) -> None:
    assert_same(None, kind, dim=64, query_length=16, document_length=100)


@pytest.mark.parametrize("mode", ["cls", "mean"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_pooling(tmp_path: Path, mode: str, include_prompt: bool) -> None:
    from sentence_transformers.models import Normalize, Pooling, Transformer

    transformer = Transformer(str(small.bare(tmp_path / "bare")))
    modules = [transformer, Pooling(HIDDEN, mode, include_prompt=include_prompt), Normalize()]
    prompts = {"query": "Represent this question: ", "document": "passage: "}
    assert_same(small.sentence_transformer(tmp_path / "model", modules, prompts=prompts), "dense")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_format(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = small.bare(tmp_path / "model")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same(folder, "colbert")


def test_mapped_weights_are_the_tensors_and_hash_alike(tmp_path: Path) -> None:
    made = {
        "a": torch.randn(3, 5),
        "b": torch.randn(700, 9).half(),
        "c": torch.randn(600, 17).bfloat16(),
        "d": torch.tensor(2.0),
        "e": torch.arange(7),
        "f": torch.empty(0, 4),
    }
    write_tensors(made, tmp_path)
    mapped, tensors = read_arrays(tmp_path), read_tensors(tmp_path)
    assert mapped.keys() == tensors.keys() == made.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(as_float32(mapped[name]), tensor.float().numpy())
        assert not mapped[name].flags.writeable
    hashes = {weights_hash(arrays.items(), b"") for arrays in (mapped, {n: as_array(t) for n, t in tensors.items()})}
    assert len(hashes) == 1
    assert hashes != {weights_hash((mapped | {"a": mapped["a"] + 1}).items(), b"")}


def test_what_it_does_not_serve_is_left_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small.pylate(tmp_path / "elu", [layer(HIDDEN, 8, activation_function="torch.nn.ELU")])
    assert LightEncoder.load("colbert", folder) is None
    folder = small.bare(tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensors[name] for name in tensors if "layers.1.mlp.Wo" not in name}, folder / "model.safetensors")
    assert LightEncoder.load("colbert", folder) is None
    monkeypatch.setattr(light, "MOST_TOKENS", 100)
    assert LightEncoder.load("colbert", document_length=101) is None
    assert LightEncoder.load("colbert", document_length=100, query_length=64) is not None
    monkeypatch.setattr(light, "MOST_PARAMETERS", 1_000_000)
    assert LightEncoder.load("colbert", document_length=100) is None


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from mbretrieve.models.light import LightEncoder\n"
        "for kind in ('colbert', 'dense'):\n    LightEncoder.load(kind).line_scores('a', ['a b\\nc'])\n"
        "print([name for name in ('torch', 'transformers', 'faiss', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
