"""What only a GPU can tell, where there is one: vectors and scores are those of a CPU, and the host never waits.

The arithmetic of each path is tested without one: ``test_attention``, ``test_graphs``, ``test_transfer``.
"""

from typing import Any

import numpy as np
import pytest
import torch

from mbretrieve import scoring
from mbretrieve.models import graphs, load_encoder
from mbretrieve.models.transfer import OnTheWay
from mbretrieve.scoring import on_device
from mbretrieve.types import Kind
from tests.models import small
from tests.models.test_workers import KINDS, arrays
from tests.test_scoring import draw, ragged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
TEXTS = [text for text in small.TEXTS if text] * 5


def load(kind: Kind, device: str = "cuda", dtype: str = "float32") -> Any:
    return load_encoder(kind, device=device, dtype=dtype)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch, kind: Kind, dtype: str, compiled: bool) -> None:
    monkeypatch.setattr(graphs, "_failed", [])
    exact, model = load(kind, "cpu"), load(kind, dtype=dtype)
    model.backbone.graphs.long_job = 0 if compiled else None
    for side in ("encode_queries", "encode_documents"):
        found, wanted = (arrays(kind, getattr(one, side)(TEXTS, batch_tokens=300)) for one in (model, exact))
        if dtype == "float32":
            small.assert_same_rows(found, wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
            assert ((ours * theirs).sum(axis=-1) >= 0.999 * lengths).all()
    assert not graphs._failed


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_score_as_on_a_cpu(kind: Kind) -> None:
    exact, model = load(kind, "cpu"), load(kind)
    [ours], [theirs] = (one.rerank(["quick fox"], [TEXTS]) for one in (model, exact))
    np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [9, 64, 128, 300])
def test_both_ways_of_maxsim_on_a_gpu_are_those_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, dim: int
) -> None:
    monkeypatch.setattr(on_device, "_failed", [])
    queries = [torch.from_numpy(query) for query in draw(0, [32, 5, 70], dim)]
    tokens, offsets = ragged(draw(1, [300, 1, 4000, 40, 33], dim), dtype)
    wanted = scoring.maxsim_ragged_batch(queries, tokens, offsets)
    found = scoring.maxsim_ragged_batch(queries, tokens.cuda(), offsets)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-3)
    assert not on_device._failed
    monkeypatch.setattr(on_device, "_has_triton", lambda: False)
    found = scoring.maxsim_ragged_batch(queries, tokens.cuda(), offsets)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["colbert", "dense"])
def test_the_host_never_waits_in_a_forward(kind: Kind) -> None:
    model = load(kind, dtype="bfloat16")
    batch = model.documents.prepare(TEXTS)
    compute = model.project if kind == "colbert" else model.pool
    with torch.inference_mode():
        before = compute(batch, model.documents)  # what is made once, the table of positions, may wait
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_the_way = OnTheWay([compute(batch, model.documents).float()])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(on_the_way.arrays()[0], before.float().cpu().numpy(), rtol=0, atol=1e-2)
