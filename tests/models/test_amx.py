"""The kernel that this machine's compiler builds, against torch's formulas in float32; and what is without it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mbretrieve.models import amx
from mbretrieve.models.amx import Rows
from mbretrieve.models.attention import PackedBatch, attend
from mbretrieve.models.modernbert import Rotary, rotate

from .oracle import expected, got, ours, texts, theirs

CPU = torch.device("cpu")
LENGTHS = [700, 257, 256, 64, 33, 32, 31, 2, 1]
SHAPES = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 96, "local_attention": 128}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 0, 13, 64, 300])
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [2500, 40]])
@pytest.mark.parametrize("in_units", [False, True])
@torch.no_grad()
def test_it_attends_as_the_formula_says(lengths: list[int], window: int | None, in_units: bool) -> None:
    tokens, rotary = sum(lengths), Rotary(64, 10_000.0)
    stream = draw(tokens, 3, 2, 64) * 1.5
    units = torch.rand(tokens, generator=torch.Generator().manual_seed(1)) + 0.5 if in_units else None
    whole = stream.float() if units is None else stream.float() * units[:, None, None, None]
    batch = PackedBatch(lengths, device=CPU, dtype=torch.float32)
    query, key = rotate(whole[:, :2], *rotary.at(batch.positions, batch.longest, torch.float32)).unbind(1)
    want = attend(query, key, whole[:, 2], batch, window=window).flatten(1)
    out = amx.attend(stream.flatten(1), rotary.table(batch.longest, CPU), batch.lengths, window, units)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want, atol=0.08, rtol=0.01)
    assert torch.cosine_similarity(out.float(), want, dim=-1).min() >= 0.999


@pytest.mark.usefixtures("kernel")
def test_large_scores_stay_finite() -> None:
    stream, rotary = draw(300, 3 * 64) * 100, Rotary(64, 10_000.0)
    out = amx.attend(stream, rotary.table(300, CPU), torch.tensor([300]), None)
    assert torch.isfinite(out).all()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("growth", [-1, 0, 1])
def test_scores_that_lie_far_apart_are_counted_anew(window: int | None, growth: int) -> None:
    # Whole numbers, of which sums are exact: weights lie thousands of powers of two apart, within chunks and between.
    whole = torch.randint(-30, 31, (900, 3, 1, 64), generator=torch.Generator().manual_seed(0)).float()
    whole[:, 1] *= torch.linspace(2.5 - 1.5 * growth, 2.5 + 1.5 * growth, 900).round()[:, None, None]
    table = torch.stack((torch.ones(900, 64), torch.zeros(900, 64)))
    batch = PackedBatch([900], device=CPU, dtype=torch.float32)
    want = attend(*whole.unbind(1), batch, window=window).flatten(1)
    out = amx.attend(whole.to(torch.bfloat16).flatten(1), table, batch.lengths, window)
    torch.testing.assert_close(out.float(), want, atol=0.2, rtol=0.01)


@pytest.mark.usefixtures("kernel")
def test_norms_gates_and_bytes_are_their_formulas() -> None:
    x, weight, more = draw(300, 128), draw(128, seed=1), Rows(draw(300, 128, seed=2), torch.rand(300))
    total = x.float() + more.numbers.float() * more.units[:, None]
    wanted = torch.nn.functional.layer_norm(total, (128,), weight.float(), eps=1e-5)
    given = x.clone()
    torch.testing.assert_close(amx.normalize(given, weight, 1e-5, more).float(), wanted, atol=0.03, rtol=0.01)
    torch.testing.assert_close(given.float(), total, atol=0.02, rtol=0.01)  # what is added stays added
    near(amx.normalize_to_bytes(x.clone(), more, weight, 1e-5), wanted, slack=0.02)
    near(amx.to_bytes(x), x.float(), slack=1e-6)
    both = Rows(draw(300, 128) * 3, torch.rand(300))
    signal, gate = (both.numbers.float() * both.units[:, None]).chunk(2, dim=1)
    near(amx.gate_to_bytes(both), torch.nn.functional.gelu(signal) * gate, slack=1e-3)


def near(rows: Rows, wanted: Tensor, slack: float) -> None:
    """Bytes are within half a unit of what they stand for, and none of the 127 is left unused."""
    torch.testing.assert_close(rows.units, wanted.abs().amax(1) / 127, atol=slack / 127, rtol=0.01)
    assert ((rows.numbers * rows.units[:, None] - wanted).abs() <= 0.51 * rows.units[:, None] + slack).all()


@pytest.mark.usefixtures("kernel")
def test_rows_of_zeros_are_zeros() -> None:
    rows = amx.to_bytes(torch.zeros(3, 32, dtype=torch.bfloat16))
    assert torch.equal(rows.numbers, torch.zeros(3, 32, dtype=torch.int8))
    assert torch.isfinite(rows.units).all()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("more", [{}, {"attention_bias": True, "mlp_bias": True, "norm_bias": True}])
@torch.no_grad()
def test_a_model_by_it_keeps_the_direction_of_every_token(more: dict[str, bool]) -> None:
    oracle, ids = theirs(**SHAPES, **more), texts(LENGTHS)
    model = ours(oracle).to(torch.bfloat16)
    assert amx.serves(torch.empty(sum(LENGTHS), 128, dtype=torch.bfloat16), model.config.head_dim)
    by_kernel = got(model, ids)
    assert torch.cosine_similarity(by_kernel.float(), expected(oracle, ids), dim=-1).min() >= 0.999
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amx, "serves", lambda *_: False)
        by_torch = got(model, ids)
    assert torch.cosine_similarity(by_kernel.float(), by_torch.float(), dim=-1).min() >= 0.999
    assert not torch.equal(by_kernel, by_torch)  # it was the kernel


@pytest.mark.usefixtures("kernel")
def test_without_more_threads_the_caller_does_it_all() -> None:
    code = """
