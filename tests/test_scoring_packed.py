"""maxsim_packed against maxsim and autograd through it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mbretrieve.scoring import maxsim, maxsim_packed, packed

COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def rows(seed: int, counts: list[int], dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(counts), dim, generator=generator, dtype=dtype).requires_grad_()


def by_padding(queries: Tensor, query_lengths: list[int], documents: Tensor, document_lengths: list[int]) -> Tensor:
    sides = []
    for stream, lengths in ((queries, query_lengths), (documents, document_lengths)):
        whole = pad_sequence(list(stream.split(lengths)), batch_first=True)
        sides.append((whole, torch.arange(whole.shape[1]) < torch.tensor(lengths)[:, None]))
    return maxsim(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def assert_same(
    queries: Tensor, query_lengths: list[int], documents: Tensor, document_lengths: list[int], tolerance: float = 1e-5
) -> None:
    """The same scores, and the same gradients of a sum of them in which each has a weight of its own."""
    weights = torch.randn(len(query_lengths), len(document_lengths), generator=torch.Generator().manual_seed(9))
    found = []
    for score in (maxsim_packed, by_padding):
        scores = score(queries, query_lengths, documents, document_lengths)
        assert scores.dtype == torch.float32
        found.append([scores, *torch.autograd.grad((scores * weights).sum(), (queries, documents))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 9), COUNTS, COUNTS, st.integers(1, 40), st.integers(1, 40))
def test_scores_and_gradients_are_those_of_maxsim_at_any_block_size(
    seed: int, dim: int, queries: list[int], documents: list[int], tokens: int, others: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(packed._BLOCKS, "cpu", packed._Block(tokens, others, others))
        assert_same(rows(seed, queries, dim), queries, rows(seed + 1, documents, dim), documents)


def test_usual_sizes_at_usual_blocks() -> None:
    queries, documents = [7, 32, 12, 1], [180, 1, 40, 300, 77, 77, 2200]
    assert_same(rows(0, queries, 64), queries, rows(1, documents, 64), documents, tolerance=2e-5)


def test_gradients_are_those_of_small_differences() -> None:
    queries, documents = [2, 1, 3], [4, 1]
    inputs = rows(0, queries, 3, torch.float64), rows(1, documents, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda q, d: maxsim_packed(q, queries, d, documents), inputs)


def test_a_negative_similarity_is_not_beaten_by_padding() -> None:
    query, documents = torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.5, 0.0], [0.2, 0.0], [0.3, 0.0]])
    assert torch.equal(maxsim_packed(query, [1], documents, [1, 2]), torch.tensor([[-0.5, 0.3]]))


def test_of_equal_tokens_one_gets_the_gradient() -> None:
    documents = torch.ones(3, 2, requires_grad=True)
    maxsim_packed(torch.ones(1, 2), [1], documents, [3]).sum().backward()
    assert documents.grad is not None
    assert documents.grad.sum(dim=0).tolist() == [1.0, 1.0]
    assert sorted(documents.grad[:, 0].tolist()) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_and_autocast(dtype: torch.dtype) -> None:
    queries, documents = [5, 8], [20, 3, 11]
    exact = rows(0, queries, 32), rows(1, documents, 32)
    low = [side.detach().to(dtype).requires_grad_() for side in exact]
    with torch.autocast("cpu", torch.bfloat16):
        scores = maxsim_packed(low[0], queries, low[1], documents)
    scores.sum().backward()
    assert scores.dtype == torch.float32
    expected = maxsim_packed(exact[0], queries, exact[1], documents)
    expected.sum().backward()
    torch.testing.assert_close(scores, expected, atol=0.3, rtol=0.02)
    for ours, theirs in zip(low, exact, strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == dtype
        assert torch.cosine_similarity(ours.grad.float().flatten(), theirs.grad.flatten(), dim=0) > 0.97


def test_kept_for_the_backward_are_two_bytes_a_choice() -> None:
    queries, documents = [30] * 10, [100] * 20
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    sides = rows(0, queries, 16), rows(1, documents, 16)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        maxsim_packed(sides[0], queries, sides[1], documents)
    assert kept == sum(side.numel() * 4 for side in sides) + 2 * sum(queries) * len(documents)


def test_long_documents_keep_wider_places() -> None:
    query, documents = torch.ones(1, 1), torch.arange(40_000.0)[:, None].requires_grad_()
    maxsim_packed(query, [1], documents, [40_000]).sum().backward()
    assert documents.grad is not None
    assert documents.grad[-1].item() == 1.0


def test_one_side_alone_may_learn() -> None:
    queries, documents = rows(0, [2, 3], 4), rows(1, [4, 5], 4)
    scores = maxsim_packed(queries.detach(), [2, 3], documents, [4, 5])
    scores.sum().backward()
    assert queries.grad is None
    assert documents.grad is not None
    assert not maxsim_packed(queries.detach(), [2, 3], documents.detach(), [4, 5]).requires_grad


def test_the_order_of_documents_changes_nothing_but_the_order() -> None:
    lengths = [5, 1, 9, 3]
    queries, documents = rows(0, [4], 8).detach(), rows(1, lengths, 8).detach()
    bounds = list(pairwise([0, 5, 6, 15, 18]))
    order = [2, 0, 3, 1]
    moved = torch.cat([documents[slice(*bounds[number])] for number in order])
    scores = maxsim_packed(queries, [4], documents, lengths)
    torch.testing.assert_close(maxsim_packed(queries, [4], moved, [lengths[n] for n in order]), scores[:, order])


def test_what_does_not_fit_is_refused() -> None:
    two = torch.ones(2, 3)
    with pytest.raises(ValueError, match="dim 3, documents have dim 2"):
        maxsim_packed(two, [2], torch.ones(2, 2), [2])
    with pytest.raises(ValueError, match="a document has no token"):
        maxsim_packed(two, [2], two, [2, 0])
    with pytest.raises(ValueError, match="a query has no token"):
        maxsim_packed(two[:0], [], two, [2])
    with pytest.raises(ValueError, match="query lengths sum to 3, expected the 2 rows"):
        maxsim_packed(two, [3], two, [2])
