"""MaxSim as a GPU computes it, on a CPU: against loops, within its bound, and the kernel by Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mbretrieve import scoring
from mbretrieve.errors import MbretrieveWarning
from mbretrieve.scoring import on_device
from tests.test_scoring import COUNTS, DIM, SEED, by_loops, draw, ragged


def tensors(queries: list[Any]) -> list[Tensor]:
    return [torch.from_numpy(query) for query in queries]


@given(
    seed=SEED,
    dim=DIM,
    queries=COUNTS,
    documents=COUNTS,
    tokens=st.integers(1, 20),
    similarities=st.integers(1, 60),
    data=st.data(),
)
def test_the_way_of_a_gpu_equals_three_loops_at_any_bound(
    seed: int, dim: int, queries: list[int], documents: list[int], tokens: int, similarities: int, data: st.DataObject
) -> None:
    q, d = draw(seed, queries, dim), draw(seed + 1, documents, dim)
    rows = data.draw(st.one_of(st.none(), st.lists(st.integers(0, len(d) - 1), max_size=8)))
    chosen = None if rows is None else np.array(rows, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "TOKENS", tokens)
        patch.setattr(on_device, "SIMILARITIES", similarities)
        scores = on_device.maxsim_on_device(tensors(q), *ragged(d), chosen)
    assert scores.dtype == torch.float32
    wanted = by_loops(q, d if rows is None else [d[row] for row in rows])
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_agrees_with_the_way_of_a_cpu_at_usual_sizes(dtype: torch.dtype) -> None:
    q, d = draw(0, [32, 5, 200], 64), draw(1, [300, 1, 8000, 40, 40, 511, 2, 3000], 64)
    tokens, offsets = ragged(d, dtype)
    wanted = scoring.maxsim_ragged_batch(tensors(q), tokens, offsets)
    torch.testing.assert_close(on_device.maxsim_on_device(tensors(q), tokens, offsets), wanted, rtol=1e-5, atol=1e-3)


class Largest(TorchDispatchMode):
    """Note how many numbers the largest tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *made])
        return out


@pytest.mark.parametrize(
    ("queries", "documents"),
    [([30] * 20, [40] * 60), ([600], [40] * 60), ([3] * 200, [1] * 2000), ([30] * 20, [900, 1, 1, 2]), ([1], [1])],
)
def test_nothing_in_memory_is_larger_than_the_bound(
    monkeypatch: pytest.MonkeyPatch, queries: list[int], documents: list[int]
) -> None:
    dim, tokens, similarities = 4, 256, 4096
    monkeypatch.setattr(on_device, "TOKENS", tokens)
    monkeypatch.setattr(on_device, "SIMILARITIES", similarities)
    q, d = draw(0, queries, dim), draw(1, documents, dim)
    stored, offsets = ragged(d)
    given, result = max(sum(queries), sum(documents)) * dim, len(queries) * len(documents)
    with Largest() as largest:
        scores = on_device.maxsim_on_device(tensors(q), stored, offsets)
    assert largest.numbers <= max(similarities, tokens * dim, max(documents) * dim, given, result)
    assert largest.numbers < sum(queries) * sum(documents) or result == 1
    torch.testing.assert_close(scores, scoring.maxsim_ragged_batch(tensors(q), stored, offsets), rtol=1e-4, atol=1e-4)


def test_tokens_that_are_not_on_the_cpu_are_scored_where_they_are() -> None:
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring.search, "maxsim_on_device", lambda *given: asked.append(given))
        scoring.maxsim_ragged_batch([torch.ones(2, 3)], torch.empty(5, 3, device="meta"), torch.tensor([0, 5]))
    [(queries, tokens, offsets, rows)] = asked
    assert (len(queries), tokens.device.type, offsets.tolist(), rows) == (1, "meta", [0, 5], None)


