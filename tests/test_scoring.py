"""scoring against plain loops, and the laws that padding, batching and blocks must not break."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mbretrieve.scoring import (
    CompressedTokens,
    blocks,
    cosine,
    maxsim,
    maxsim_compressed,
    maxsim_ragged,
    maxsim_ragged_batch,
    search,
)

Ragged = list[NDArray[np.float32]]


def by_loops(queries: Ragged, documents: Ragged) -> NDArray[np.float64]:
    out = np.zeros((len(queries), len(documents)))
    for q, query in enumerate(queries):
        for d, document in enumerate(documents):
            for row in query:
                out[q, d] += max(float(np.dot(row.astype(np.float64), token.astype(np.float64))) for token in document)
    return out


def draw(seed: int, counts: list[int], dim: int) -> Ragged:
    """Rows of any length, not unit ones: queries may carry term weights as lengths."""
    random = np.random.default_rng(seed)
    return [(random.standard_normal((n, dim)) * random.uniform(0.1, 3)).astype(np.float32) for n in counts]


def padded(rows: Ragged, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    out = torch.full((len(rows), width, rows[0].shape[1]), fill)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = True
    return out, mask


def ragged(rows: Ragged, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    offsets = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    return torch.from_numpy(np.concatenate(rows)).to(dtype), torch.from_numpy(offsets)


COUNTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
SEED, DIM = st.integers(0, 2**16), st.integers(1, 9)


@given(seed=SEED, dim=DIM, queries=COUNTS, documents=COUNTS, fill=st.sampled_from([0.0, 100.0, -100.0]))
def test_maxsim_equals_three_loops_whatever_the_padding_holds(
    seed: int, dim: int, queries: list[int], documents: list[int], fill: float
) -> None:
    q, d = draw(seed, queries, dim), draw(seed + 1, documents, dim)
    (queries_, query_mask), (documents_, document_mask) = padded(q, fill), padded(d, fill)
    scores = maxsim(queries_, documents_, query_mask, document_mask)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, by_loops(q, d), rtol=1e-4, atol=1e-4)


@given(seed=SEED, dim=DIM, queries=COUNTS, documents=COUNTS, tokens=st.integers(1, 12), maxima=st.integers(1, 30))
def test_ragged_equals_three_loops_at_any_block_size(
    seed: int, dim: int, queries: list[int], documents: list[int], tokens: int, maxima: int
) -> None:
    q, d = draw(seed, queries, dim), draw(seed + 1, documents, dim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_TOKENS", tokens)
        patch.setattr(search, "BLOCK_SIMILARITIES", tokens)
        patch.setattr(blocks, "BLOCK_MAXIMA", maxima)
        scores = maxsim_ragged_batch([torch.from_numpy(query) for query in q], *ragged(d))
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, by_loops(q, d), rtol=1e-4, atol=1e-4)


@given(seed=SEED, documents=COUNTS, data=st.data())
def test_some_rows_in_any_order_score_as_they_do_among_all(
    seed: int, documents: list[int], data: st.DataObject
) -> None:
    q, d = draw(seed, [3, 1], 4), draw(seed + 1, documents, 4)
    rows = np.array(data.draw(st.lists(st.integers(0, len(d) - 1), max_size=8)), dtype=np.int64)
    queries = [torch.from_numpy(query) for query in q]
    some = maxsim_ragged_batch(queries, *ragged(d), rows=rows)
    assert some.shape == (2, len(rows))
    np.testing.assert_allclose(some, maxsim_ragged_batch(queries, *ragged(d)).numpy()[:, rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_precision_is_read_as_it_is(dtype: torch.dtype) -> None:
    q, d = draw(0, [5], 16), draw(1, [4, 9, 1], 16)
    stored, offsets = ragged(d, dtype)
    rounded = [np.asarray(torch.from_numpy(row).to(dtype).float()) for row in d]
    np.testing.assert_allclose(
        maxsim_ragged(torch.from_numpy(q[0]), stored, offsets), by_loops(q, rounded)[0], rtol=1e-5, atol=1e-5
    )


@settings(max_examples=25)
@given(seed=SEED, queries=COUNTS, documents=COUNTS)
def test_padded_and_ragged_agree(seed: int, queries: list[int], documents: list[int]) -> None:
    q, d = draw(seed, queries, 6), draw(seed + 1, documents, 6)
    (queries_, query_mask), (documents_, document_mask) = padded(q, 0.0), padded(d, 0.0)
    np.testing.assert_allclose(
        maxsim(queries_, documents_, query_mask, document_mask),
        maxsim_ragged_batch([torch.from_numpy(query) for query in q], *ragged(d)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_negative_similarity_is_not_beaten_by_padding() -> None:
    query, document = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-0.5, 0.0], [0.0, 0.0]]])
    one = maxsim(query, document, torch.ones(1, 1, dtype=torch.bool), torch.tensor([[True, False]]))
    assert one.item() == -0.5


def test_maxsim_has_gradients_only_where_tokens_are_real() -> None:
    documents = torch.randn(2, 3, 4, requires_grad=True)
    queries = torch.randn(2, 2, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    query_mask = torch.tensor([[True, True], [True, False]])
    maxsim(queries, documents, query_mask, mask).sum().backward()
    assert documents.grad is not None
    assert queries.grad is not None
    assert torch.isfinite(documents.grad).all()
    assert not documents.grad[~mask].any()
    assert not queries.grad[~query_mask].any()


def test_a_document_without_tokens_is_refused() -> None:
    query = torch.ones(1, 2)
    with pytest.raises(ValueError, match="no real token"):
        maxsim(
            query[None], torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
        )
    with pytest.raises(ValueError, match="document 1 has no token"):
        maxsim_ragged(query, torch.ones(2, 2), torch.tensor([0, 1, 1, 2]))
    with pytest.raises(ValueError, match="query has no token"):
        maxsim_ragged(query[:0], torch.ones(2, 2), torch.tensor([0, 2]))


def test_dims_that_differ_are_refused() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="dim 3, documents have dim 2"):
        maxsim(torch.ones(1, 1, 3), torch.ones(1, 1, 2), mask, mask)
    with pytest.raises(ValueError, match="dim 3, documents have dim 2"):
        maxsim_ragged(torch.ones(1, 3), torch.ones(1, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="dim 3, documents have dim 2"):
        cosine(torch.ones(1, 3), torch.ones(1, 2))


def compress(
    seed: int,
    counts: list[int],
    stages: int = 1,
    groups: int = 3,
    width: int = 4,
    lists: int = 5,
    spaced: bool = False,
) -> tuple[CompressedTokens, torch.Tensor]:
    """Random codes: what they mean is the codebook's matter. Tokens lie end to end, some of them alike."""
    random = np.random.default_rng(seed)
    total = sum(counts)
    centroids = random.standard_normal((lists, groups * width)).astype(np.float32)
    residuals = random.standard_normal((stages, groups, 256, width)) / (1 + np.arange(stages)[:, None, None, None])
    if spaced:
        residuals = residuals[:, :, :1] + np.arange(256)[:, None] * residuals[:, :, 1:2] / 50
    tokens = CompressedTokens(
        centroids,
        residuals.astype(np.float32),
        random.integers(0, lists, total).astype(np.uint16),
        random.choice([0, 7, 128, 255, random.integers(256)], (total, stages * groups + 1)).astype(np.uint8),
    )
    return tokens, torch.from_numpy(np.cumsum([0, *counts]))


