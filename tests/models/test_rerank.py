"""Candidates scored where they are computed, as on a GPU: on a CPU, the same scores as of vectors that came over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from mbretrieve.models import encoder, load_encoder
from mbretrieve.models.transfer import OnTheWay
from mbretrieve.scoring import on_device, search
from mbretrieve.types import Kind
from tests.models import small
from tests.models.test_workers import KINDS

CANDIDATES = [[text for text in small.TEXTS if text] * 3, small.TEXTS[2:3], [], ["!!! ... ???", "a"]]
QUERIES = [small.TEXTS[0], small.TEXTS[2], "nothing", "quick"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_come_over_and_no_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    folder = small.pylate(tmp_path / "model", do_query_expansion=False)
    model: Any = load_encoder(kind, folder, device="cpu", dtype="float32")
    wanted = model.rerank(QUERIES, CANDIDATES)
    crossed: list[int] = []

    class Counted(OnTheWay):
        def __init__(self, tensors: Sequence[Tensor]) -> None:
            crossed.append(sum(tensor.numel() for tensor in tensors))
            super().__init__(tensors)

    monkeypatch.setattr(encoder, "_SCORED_WHERE_COMPUTED", {"cpu"})
    monkeypatch.setattr(encoder, "OnTheWay", Counted)
    monkeypatch.setattr(encoder, "BATCH_TOKENS", 100)
    monkeypatch.setattr(search, "maxsim_ragged_batch", on_device.maxsim_on_device)
    model.encode_queries(QUERIES)
    before = sum(crossed)
    crossed.clear()
    found = model.rerank(QUERIES, CANDIDATES)
    assert sum(crossed) == before + sum(map(len, CANDIDATES)), "the queries' vectors, and one number for each candidate"
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=0, atol=1e-4)
        scores = [score for _, score in ours]
        assert scores == sorted(scores, reverse=True)
