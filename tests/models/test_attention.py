"""Attention against its definition, and the kernel table's arguments against a reference of the varlen calls."""

import inspect
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbretrieve.models import attention, tiles
from mbretrieve.models.attention import Case, PackedBatch, attend, choose

TOLERANCE = 1e-5
CPU = torch.device("cpu")


def defined(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], attended: Tensor | None, window: int | None
) -> Tensor:
    """The formula, over the whole stream at once."""
    text = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(len(text))
    allowed = text[:, None] == text
    if window is not None:
        allowed &= (place[:, None] - place).abs() <= window
    if attended is not None:
        allowed &= attended
    scores = torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num()
    return torch.einsum("hij,jhd->ihd", weights, value)


def stream(tokens: int, heads: int, head_dim: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, head_dim, generator=generator) for _ in range(3)]


def batch_of(lengths: list[int], attended: Tensor | None = None) -> PackedBatch:
    return PackedBatch(lengths, device=CPU, dtype=torch.float32, attended=attended)


LENGTHS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.lists(st.sampled_from([1, 15, 16, 17, 64, 130, 300]), min_size=1, max_size=5),
    st.tuples(st.integers(1, 40), st.integers(1, 8)).map(lambda pair: [pair[0]] * pair[1]),
)


@settings(max_examples=80, deadline=None)
@given(
    LENGTHS,
    st.integers(1, 5),
    st.sampled_from([2, 6, 8, 64]),
    st.one_of(st.none(), st.integers(0, 90)),
    st.sampled_from([None, 0.9, 0.3, 0.0]),
    st.integers(0, 5),
)
def test_attention_is_what_its_formula_says(
    lengths: list[int], heads: int, head_dim: int, window: int | None, share: float | None, seed: int
) -> None:
    tokens = sum(lengths)
    attended = None if share is None else torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < share
    query, key, value = stream(tokens, heads, head_dim, seed)
    out = attend(query, key, value, batch_of(lengths, attended), window=window)
    want = defined(query, key, value, lengths, attended, window)
    torch.testing.assert_close(out, want, atol=TOLERANCE, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    LENGTHS,
    st.integers(1, 3),
    st.sampled_from([2, 8]),
    st.one_of(st.none(), st.integers(0, 90)),
    st.sampled_from([None, 0.9, 0.3, 0.0]),
    st.integers(0, 5),
    st.sampled_from([(512, 128), (7, 3)]),
)
def test_gradients_are_those_of_the_formula(
    lengths: list[int],
    heads: int,
    head_dim: int,
    window: int | None,
    share: float | None,
    seed: int,
    cut: tuple[int, int],
) -> None:
    tokens = sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    attended = None if share is None else torch.rand(tokens, generator=generator) < share
    weights = torch.randn(tokens, heads, head_dim, generator=generator)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_WHOLE", cut[0])
        patch.setattr(tiles, "_CUT", cut[1])
        for forward in (
            lambda q, k, v: attend(q, k, v, batch_of(lengths, attended), window=window),
            lambda q, k, v: defined(q, k, v, lengths, attended, window),
        ):
            inputs = [x.requires_grad_() for x in stream(tokens, heads, head_dim, seed)]
            out = forward(*inputs)
            (out * weights).sum().backward()
            found.append([out, *(x.grad for x in inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 60])
def test_the_gradients_of_all_kernels_on_a_cpu_agree(window: int | None) -> None:
    lengths = [300, 20, 20, 1, 700]
    attended = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(1)) < 0.6
    found = []
    for name in (TILES, SDPA):
        kernel = next(kernel for kernel in attention.KERNELS if kernel.name == name)
        inputs = [x.requires_grad_() for x in stream(sum(lengths), 2, 8, 0)]
        kernel.attend(*inputs, batch_of(lengths, attended), window, 0.0).pow(2).sum().backward()
        found.append([x.grad for x in inputs])
    for ours, theirs in zip(*found, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


def test_bfloat16_gradients_are_near_those_of_float32_under_autocast_too() -> None:
    lengths, found = [40, 90, 600, 5], []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype).requires_grad_() for x in stream(sum(lengths), 2, 16, 0)]
        batch = PackedBatch(lengths, device=CPU, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attend(*inputs, batch, window=30)
            assert out.dtype == dtype
            out.float().pow(2).sum().backward()
        found.append([out.detach().float(), *(x.grad.float() for x in inputs)])
    for exact, low in zip(*found, strict=True):
        assert torch.cosine_similarity(exact.flatten(), low.flatten(), dim=0) > 0.999


def test_runs_cover_the_stream_in_order() -> None:
    batch = batch_of([4, 4, 4, 2, 4])
    assert [tuple(run) for run in batch.runs] == [(0, 3, 4), (12, 1, 2), (14, 1, 4)]
    assert batch.positions.tolist() == [0, 1, 2, 3] * 3 + [0, 1] + [0, 1, 2, 3]
    assert batch.text_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2 + [4] * 4
    assert batch.bounds.tolist() == [0, 4, 8, 12, 14, 18]
    assert batch.bounds.dtype == torch.int32


@pytest.mark.parametrize("lengths", [[], [0], [3, 0]])
def test_an_empty_text_is_a_programming_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="length"):
        batch_of(lengths)


