"""DenseEncoder against sentence-transformers' SentenceTransformer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.errors import ModelError
from mbretrieve.models.dense import DenseEncoder, pool_at_once, pool_states
from mbretrieve.types import Encoder
from tests.models import small
from tests.models.small import HIDDEN

VERSION_6 = int(sentence_transformers.__version__.split(".")[0]) >= 6
# Before version 6 sentence-transformers strips the white space around prompt and text.
TEXTS = [text for text in small.TEXTS if VERSION_6 or text.strip() == text != ""]


def load(folder: Path, **arguments: Any) -> DenseEncoder:
    return DenseEncoder.from_pretrained(folder, device="cpu", dtype="float32", **arguments)


def modules(folder: Path, *more: torch.nn.Module, **settings: Any) -> list[torch.nn.Module]:
    from sentence_transformers.models import Transformer

    return [Transformer(str(small.bare(folder / "bare", family=settings.pop("family", "bpe"))), **settings), *more]


def pooling(mode: Any = "mean", **options: Any) -> torch.nn.Module:
    from sentence_transformers.models import Pooling

    return Pooling(HIDDEN, mode, **options)


def dense(in_features: int = HIDDEN, out_features: int = 8, **options: Any) -> torch.nn.Module:
    from sentence_transformers.models import Dense

    torch.manual_seed(5)
    return Dense(in_features, out_features, **options)


def normalize() -> torch.nn.Module:
    from sentence_transformers.models import Normalize

    return Normalize()


PROMPTS = {"prompts": {"query": "Represent this question: ", "document": "passage: "}}
CASES: dict[str, Any] = {
    "mean": lambda f: (modules(f, pooling(), normalize()), {}),
    "cls": lambda f: (modules(f, pooling("cls"), normalize()), {}),
    "not_scaled": lambda f: (modules(f, pooling()), {}),
    "cut": lambda f: (modules(f, pooling(), normalize(), max_seq_length=24), {}),
    "dense": lambda f: (modules(f, pooling(), dense(), normalize()), {}),
    "dense_stack": lambda f: (
        modules(f, pooling("cls"), dense(), dense(8, 8, bias=False, activation_function=torch.nn.GELU())),
        {},
    ),
    "prompts": lambda f: (modules(f, pooling(), normalize()), PROMPTS),
    "wordpiece": lambda f: (modules(f, pooling(), normalize(), family="wordpiece"), PROMPTS),
    "roberta": lambda f: (modules(f, pooling(), normalize(), family="roberta"), {}),
}

if VERSION_6:  # before, a side had no length of its own, and a prompt was measured without its last space
    CASES |= {
        "lengths_by_side": lambda f: (modules(f, pooling(), normalize(), query_length=8, document_length=40), {}),
        "prompt_left_out_of_mean": lambda f: (modules(f, pooling(include_prompt=False), normalize()), PROMPTS),
        "prompt_left_out_of_cls": lambda f: (modules(f, pooling("cls", include_prompt=False), normalize()), PROMPTS),
        "marker_left_out": lambda f: (
            modules(f, pooling(include_prompt=False), normalize()),
            {"prompts": {"query": "[Q] ", "document": ""}},
        ),
    }


def assert_same_as_oracle(folder: Path, model: DenseEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(model.encode_queries(TEXTS), oracle.encode_query(TEXTS), atol=1e-4, rtol=0)
    np.testing.assert_allclose(model.encode_documents(TEXTS), oracle.encode_document(TEXTS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_sentence_transformers_layout(tmp_path: Path, case: str) -> None:
    parts, arguments = CASES[case](tmp_path)
    folder = small.sentence_transformer(tmp_path / "model", parts, **arguments)
    assert_same_as_oracle(folder, load(folder))


@pytest.mark.parametrize("case", CASES)
def test_saved_again_it_is_the_same(tmp_path: Path, case: str) -> None:
    parts, arguments = CASES[case](tmp_path)
    model = load(small.sentence_transformer(tmp_path / "model", parts, **arguments))
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    np.testing.assert_allclose(again.encode_queries(TEXTS), model.encode_queries(TEXTS), atol=1e-5)
    np.testing.assert_allclose(again.encode_documents(TEXTS), model.encode_documents(TEXTS), atol=1e-5)
    assert_same_as_oracle(tmp_path / "saved", model)


def test_older_pooling_file(tmp_path: Path) -> None:
    folder = small.sentence_transformer(tmp_path / "model", modules(tmp_path, pooling("cls")))
    small.write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    )
    assert_same_as_oracle(folder, load(folder))


def test_late_interaction_seen_as_dense_is_the_mean_of_hidden_states(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = small.pylate(tmp_path / "model", query_prefix="", document_prefix="", query_length=40)
    oracle = SentenceTransformer(modules=[*modules(tmp_path), pooling(), normalize()], device="cpu")
    oracle.max_seq_length = 40
    model = load(folder, document_length=40)
    np.testing.assert_allclose(model.encode_queries(TEXTS), oracle.encode(TEXTS), atol=1e-4)
    np.testing.assert_allclose(model.encode_documents(TEXTS), oracle.encode(TEXTS), atol=1e-4)


def test_bare_modernbert_is_the_mean_of_hidden_states(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(modules=[*modules(tmp_path), pooling(), normalize()], device="cpu")
    np.testing.assert_allclose(load(tmp_path / "bare").encode_documents(TEXTS), oracle.encode(TEXTS), atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DenseEncoder:
    folder = tmp_path_factory.mktemp("dense")
    return load(small.sentence_transformer(folder / "model", modules(folder, pooling(), normalize()), **PROMPTS))


def test_is_an_encoder(model: DenseEncoder) -> None:
    assert isinstance(model, Encoder)
    assert (model.kind, model.dim, model.identity.dim) == ("dense", HIDDEN, HIDDEN)
    assert model.encode_documents([]).shape == (0, HIDDEN)
    assert model.encode_documents(["a"]).dtype == np.float32


def test_order_and_batches_change_nothing(model: DenseEncoder) -> None:
    alone = np.concatenate([model.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(model.encode_documents(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(model.encode_documents(TEXTS[::-1], batch_tokens=50)[::-1], alone, atol=1e-5)


def test_dim_truncates_then_scales(model: DenseEncoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    whole = model.encode_documents(TEXTS)[:, :5]
    short = load(tmp_path, dim=5)
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(short.encode_documents(TEXTS), expected, atol=1e-5)


def test_capacity_leaves_room_for_the_prompt(model: DenseEncoder) -> None:
    assert model.document_capacity < model.document_length - 2
    text = small.TEXTS[-2]
    offsets = model.token_offsets([text])[0]
    cut = text[: offsets[model.document_capacity - 1, 1]]
    np.testing.assert_allclose(model.encode_documents([cut]), model.encode_documents([text]), atol=1e-5)


def test_rerank_is_the_cosine_in_order(model: DenseEncoder) -> None:
    ranked = model.rerank([TEXTS[0]], [TEXTS])[0]
    scores = (model.encode_queries([TEXTS[0]]) @ model.encode_documents(TEXTS).T)[0]
    assert [place for place, _ in ranked] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose([score for _, score in ranked], np.sort(scores)[::-1], atol=1e-5)


@pytest.mark.parametrize("mode", ["max", "lasttoken", "weightedmean"])
def test_other_poolings_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    folder = small.sentence_transformer(tmp_path / "model", modules(tmp_path, pooling(mode)))
    with pytest.raises(ModelError, match=mode):
        load(folder)


def test_two_poolings_are_refused_by_name(tmp_path: Path) -> None:
    folder = small.sentence_transformer(tmp_path / "model", modules(tmp_path, pooling()))
    small.write(
        folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    )
    with pytest.raises(ModelError, match=r"cls \+ mean"):
        load(folder)


@given(
    st.lists(st.integers(3, 40), min_size=1, max_size=30),
    st.integers(0, 2),
    st.sampled_from(["cls", "mean", None]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_texts_pooled_together_as_on_a_gpu_are_those_pooled_one_by_one(
    lengths: list[int], first: int, pooling: Any, dtype: torch.dtype
) -> None:
    states = torch.randn(sum(lengths), 8, generator=torch.Generator().manual_seed(len(lengths))).to(dtype)
    together, single = (pool(states, lengths, first, pooling) for pool in (pool_at_once, pool_states))
    assert together.dtype == single.dtype
    torch.testing.assert_close(together, single, atol=1e-6 if dtype == torch.float32 else 4e-3, rtol=0)