def decoded_by_loops(tokens: CompressedTokens, offsets: torch.Tensor) -> Ragged:
    stages, groups = tokens.residuals.shape[:2]
    rows = tokens.centroids[tokens.assignments]
    for row, code in zip(rows, tokens.codes, strict=True):
        for stage in range(stages):
            row += np.concatenate([tokens.residuals[stage, g, code[stage * groups + g]] for g in range(groups)])
        row *= 2 ** ((int(code[-1]) - 128) / 128)
    return np.split(rows, offsets[1:-1].numpy())


@given(
    seed=SEED,
    stages=st.sampled_from([1, 2, 4]),
    groups=st.integers(1, 5),
    width=st.sampled_from([1, 4, 8]),
    spaced=st.booleans(),
    queries=COUNTS,
    documents=COUNTS,
    block=st.integers(1, 12),
    by_tables=st.booleans(),
    data=st.data(),
)
def test_compressed_equals_maxsim_of_the_decoded_tokens(
    seed: int,
    stages: int,
    groups: int,
    width: int,
    spaced: bool,
    queries: list[int],
    documents: list[int],
    block: int,
    by_tables: bool,
    data: st.DataObject,
) -> None:
    tokens, offsets = compress(seed, documents, stages, groups, width, spaced=spaced)
    q, d = draw(seed, queries, groups * width), decoded_by_loops(tokens, offsets)
    rows = np.array(data.draw(st.lists(st.integers(0, len(d) - 1), max_size=8)), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TABLE_QUERY_TOKENS", 1000 if by_tables else 0)
        for module, name in (blocks, "BLOCK_TOKENS"), (search, "BLOCK_SIMILARITIES"), (blocks, "BLOCK_MAXIMA"):
            patch.setattr(module, name, block)
        some = maxsim_compressed([torch.from_numpy(query) for query in q], tokens, offsets, rows)
        scores = maxsim_compressed([torch.from_numpy(query) for query in q], tokens, offsets)
    (queries_, query_mask), (documents_, document_mask) = padded(q, 0.0), padded(d, 0.0)
    expected = maxsim(queries_, documents_, query_mask, document_mask)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(some, expected[:, torch.from_numpy(rows)], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tokens.decode(), np.concatenate(d), rtol=1e-5, atol=1e-5)


def test_products_with_centroids_already_known_are_used() -> None:
    tokens, offsets = compress(0, [3, 1, 9])
    tokens.codes[:, -1] = 128  # lengths as they are
    queries = [torch.from_numpy(query) for query in draw(1, [4, 2], 12)]
    coarse = torch.cat(queries) @ torch.from_numpy(tokens.centroids).T
    expected = maxsim_compressed(queries, tokens, offsets)
    torch.testing.assert_close(maxsim_compressed(queries, tokens, offsets, coarse=coarse), expected)
    torch.testing.assert_close(
        maxsim_compressed(queries, tokens, offsets, coarse=coarse + 1) - expected,
        0 * expected + torch.tensor([[4.0], [2.0]]),
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("by_tables", [True, False])
def test_compressed_tokens_may_be_mapped_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_tables: bool
) -> None:
    monkeypatch.setattr(search, "TABLE_QUERY_TOKENS", 1000 if by_tables else 0)
    tokens, offsets = compress(0, [3, 1, 9], lists=70_000)
    tokens = replace(tokens, assignments=np.array([69_999, 0, 65_536] * 5, dtype=np.uint32)[:13])
    for name in ("assignments", "codes"):
        np.save(tmp_path / f"{name}.npy", getattr(tokens, name))
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("assignments", "codes")}
    queries = [torch.from_numpy(query) for query in draw(1, [4, 2], 12)]
    for rows in (None, np.array([2, 0])):
        scores = maxsim_compressed(queries, replace(tokens, **mapped), offsets, rows)
        torch.testing.assert_close(scores, maxsim_compressed(queries, tokens, offsets, rows))


