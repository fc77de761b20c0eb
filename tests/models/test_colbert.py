"""ColBERT against sentence-transformers' MultiVectorEncoder, in every layout; then what holds of any model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from mbretrieve.errors import ModelError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.encoder import BATCH_TOKENS
from mbretrieve.models.token_pooling import pool_rows, ward_clusters
from mbretrieve.types import Encoder
from tests.models import small
from tests.models.small import HIDDEN, POSITIONS, TEXTS, assert_same_rows, layer

pytest.importorskip("sentence_transformers.multi_vector_encoder", reason="the oracle came with version 6")
TANH = "torch.nn.modules.activation.Tanh"


def load(folder: Path, **arguments: Any) -> ColBERT:
    return ColBERT.from_pretrained(folder, device="cpu", dtype="float32", **arguments)


def assert_same_as_oracle(folder: Path, **arguments: Any) -> None:
    from sentence_transformers import MultiVectorEncoder

    oracle = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    model = load(folder, **arguments)
    assert_same_rows(model.encode_queries(TEXTS), oracle.encode_query(TEXTS, convert_to_numpy=True))
    assert_same_rows(model.encode_documents(TEXTS), oracle.encode_document(TEXTS, convert_to_numpy=True))


PYLATE = {
    "defaults": {},
    "attended": {"attend_to_expansion_tokens": True},
    "no_expansion": {"do_query_expansion": False, "query_length": 12},
    "longer_than_the_window": {"query_length": 60},
    "no_markers": {"query_prefix": "", "document_prefix": ""},
    "markers_that_are_text": {"query_prefix": "query: ", "document_prefix": "passage: "},
    "no_skiplist": {"skiplist_words": []},
    "skiplist_of_words": {"skiplist_words": ["a", "Ġof", "nowhere", "."]},
    "older_file": {"model_type": "absent", "do_query_expansion": "absent"},
    "prompts": {"prompts": {"query": "search: ", "document": "[D] text: "}},
    "all_positions": {"document_length": POSITIONS},
}


FAMILIES = [
    (family, case)
    for family in ("wordpiece", "roberta")
    for case in ("defaults", "no_expansion", "markers_that_are_text")
]


@pytest.mark.parametrize(("family", "case"), [*(("bpe", case) for case in PYLATE), *FAMILIES])
def test_pylate_layout(tmp_path: Path, family: str, case: str) -> None:
    assert_same_as_oracle(small.pylate(tmp_path, family=family, **PYLATE[case]))


PROJECTIONS = {
    "bias": [layer(HIDDEN, 8, bias=True)],
    "activation": [layer(HIDDEN, 8, activation_function=TANH)],
    "residual": [layer(HIDDEN, HIDDEN, bias=True, use_residual=True)],
    "projected_residual": [layer(HIDDEN, 8, use_residual=True)],
    "stack": [
        layer(HIDDEN, 24, bias=True, activation_function="torch.nn.modules.activation.GELU"),
        layer(24, 24, seed=1, use_residual=True),
        layer(24, 8, seed=2),
    ],
}


@pytest.mark.parametrize("case", PROJECTIONS)
def test_projections(tmp_path: Path, case: str) -> None:
    assert_same_as_oracle(small.pylate(tmp_path, PROJECTIONS[case]))


STANFORD = {
    "defaults": ("wordpiece", {}),
    "attended": ("wordpiece", {"attend_to_mask_tokens": True}),
    "no_skiplist": ("wordpiece", {"mask_punctuation": False}),
    "byte_level": ("bpe", {}),
}


@pytest.mark.parametrize("case", STANFORD)
def test_stanford_layout(tmp_path: Path, case: str) -> None:
    family, metadata = STANFORD[case]
    assert_same_as_oracle(small.stanford(tmp_path, family=family, **metadata))


def test_stanford_weights_with_its_own_prefix(tmp_path: Path) -> None:
    theirs, ours = small.stanford(tmp_path / "a"), small.stanford(tmp_path / "b", prefix="bert.")
    assert_same_rows(load(ours).encode_documents(TEXTS), load(theirs).encode_documents(TEXTS), tolerance=1e-6)


def modules(folder: Path, *more: torch.nn.Module, **settings: Any) -> list[torch.nn.Module]:
    from sentence_transformers.base.modules import Transformer

    return [Transformer(str(small.bare(folder / "bare")), **settings), *more]


def dense(out_features: int = 8) -> torch.nn.Module:
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(3)
    return Dense(HIDDEN, out_features, bias=True, module_input_name="token_embeddings")


def mask(*words: str, **options: Any) -> torch.nn.Module:
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    return MultiVectorMask(list(words), **options)


def normalize() -> torch.nn.Module:
    from sentence_transformers.base.modules import Normalize

    return Normalize(module_input_name="token_embeddings")


def router(query: list[Any], document: list[Any]) -> torch.nn.Module:
    from sentence_transformers.base.modules import Router

    return Router.for_query_document(query, document)


FILLED = {"strategy": "fixed", "length": 20}
MULTI_VECTOR: dict[str, Any] = {
    "plain": lambda f: (modules(f, dense(), mask(), normalize(), query_length=12, document_length=50), {}),
    "no_lengths": lambda f: (modules(f, dense(), mask(), normalize()), {}),
    "no_projection": lambda f: (modules(f, mask(), normalize()), {}),
    "fixed_expansion": lambda f: (modules(f, dense(), mask(), normalize(), query_expansion=FILLED), {}),
    "attended_expansion": lambda f: (
        modules(f, dense(), mask(), normalize(), query_expansion={**FILLED, "attend": True}),
        {},
    ),
    "minimum_expansion": lambda f: (
        modules(f, dense(), mask(), normalize(), query_expansion={**FILLED, "strategy": "min"}),
        {},
    ),
    "minimum_and_limit": lambda f: (
        modules(f, mask(), normalize(), query_length=30, query_expansion={**FILLED, "strategy": "min"}),
        {},
    ),
    "other_token": lambda f: (modules(f, mask(), normalize(), query_expansion={**FILLED, "token": "[SEP]"}), {}),
    "unmasked_expansion": lambda f: (modules(f, dense(), normalize(), query_expansion=FILLED), {}),
    "prompts": lambda f: (
        modules(f, mask(), normalize(), query_length=24),
        {"prompts": {"query": "Represent this question: ", "document": "[D] "}},
    ),
    "skiplist": lambda f: (modules(f, mask("!", ".", "?"), normalize()), {}),
    "skiplist_of_queries": lambda f: (modules(f, mask("?", "a", skiplist_tasks=["query"]), normalize()), {}),
    "skiplist_of_both": lambda f: (modules(f, mask("?", "a", skiplist_tasks=["query", "document"]), normalize()), {}),
    "tokens_to_keep": lambda f: (modules(f, mask("a", keep_only_token_ids=[*range(60, 200)]), normalize()), {}),
    "weighted_queries": lambda f: (modules(f, dense(), mask(), router([mask()], [normalize()])), {}),
    "masks_in_routes": lambda f: (
        modules(f, router([mask("a", skiplist_tasks="query"), normalize()], [mask("."), normalize()])),
        {},
    ),
    "nothing_scaled": lambda f: (modules(f, dense(), mask()), {}),
    "lower_case": lambda f: (modules(f, mask(), normalize(), do_lower_case=True), {}),
}


@pytest.mark.parametrize("case", MULTI_VECTOR)
def test_multi_vector_layout(tmp_path: Path, case: str) -> None:
    parts, arguments = MULTI_VECTOR[case](tmp_path)
    assert_same_as_oracle(small.multi_vector(tmp_path / "model", parts, **arguments))


def test_bare_modernbert_gives_unit_hidden_states(tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder

    oracle = MultiVectorEncoder(modules=[*modules(tmp_path), mask(), normalize()], device="cpu")
    model = load(tmp_path / "bare")
    assert_same_rows(model.encode_queries(TEXTS), oracle.encode_query(TEXTS, convert_to_numpy=True))
    assert_same_rows(model.encode_documents(TEXTS), oracle.encode_document(TEXTS, convert_to_numpy=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ColBERT:
    folder = small.pylate(tmp_path_factory.mktemp("model"), [layer(HIDDEN, 16, bias=True)])
    return load(folder, document_length=POSITIONS)


def test_is_an_encoder(model: ColBERT) -> None:
    assert isinstance(model, Encoder)
    assert (model.kind, model.dim, model.query_length, model.document_length) == ("colbert", 16, 16, POSITIONS)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


def test_order_and_batches_change_nothing(model: ColBERT) -> None:
    alone = [model.encode_documents([text])[0] for text in TEXTS]
    for batch_tokens in (1, 100, BATCH_TOKENS):
        assert_same_rows(model.encode_documents(TEXTS, batch_tokens=batch_tokens), alone, tolerance=1e-5)
    assert_same_rows(model.encode_documents(TEXTS[::-1])[::-1], alone, tolerance=1e-5)


def test_progress_counts_each_text_once(model: ColBERT) -> None:
    counts: list[int] = []
    model.encode_documents(TEXTS * 40, batch_tokens=500, progress=counts.append)
    assert sum(counts) == 40 * len(TEXTS)
    assert len(counts) > 1
    assert model.encode_documents([]) == []


def test_rows_have_unit_length_and_float32(model: ColBERT) -> None:
    for rows in [*model.encode_queries(TEXTS), *model.encode_documents(TEXTS)]:
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_dim_truncates_then_scales(model: ColBERT, tmp_path: Path) -> None:
    short = load(small.pylate(tmp_path, [layer(HIDDEN, 16, bias=True)]), document_length=POSITIONS, dim=5)
    assert short.identity.dim == short.dim == 5
    cut = [rows[:, :5] / np.linalg.norm(rows[:, :5], axis=1, keepdims=True) for rows in model.encode_documents(TEXTS)]
    assert_same_rows(short.encode_documents(TEXTS), cut, tolerance=1e-5)


def test_token_spans_name_the_characters_of_each_row(model: ColBERT) -> None:
    for text in TEXTS:
        spans = model.token_spans(text)
        assert len(spans) == len(model.encode_documents([text])[0])
        assert (spans[:, 0] <= spans[:, 1]).all()
        assert (spans >= 0).all()
        assert (spans <= len(text)).all()
    named = [TEXTS[0][start:end].strip() for start, end in model.token_spans(TEXTS[0])]
    assert named[:2] == ["", ""]  # [CLS], [D]
    assert "".join(named) == "HowdoIreadafile"  # the question mark is on the skiplist


def test_windows_at_token_offsets_fill_the_capacity(model: ColBERT, tmp_path: Path) -> None:
    text = TEXTS[-2]
    offsets = model.token_offsets([text])[0]
    assert len(offsets) > model.document_capacity == POSITIONS - 3  # [CLS] [D] ... [SEP]
    window = text[: offsets[model.document_capacity - 1, 1]]
    rows = model.encode_documents([window, text])
    assert_same_rows([rows[0]], [rows[1]], tolerance=1e-5)


def test_a_cut_query_is_told_from_a_whole_one(model: ColBERT) -> None:
    room = model.query_length - 3
    assert not model.query_was_cut(" ".join("a" * room))
    assert model.query_was_cut(" ".join("a" * (room + 1)))
    assert model.query_was_cut("a " * 50_000)


def test_rerank_is_maxsim_in_order(model: ColBERT) -> None:
    queries = [TEXTS[0], TEXTS[2], TEXTS[1]]
    candidates = [TEXTS, TEXTS[:3], []]
    ranked = model.rerank(queries, candidates)
    documents = model.encode_documents(TEXTS)
    for query, texts, found in zip(model.encode_queries(queries), candidates, ranked, strict=True):
        scores = {place: float((query @ documents[place].T).max(axis=1).sum()) for place in range(len(texts))}
        assert [place for place, _ in found] == sorted(scores, key=lambda place: -scores[place])
        for place, score in found:
            assert score == pytest.approx(scores[place], abs=1e-4)
    with pytest.raises(ValueError, match="2 queries"):
        model.rerank(queries[:2], candidates)


def test_same_weights_same_identity(tmp_path: Path) -> None:
    first = load(small.pylate(tmp_path / "a")).identity
    again = load(small.pylate(tmp_path / "b")).identity
    other = load(small.pylate(tmp_path / "c", [layer(HIDDEN, 16, seed=9)])).identity
    assert first.content_hash == again.content_hash != other.content_hash
    assert load(tmp_path / "a", dim=4).identity.content_hash == first.content_hash


def test_lengths_beyond_the_model_are_refused(tmp_path: Path) -> None:
    folder = small.pylate(tmp_path)
    for arguments, words in {
        ("document_length", POSITIONS + 1): f"expected at most {POSITIONS}",
        ("query_length", POSITIONS + 1): f"expected at most {POSITIONS}",
        ("query_length", 3): "more than the 3 tokens",
        ("document_length", 0): "at least 1",
        ("dim", 17): "expected 1 to 16",
        ("dim", 0): "expected 1 to 16",
    }.items():
        with pytest.raises(ModelError, match=words) as error:
            load(folder, **{arguments[0]: arguments[1]})
        assert "\n" not in str(error.value)


def test_what_is_no_list_of_texts_is_a_mistake(model: ColBERT) -> None:
    with pytest.raises(TypeError, match="list of texts"):
        model.encode_queries("one string")
    with pytest.raises(ValueError, match="batch_tokens"):
        model.encode_queries(["a"], batch_tokens=0)
    with pytest.raises(ValueError, match="pool_factor"):
        model.encode_documents(["a"], pool_factor=0.5)


@pytest.mark.parametrize("clusters", [1, 2, 7, 30, 59, 60])
def test_ward_clusters_are_scipys(clusters: int) -> None:
    for seed in range(5):
        rows = np.random.default_rng(seed).normal(size=(60, 8))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        distances = np.clip(1 - rows @ rows.T, 0, 2)
        np.fill_diagonal(distances, 0)
        tree = hierarchy.linkage(squareform(distances, checks=False), method="ward")
        expected = hierarchy.fcluster(tree, t=clusters, criterion="maxclust")
        ours = ward_clusters(distances, clusters)
        assert set(zip(ours.tolist(), expected.tolist(), strict=True)) == set(
            zip(range(clusters), (expected[(ours == n).argmax()] for n in range(clusters)), strict=True)
        )


def test_ward_merges_equal_points_together() -> None:
    rows = np.repeat(np.eye(4), 3, axis=0)
    assert ward_clusters(1 - rows @ rows.T, 6).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("pool_factor", [1, 1.5, 2, 3, 1000])
def test_token_pooling_is_sentence_transformers(model: ColBERT, pool_factor: float) -> None:
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    texts = [text for text in TEXTS if not text.startswith(("word", "!!!"))]  # equal rows: ties, broken otherwise
    whole = model.encode_documents(texts)
    theirs = HierarchicalTokenPooling(pool_factor).pool([torch.from_numpy(rows) for rows in whole])
    ours = model.encode_documents(texts, pool_factor=pool_factor)
    assert_same_rows([_sorted(rows) for rows in ours], [_sorted(rows.numpy()) for rows in theirs])
    for rows, pooled in zip(whole, ours, strict=True):
        np.testing.assert_array_equal(rows[0], pooled[0])


def test_pooling_leaves_what_is_too_short_alone() -> None:
    rows = np.eye(2, dtype=np.float32)
    assert pool_rows(rows, 4, normalize=True) is rows


def _sorted(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(np.round(rows, 3).T[::-1])]