def test_the_same_is_refused() -> None:
    tokens, offsets = torch.ones(4, 12), torch.tensor([0, 3, 3, 4])
    with pytest.raises(ValueError, match="query has no token"):
        on_device.maxsim_on_device([torch.ones(0, 12)], tokens, offsets)
    with pytest.raises(ValueError, match="dim 3, documents have dim 12"):
        on_device.maxsim_on_device([torch.ones(1, 3)], tokens, offsets)
    with pytest.raises(ValueError, match="document 1 has no token"):
        on_device.maxsim_on_device([torch.ones(1, 12)], tokens, offsets)
    rows = np.array([], dtype=np.int64)
    assert on_device.maxsim_on_device([], tokens, torch.tensor([0, 3, 4])).shape == (0, 2)
    assert on_device.maxsim_on_device([torch.ones(1, 12)], tokens, offsets, rows).shape == (1, 0)


class OnCuda(Tensor):
    """Tokens that say they are on a GPU."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


@pytest.mark.parametrize("ends", [RuntimeError("Failed to find C compiler.\nmore"), torch.OutOfMemoryError("memory")])
def test_where_the_kernel_fails_torch_does_the_work_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, ends: Exception
) -> None:
    tried = []

    def fail(*_: Any) -> Tensor:
        tried.append(1)
        raise ends

    kernel = type(sys)("mbretrieve.scoring.triton_kernel")
    kernel.maxsim_by_kernel = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    monkeypatch.setattr(on_device, "_has_triton", lambda: True)
    monkeypatch.setattr(on_device, "_failed", [])
    q, (tokens, offsets) = tensors(draw(0, [3], 4)), ragged(draw(1, [2, 5], 4))
    there = tokens.as_subclass(OnCuda)
    if isinstance(ends, torch.OutOfMemoryError):  # for who asked: smaller batches are the answer
        with pytest.raises(torch.OutOfMemoryError):
            on_device.maxsim_on_device(q, there, offsets)
        return
    with pytest.warns(
        MbretrieveWarning, match=r"cannot be had here \(RuntimeError: Failed to find C compiler\.\)"
    ) as said:
        found = [on_device.maxsim_on_device(q, there, offsets).as_subclass(Tensor) for _ in range(2)]
    assert (len(said), len(tried)) == (1, 1)
    for scores in found:
        torch.testing.assert_close(scores, scoring.maxsim_ragged_batch(q, tokens, offsets))


INTERPRETED = """
import torch
from tests.test_scoring import by_loops, draw, ragged
from mbretrieve.scoring.triton_kernel import maxsim_by_kernel
for seed, (queries, documents, dim) in enumerate([
    ([1], [1], 1), ([3, 40, 32], [1, 5, 70, 33, 32, 31], 9), ([32], [300, 2, 64], 128), ([5, 65], [7, 20], 96),
]):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, d = draw(seed, queries, dim), draw(seed + 1, documents, dim)
        tokens, offsets = ragged(d, dtype)
        rounded = [part.float().numpy() for part in tokens.split(documents)]
        stacked = torch.cat([torch.from_numpy(query) for query in q])
        scores = maxsim_by_kernel(stacked, queries, tokens, offsets[:-1], offsets.diff())
        torch.testing.assert_close(scores.double(), torch.from_numpy(by_loops(q, rounded)), rtol=1e-5, atol=1e-3)
print("as by loops")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: its interpreter runs the kernel")
def test_the_kernel_as_triton_interprets_it() -> None:
    command = [sys.executable, "-c", INTERPRETED]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "as by loops\n", done.stderr


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mbretrieve.scoring import triton_kernel
kinds = {"queries": "*fp32", "query_starts": "*i64", "starts": "*i64", "lengths": "*i64", "scores": "*fp32"}
for stored in ("*fp32", "*bf16", "*fp16"):
    for width in (16, 64):
        sizes = {"documents": "i32", "dim": "i32", "TILE": "constexpr", "WIDTH": "constexpr"}
        signature = kinds | sizes | {"tokens": stored}
        order = {name: signature[name] for name in triton_kernel._maxsim.arg_names}
        source = ASTSource(triton_kernel._maxsim, order, {"TILE": triton_kernel._TILE, "WIDTH": width})
        for capability in (80, 90):
            assert "cubin" in triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: its compiler needs no GPU")
def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Any) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "compiled\n", done.stderr
