"""JointEncoder: one forward gives what ColBERT and DenseEncoder give of the same checkpoint in two."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mbretrieve.errors import ModelError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.models.joint import JointEncoder
from mbretrieve.types import Encoder
from tests.models import small
from tests.models.small import HIDDEN, TEXTS, assert_same_rows


def small_joint(folder: Path) -> Path:
    """A late-interaction model without query expansion, as joint ones are saved: markers, a skiplist, own lengths."""
    return small.pylate(folder / "model", do_query_expansion=False)


MODELS: dict[str, Callable[[Path], Path | None]] = {"bundled": lambda folder: None, "small": small_joint}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dim", [None, 12])
def test_one_forward_gives_what_two_encoders_give(tmp_path: Path, name: str, dim: int | None) -> None:
    folder = MODELS[name](tmp_path)
    joint = JointEncoder.from_pretrained(folder, device="cpu", dtype="float32", dim=dim)
    late = ColBERT.from_pretrained(folder, device="cpu", dtype="float32", dim=dim)
    dense = DenseEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    for side in ("encode_queries", "encode_documents"):
        found = getattr(joint, side)(TEXTS, batch_tokens=100)
        assert_same_rows([one.tokens for one in found], getattr(late, side)(TEXTS), tolerance=1e-5)
        np.testing.assert_allclose(np.stack([one.pooled for one in found]), getattr(dense, side)(TEXTS), atol=1e-5)
    assert getattr(joint, side)([]) == []
    assert joint.identity.pooled_dim == dense.dim
    assert (joint.dim, joint.identity.content_hash) == (late.dim, late.identity.content_hash)


def test_lines_and_reranking_are_those_of_late_interaction() -> None:
    joint, late = JointEncoder.from_pretrained(device="cpu"), ColBERT.from_pretrained(device="cpu")
    texts = ["import csv\n\n\nrows = csv.reader(open(path))", "the weather in Paris", "x"]
    assert isinstance(joint, Encoder)
    for ours, theirs in zip(joint.line_scores("read csv", texts), late.line_scores("read csv", texts), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    [ours], [theirs] = joint.rerank(["read csv"], [texts]), late.rerank(["read csv"], [texts])
    assert [place for place, _ in ours] == [place for place, _ in theirs]
    np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], atol=1e-4)


def test_saved_again_it_is_the_same_for_all_three(tmp_path: Path) -> None:
    joint = JointEncoder.from_pretrained(small_joint(tmp_path), device="cpu", dtype="float32")
    joint.save_pretrained(tmp_path / "saved")
    again = JointEncoder.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    late = ColBERT.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.identity.content_hash == late.identity.content_hash == joint.identity.content_hash
    for ours, theirs in zip(again.encode_documents(TEXTS), joint.encode_documents(TEXTS), strict=True):
        np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=1e-6)
        np.testing.assert_allclose(ours.pooled, theirs.pooled, atol=1e-6)


def one_vector(folder: Path) -> Path:
    from sentence_transformers.models import Pooling, Transformer

    parts = [Transformer(str(small.bare(folder / "bare"))), Pooling(HIDDEN, "mean")]
    return small.sentence_transformer(folder / "model", parts)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one_vector, "one vector a text"),
        (lambda folder: small.bare(folder / "model"), "without a head"),
        (lambda folder: small.pylate(folder / "model"), "fills queries"),
    ],
    ids=["dense", "bare", "expansion"],
)
def test_another_model_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(ModelError, match=said) as raised:
        JointEncoder.from_pretrained(make(tmp_path), device="cpu")
    assert "\n" not in str(raised.value)
    assert 'train one with model.kind = "joint"' in str(raised.value)