def reference_varlen(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, window: tuple[int, int]
) -> Tensor:
    """What FlashAttention-2 documents of its varlen kernel: a query sees keys from i - left to i + right, inclusive."""
    assert bounds.dtype == torch.int32
    assert bounds[0] == 0
    assert bounds[-1] == len(query) == len(key) == len(value)
    out = []
    for start, end in pairwise(bounds.tolist()):
        assert end - start <= longest
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        place = torch.arange(end - start)
        distance = place - place[:, None]
        left, right = (x if x >= 0 else end for x in window)
        hidden = (distance < -left) | (distance > right)
        scores = (q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5
        out.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    assert longest == max(bounds.diff().tolist())
    return torch.cat(out)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """flash-attn's function in its own argument names."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k
    assert (dropout_p, softmax_scale, causal) == (0.0, None, False)
    return reference_varlen(q, k, v, cu_seqlens_q, max_seqlen_q, window_size)


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> attention.Kernel:
    """Let a varlen kernel of the table be called on a CPU, where the reference answers in its place."""
    if name == "flash-attn varlen":
        package = ModuleType("flash_attn")
        package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", package)
    else:
        varlen = pytest.importorskip("torch.nn.attention.varlen")
        signature = inspect.signature(varlen.varlen_attn)

        def on_cpu(*args: Any, **kwargs: Any) -> Tensor:
            given = signature.bind(*args, **kwargs)  # torch's own signature: an argument it does not have fails here
            given.apply_defaults()
            a = given.arguments
            assert a["cu_seq_q"] is a["cu_seq_k"]
            assert a["max_q"] == a["max_k"]
            assert a["scale"] is None
            return reference_varlen(a["query"], a["key"], a["value"], a["cu_seq_q"], a["max_q"], a["window_size"])

        monkeypatch.setattr(varlen, "varlen_attn", on_cpu)
    return next(kernel for kernel in attention.KERNELS if kernel.name == name)


@pytest.mark.parametrize("window", [None, 0, 7, 64])
@pytest.mark.parametrize("lengths", [[300, 2, 70, 70, 1], [9]])
@pytest.mark.parametrize("name", ["flash-attn varlen", "torch varlen"])
def test_varlen_kernels_are_asked_for_the_same(
    name: str, lengths: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = stand_in(name, monkeypatch)
    query, key, value = stream(sum(lengths), 3, 8, 0)
    out = kernel.attend(query, key, value, batch_of(lengths), window, 0.0)
    want = attend(query, key, value, batch_of(lengths), window=window)
    torch.testing.assert_close(out, want, atol=TOLERANCE, rtol=0)


FLASH, VARLEN, SDPA = "flash-attn varlen", "torch varlen", "banded SDPA"
TILES = "tiles"
AMPERE = Case("cuda", (8, 0), torch.bfloat16, 64, unattended=False, dropout=False, learning=False)


@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        (AMPERE, [FLASH, VARLEN, SDPA]),
        (AMPERE._replace(capability=(9, 0), dtype=torch.float16, head_dim=256), [FLASH, VARLEN, SDPA]),
        (AMPERE._replace(dropout=True), [FLASH, SDPA]),
        (AMPERE._replace(learning=True), [FLASH, VARLEN, TILES, SDPA]),
        (AMPERE._replace(learning=True, dropout=True), [FLASH, SDPA]),
        (AMPERE._replace(unattended=True), [SDPA]),
        (AMPERE._replace(unattended=True, learning=True), [TILES, SDPA]),
        (AMPERE._replace(dtype=torch.float32), [SDPA]),
        (AMPERE._replace(capability=(7, 5)), [SDPA]),
        (AMPERE._replace(head_dim=20), [SDPA]),
        (AMPERE._replace(head_dim=264), [SDPA]),
        (AMPERE._replace(device="cpu", capability=(0, 0)), [SDPA]),
        (AMPERE._replace(device="cpu", capability=(0, 0), learning=True), [TILES, SDPA]),
        (AMPERE._replace(device="cpu", capability=(0, 0), learning=True, dropout=True), [SDPA]),
        (AMPERE._replace(device="mps", capability=(0, 0)), [SDPA]),
    ],
)
def test_the_kernel_table(case: Case, kernels: list[str]) -> None:
    assert [kernel.name for kernel in attention.KERNELS if kernel.serves(case)] == kernels
    assert choose(case).name == next(k.name for k in attention.KERNELS if k.name in kernels and k.installed())


def test_torchs_varlen_kernel_is_taken_for_installed_only_with_its_window() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    assert attention._has_varlen() == ("window_size" in inspect.signature(varlen.varlen_attn).parameters)
