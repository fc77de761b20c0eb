"""Vectors kept on disk are those that were made, whatever a killed run left of them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mbretrieve.evaluation.encoding import JointFile, Metered, VectorFile
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.models.joint import JointEncoder

TEXTS = ["def f(): return 1", "", "a longer text about nothing in particular", "def f(): return 1"]
LONG = "one two three " * 200


@pytest.fixture(scope="module")
def colbert() -> ColBERT:
    return ColBERT.from_pretrained()


def made(count: int, rows: int = 2) -> list[NDArray[np.float32]]:
    return [np.full((rows, 3), number, np.float32) for number in range(count)]


@pytest.mark.parametrize("lost", range(0, 24 + 1, 5))
def test_what_a_killed_run_left_unfinished_is_dropped(tmp_path: Path, lost: int) -> None:
    VectorFile(tmp_path, 3).append(["a", "b", "c"], made(3))
    for name in ("records.bin", "vectors.f32"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - lost])
        again = VectorFile(tmp_path, 3)
        assert "a" in again
        assert ("c" in again) == (lost == 0)
        again.append(["c", "d"], [np.full((1, 3), 7, np.float32), np.full((1, 3), 8, np.float32)])
        assert (again.rows("a") == 0).all()
        assert (again.rows("d") == 8).all()
        assert (again.rows("c") == (7 if lost else 2)).all()
        (tmp_path / name).write_bytes(whole)
        for path in tmp_path.iterdir():
            path.unlink()
        VectorFile(tmp_path, 3).append(["a", "b", "c"], made(3))


def test_kept_vectors_are_the_encoders(tmp_path: Path, colbert: ColBERT) -> None:
    for number, encoder in enumerate((colbert, DenseEncoder.from_pretrained())):
        kept = VectorFile(tmp_path / str(number), encoder.dim)
        metered = Metered(encoder, kept=kept)
        first = metered.encode_documents(TEXTS)
        tokens = metered.tokens
        second = metered.encode_documents(list(reversed(TEXTS)))
        assert metered.tokens == tokens, "encoded twice"
        wanted = encoder.encode_documents(list(dict.fromkeys(TEXTS)))
        for came in (first, list(reversed(second))):
            for text, rows in zip(TEXTS, came, strict=True):
                np.testing.assert_array_equal(rows, wanted[list(dict.fromkeys(TEXTS)).index(text)])


def test_kept_vectors_of_both_heads_are_the_encoders(tmp_path: Path) -> None:
    encoder = JointEncoder.from_pretrained()
    metered = Metered(encoder, kept=JointFile(tmp_path, encoder.dim, encoder.identity.pooled_dim))
    metered.encode_documents(TEXTS[:2])
    (tmp_path / "pooled" / "records.bin").write_bytes(b"")  # killed between the two
    again = Metered(encoder, kept=JointFile(tmp_path, encoder.dim, encoder.identity.pooled_dim))
    wanted = dict(zip(dict.fromkeys(TEXTS), encoder.encode_documents(list(dict.fromkeys(TEXTS))), strict=True))
    for text, came in zip(TEXTS, again.encode_documents(TEXTS), strict=True):
        np.testing.assert_allclose(came.tokens, wanted[text].tokens, atol=1e-5)
        np.testing.assert_allclose(came.pooled, wanted[text].pooled, atol=1e-5)


def test_a_cut_document_is_one_window_of_its_first_tokens(colbert: ColBERT) -> None:
    [offsets] = Metered(colbert, cut=True).token_offsets([LONG])
    [whole] = Metered(colbert).token_offsets([LONG])
    assert len(offsets) == colbert.document_capacity < len(whole)
    np.testing.assert_array_equal(offsets, whole[: len(offsets)])


def test_tokens_are_counted_as_far_as_they_are_read(colbert: ColBERT) -> None:
    metered = Metered(colbert)
    metered.encode_documents([LONG, "two words"])
    assert metered.tokens == colbert.document_capacity + 2
    assert metered.seconds > 0