import resource, torch
from mbretrieve.models import amx
stream = torch.randn(1200, 3 * 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
table, lengths = torch.zeros(2, 1200, 64), torch.tensor([700, 500])
table[0] = 1
left, right = torch.randn(2, 512, 512, dtype=torch.bfloat16)
torch.set_num_threads(1)
product = left @ right  # oneDNN's tiles are configured
torch.set_num_threads(4)
whole = amx.attend(stream, table, lengths, None)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 20),) * 2)  # a thread's stack takes 8 MiB
assert torch.equal(amx.attend(stream, table, lengths, None), whole)
torch.set_num_threads(1)
assert torch.equal(left @ right, product)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.usefixtures("kernel")
def test_what_learns_goes_by_torch() -> None:
    model, ids = ours(theirs(**SHAPES)).to(torch.bfloat16), texts(LENGTHS)
    got(model, ids).float().pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_without_a_compiler_torch_does_the_work(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    assert not amx.serves(torch.empty(1 << 14, 64, dtype=torch.bfloat16), 64)
    assert not list(elsewhere.rglob("*.so"))


def test_a_compiler_that_fails_is_not_asked_again(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = elsewhere / "c++"
    compiler.write_text(f"#!/bin/sh\necho x >> {elsewhere}/calls\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{elsewhere}:{os.environ['PATH']}")
    monkeypatch.setattr(amx, "has_amx", lambda: True)
    for _ in range(2):
        assert not amx.serves(torch.empty(1 << 14, 64, dtype=torch.bfloat16), 64)
    assert (elsewhere / "calls").read_text() == "x\n"
    assert not list(elsewhere.rglob("*.so"))


def test_it_is_off_where_the_environment_says_so(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRETRIEVE_COMPILE", "0")
    assert not amx.serves(torch.empty(1 << 14, 64, dtype=torch.bfloat16), 64)


def test_short_batches_call_no_compiler(elsewhere: Path) -> None:
    assert not amx.serves(torch.empty(1000, 64, dtype=torch.bfloat16), 64)
    assert not list(elsewhere.rglob("*.so"))


@pytest.mark.usefixtures("kernel")
def test_a_file_that_others_can_write_is_not_loaded() -> None:
    place = amx.KERNEL.place()
    assert place is not None
    amx.KERNEL.load.cache_clear()
    mode = place.stat().st_mode
    place.chmod(mode | stat.S_IWOTH)
    try:
        assert amx.KERNEL.get() is None
    finally:
        place.chmod(mode)