def test_compressed_refuses_what_maxsim_refuses() -> None:
    tokens, offsets = compress(0, [3, 1])
    with pytest.raises(ValueError, match="query has no token"):
        maxsim_compressed([torch.ones(0, 12)], tokens, offsets)
    with pytest.raises(ValueError, match="dim 3, documents have dim 12"):
        maxsim_compressed([torch.ones(1, 3)], tokens, offsets)
    with pytest.raises(ValueError, match="document 1 has no token"):
        maxsim_compressed([torch.ones(1, 12)], tokens, torch.tensor([0, 3, 3, 4]))
    assert maxsim_compressed([], tokens, offsets).shape == (0, 2)
    assert maxsim_compressed([torch.ones(1, 12)], tokens, offsets, np.array([], dtype=np.int64)).shape == (1, 0)


@given(seed=SEED, queries=st.integers(0, 4), documents=st.integers(0, 4), dim=DIM)
def test_cosine_equals_loops(seed: int, queries: int, documents: int, dim: int) -> None:
    random = np.random.default_rng(seed)
    q, d = random.standard_normal((queries, dim)), random.standard_normal((documents, dim)) * 7
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in d] for a in q]
    np.testing.assert_allclose(
        cosine(torch.from_numpy(q), torch.from_numpy(d)), np.reshape(expected, (queries, documents)), atol=1e-5
    )


def test_cosine_of_a_zero_vector_is_zero() -> None:
    assert cosine(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0.0
