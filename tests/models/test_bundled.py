"""The bundled model: sentence-transformers' vectors of it are the reference."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mbretrieve.errors import ModelError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.models.joint import JointEncoder
from mbretrieve.models.source import BUNDLED, locate
from tests.models.small import TEXTS, assert_same_rows


@pytest.fixture(scope="module")
def colbert() -> ColBERT:
    return ColBERT.from_pretrained(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def dense() -> DenseEncoder:
    return DenseEncoder.from_pretrained(device="cpu", dtype="float32")


def assert_same_as_oracle(folder: Path, colbert: ColBERT) -> None:
    module = pytest.importorskip("sentence_transformers.multi_vector_encoder", reason="the oracle came with version 6")
    oracle = module.MultiVectorEncoder(str(folder), device="cpu", model_kwargs={"dtype": "float32"}).float()
    queries, documents = oracle.encode_query(TEXTS, convert_to_numpy=True), oracle.encode_document(TEXTS)
    assert_same_rows(colbert.encode_queries(TEXTS), queries, tolerance=1e-3)
    assert_same_rows(colbert.encode_documents(TEXTS), [rows.numpy() for rows in documents], tolerance=1e-3)


def test_token_vectors_are_the_reference(colbert: ColBERT) -> None:
    assert_same_as_oracle(locate(None).folder, colbert)


def test_saved_it_is_still_the_reference(colbert: ColBERT, tmp_path: Path) -> None:
    colbert.save_pretrained(tmp_path)
    assert_same_as_oracle(tmp_path, colbert)
    again = ColBERT.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert_same_rows(again.encode_queries(TEXTS), colbert.encode_queries(TEXTS), tolerance=1e-6)
    with pytest.raises(ModelError, match="rows that keep their own length"):
        colbert.save_pretrained(tmp_path, layout="pylate")


def test_dense_vectors_are_the_mean_of_hidden_states(dense: DenseEncoder, tmp_path: Path) -> None:
    import sentence_transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    texts = [text for text in TEXTS if text == text.strip()]  # as sentence-transformers had them before version 6
    modules = [Transformer(str(locate(None).folder)), Pooling(256), Normalize()]
    oracle = SentenceTransformer(modules=modules, device="cpu").float()
    for encode, length in ((dense.encode_queries, 64), (dense.encode_documents, 512)):
        oracle.max_seq_length = length
        np.testing.assert_allclose(encode(texts), oracle.encode(texts), atol=1e-3)
    if int(sentence_transformers.__version__.split(".")[0]) >= 6:  # a length for each side
        dense.save_pretrained(tmp_path)
        saved = SentenceTransformer(str(tmp_path), device="cpu")
        np.testing.assert_allclose(dense.encode_queries(TEXTS), saved.encode_query(TEXTS), atol=1e-3)
        np.testing.assert_allclose(dense.encode_documents(TEXTS), saved.encode_document(TEXTS), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_keep_the_direction_of_every_vector(colbert: ColBERT, dense: DenseEncoder, dtype: str) -> None:
    def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
        assert [rows.shape for rows in found] == [rows.shape for rows in wanted]
        for rows, exact in zip(found, wanted, strict=True):
            assert rows.dtype == np.float32
            lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(exact, axis=-1)
            assert ((rows * exact).sum(axis=-1) >= 0.999 * lengths).all()

    late = ColBERT.from_pretrained(device="cpu", dtype=dtype)
    pooled = DenseEncoder.from_pretrained(device="cpu", dtype=dtype)
    joint = JointEncoder.from_pretrained(device="cpu", dtype=dtype)
    for side in ("encode_queries", "encode_documents"):
        rows, means = getattr(colbert, side)(TEXTS), list(getattr(dense, side)(TEXTS))
        both = getattr(joint, side)(TEXTS)
        same(getattr(late, side)(TEXTS), rows)
        same(list(getattr(pooled, side)(TEXTS)), means)
        same([one.tokens for one in both], rows)
        same([one.pooled for one in both], means)


def test_what_its_card_says(colbert: ColBERT, dense: DenseEncoder) -> None:
    assert (colbert.query_length, colbert.document_length, colbert.dim) == (64, 512, 128)
    assert (dense.query_length, dense.document_length, dense.dim) == (64, 512, 256)
    assert colbert.document_capacity == dense.document_capacity == 510
    lengths = np.linalg.norm(colbert.encode_queries(["how to read a file"])[0], axis=1)
    assert lengths.std() > 0.05  # term weights
    rows = colbert.encode_documents(["open a file and read its lines"])[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    vectors = dense.encode_documents(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_it_finds_what_was_asked_for(colbert: ColBERT, dense: DenseEncoder) -> None:
    texts = ["def add(a, b): return a + b", "def read_lines(path): return open(path).readlines()", "# licence: MIT"]
    for model in (colbert, dense):
        assert model.rerank(["how do I read a file line by line"], [texts])[0][0][0] == 1


def test_bfloat16_is_close(colbert: ColBERT) -> None:
    half = ColBERT.from_pretrained(device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.identity == colbert.identity
    for ours, exact in zip(half.encode_documents(TEXTS), colbert.encode_documents(TEXTS), strict=True):
        assert ours.dtype == np.float32
        assert (ours * exact).sum(axis=1).min() > 0.99


def test_its_name_loads_it_again(colbert: ColBERT) -> None:
    assert colbert.identity.name == BUNDLED
    assert ColBERT.from_pretrained(BUNDLED).identity == colbert.identity


def test_it_needs_neither_network_nor_transformers_nor_faiss() -> None:
    code = (
        "import sys; from mbretrieve.models.colbert import ColBERT; from mbretrieve.models.dense import DenseEncoder; "
        "ColBERT.from_pretrained().encode_queries(['a']); DenseEncoder.from_pretrained().encode_queries(['a']); "
        "print([name for name in ('transformers', 'faiss', 'huggingface_hub', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
