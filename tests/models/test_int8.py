"""Models in bytes: near the same model in float32, by the kernel and without it, and for encoding only."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mbretrieve.errors import ModelError
from mbretrieve.models import amx, int8
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.device import resolve_dtype
from mbretrieve.models.int8 import Int8Linear

from .oracle import expected, got, ours, texts, theirs
from .test_amx import SHAPES

needs_bytes = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qlinear_pointwise"), reason="torch has no oneDNN here")
LENGTHS = [500, 64, 20, 7, 1]
DOCUMENTS = ["def read(path):\n    return open(path).read()", "Paris is the capital of France.", "bread " * 300]


def test_a_row_is_within_half_a_unit_of_itself() -> None:
    rows = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 50)[:, None]
    rows[7] = 0
    made = int8.to_bytes(rows)
    assert ((made.numbers * made.units[:, None] - rows).abs() <= 0.5001 * made.units[:, None]).all()
    assert made.numbers.abs().amax(1).tolist() == [0 if row == 7 else 127 for row in range(50)]


@needs_bytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_a_layer_is_near_the_one_it_stands_for(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40, bias=biased)
    x = torch.randn(70, 96)
    made = Int8Linear(linear.to(dtype))(x.to(dtype))
    assert made.dtype == dtype
    assert torch.cosine_similarity(made.float(), linear.float()(x), dim=-1).min() > 0.999


@needs_bytes
@pytest.mark.parametrize(
    "config", [{}, {"attention_bias": True, "mlp_bias": True, "norm_bias": True}, {"hidden_activation": "silu"}]
)
@torch.no_grad()
def test_a_model_keeps_the_direction_of_every_token(config: dict[str, object]) -> None:
    oracle, ids = theirs(**SHAPES, **config), texts(LENGTHS)
    model = ours(oracle).to(torch.bfloat16)
    model.quantize()
    assert model.dtype == torch.int8
    assert torch.cosine_similarity(got(model, ids).float(), expected(oracle, ids), dim=-1).min() >= 0.99


@needs_bytes
@pytest.mark.usefixtures("kernel")
@torch.no_grad()
def test_the_kernel_computes_the_same() -> None:
    oracle, ids = theirs(**SHAPES), texts(LENGTHS)
    model = ours(oracle).to(torch.bfloat16)
    model.quantize()
    assert int8.serves(model._stack, model.final_norm)
    by_kernel = got(model, ids).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amx, "serves", lambda *_: False)
        by_torch = got(model, ids).float()
    assert torch.cosine_similarity(by_kernel, by_torch, dim=-1).min() >= 0.999
    assert torch.cosine_similarity(by_kernel, expected(oracle, ids), dim=-1).min() >= 0.99
    assert not torch.equal(by_kernel, by_torch)  # it was the kernel


@needs_bytes
def test_the_bundled_model_in_bytes_gives_nearly_its_vectors() -> None:
    exact = ColBERT.from_pretrained(device="cpu", dtype="float32").encode_documents(DOCUMENTS)
    model = ColBERT.from_pretrained(device="cpu", dtype="int8")
    assert model.dtype == torch.int8
    for ours_, theirs_ in zip(model.encode_documents(DOCUMENTS), exact, strict=True):
        assert ours_.dtype == np.float32
        assert (ours_ * theirs_).sum(axis=1).min() > 0.98


@needs_bytes
def test_it_is_for_encoding_only(tmp_path: Path) -> None:
    model = ColBERT.from_pretrained(device="cpu", dtype="int8")
    with pytest.raises(ModelError, match="int8, which is for encoding only: to save it, load it in float32"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ModelError, match="int8, which is for encoding only, expected one of float32"):
        resolve_dtype("int8", torch.device("cpu"))  # what a recipe's dtype goes through


def test_it_needs_a_cpu() -> None:
    with pytest.raises(ModelError, match="name device cpu"):
        int8.check(torch.device("cuda"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only of x86 there are CPUs without VNNI")
def test_a_cpu_whose_products_of_bytes_overflow_is_refused() -> None:
    program = "import torch; from mbretrieve.models import int8; int8.check(torch.device('cpu'))"
    older = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], env=older, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "mbretrieve.errors.ModelError: dtype is int8, but torch does not multiply bytes exactly on this CPU"
    )
