"""MaxSim of token matrices laid end to end, for training: differentiable, and in bounded memory beside its result."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from mbretrieve.scoring.groups import by_length
from mbretrieve.scoring.padded import check_dims


class _Block(NamedTuple):
    """How much is computed at once: on a CPU what stays in a core's cache, on a GPU what keeps it busy."""

    tokens: int  # of documents, padding counted
    similarities: int
    winners: int  # entries of the backward: a query token and the document token that it chose


_BLOCKS = {"cpu": _Block(2048, 256 * 1024, 1024 * 1024)}
_GPU_BLOCK = _Block(16 * 1024, 64 * 1024 * 1024, 32 * 1024 * 1024)


def maxsim_packed(
    queries: Tensor, query_lengths: Sequence[int], documents: Tensor, document_lengths: Sequence[int]
) -> Tensor:
    """Score every query against every document, both laid end to end: ``maxsim`` without padding, for training.

    Differentiable once. Kept for the backward is which token each query token chose in each document, two bytes each
    (four if a document has 2^15 tokens or more): both gradients are sums of rows by these choices. Similarities exist
    block by block only. Of equal tokens one takes the whole gradient. Under autocast similarities are computed in its
    dtype, gradients never.

    Shapes: queries (Tq, dim) with text q the next ``query_lengths[q]`` rows, documents (Td, dim) likewise -> (Q, D)
    float32 (float64 of float64).
    Raises: ValueError if the dims differ, there is no text, a length is below 1, or lengths do not sum to the rows.
    """
    check_dims(queries, documents)
    for name, rows, counts in (("query", queries, query_lengths), ("document", documents, document_lengths)):
        if not counts or min(counts) < 1:
            raise ValueError(f"a {name} has no token: MaxSim is a sum over its tokens of maxima over the other's")
        if sum(counts) != len(rows):
            raise ValueError(f"{name} lengths sum to {sum(counts)}, expected the {len(rows)} rows there are")
    lengths = list(query_lengths), list(document_lengths)
    return cast(Tensor, _MaxSimPacked.apply(queries, documents, *lengths))  # type: ignore[no-untyped-call]


class _MaxSimPacked(torch.autograd.Function):
    """``out[q, d] = sum_(i in q) s[i, d]`` with ``s[i, d] = max_(j in d) queries[i] @ documents[j]``.

    With w[i, d] the j that is chosen, the gradients are ``dqueries[i] = sum_d g[q_i, d] documents[w[i, d]]`` and
    ``ddocuments[j] = sum_((i, d) with w[i, d] = j) g[q_i, d] queries[i]``.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, documents: Tensor, query_lengths: list[int], document_lengths: list[int]
    ) -> Tensor:
        device, kind = queries.device, queries.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else queries.dtype
        exact = torch.promote_types(queries.dtype, torch.float32)
        block = _BLOCKS.get(kind, _GPU_BLOCK)
        segments = torch.tensor(query_lengths, device=device)
        scores = torch.empty(len(query_lengths), len(document_lengths), dtype=exact, device=device)
        narrow = torch.int16 if max(document_lengths) < 2**15 else torch.int32
        winners = torch.empty(len(document_lengths), len(queries), dtype=narrow, device=device)  # within documents
        with torch.autocast(kind, enabled=False):
            columns = queries.to(dtype).T  # (dim, Tq)
            last = torch.tensor(document_lengths, dtype=narrow, device=device) - 1
            counts = torch.tensor(document_lengths)
            numbers, groups = by_length(counts.cumsum(0) - counts, counts, block.tokens, device)
            for some_documents, places in groups:
                count, width = places.shape
                rows = documents[places.flatten()].to(dtype)  # (n * J, dim)
                best = torch.empty(count, len(queries), dtype=exact, device=device)
                at = torch.empty(count, len(queries), dtype=narrow, device=device)
                step = max(1, block.similarities // len(rows))
                for first in range(0, len(queries), step):
                    some = slice(first, first + step)
                    similarities = (rows @ columns[:, some]).view(count, width, -1)  # (n, J, i)
                    best[:, some], at[:, some] = similarities.max(dim=1)
                index = numbers[some_documents]
                scores[:, index] = torch.segment_reduce(best.T.contiguous(), "sum", lengths=segments, axis=0)
                winners[index] = at.minimum(last[index, None])  # of the repeated last tokens max may name any
        ctx.save_for_backward(queries, documents, winners)
        ctx.lengths = query_lengths, document_lengths
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        queries, documents, winners = ctx.saved_tensors
        query_lengths, document_lengths = ctx.lengths
        device = queries.device
        block = _BLOCKS.get(device.type, _GPU_BLOCK)
        query_of = torch.arange(len(query_lengths)).repeat_interleave(torch.tensor(query_lengths)).to(device)
        starts = [0, *accumulate(document_lengths)]
        needs_queries, needs_documents, *_ = ctx.needs_input_grad
        to_queries = to_documents = None
        if needs_queries:
            to_queries = _gradient_of_queries(grad, documents, winners, query_of, starts, block).to(queries.dtype)
        if needs_documents:
            to_documents = _gradient_of_documents(grad, queries, winners, query_of, starts, block).to(documents.dtype)
        return to_queries, to_documents, None, None


def _gradient_of_queries(
    grad: Tensor, documents: Tensor, winners: Tensor, query_of: Tensor, starts: list[int], block: _Block
) -> Tensor:
    """For each query token the sum of the document tokens that it chose, each times its score's gradient: (Tq, dim)."""
    rows = documents.to(grad.dtype)
    first_of = torch.tensor(starts[:-1], dtype=torch.int32, device=grad.device)
    step = max(1, block.winners // len(winners))
    out = []
    for first in range(0, len(query_of), step):
        chosen = winners[:, first : first + step].T + first_of  # (i, D)
        weights = grad[query_of[first : first + step]]  # (i, D)
        out.append(F.embedding_bag(chosen, rows, per_sample_weights=weights, mode="sum"))
    return torch.cat(out)


def _gradient_of_documents(
    grad: Tensor, queries: Tensor, winners: Tensor, query_of: Tensor, starts: list[int], block: _Block
) -> Tensor:
    """For each document token the sum of the query tokens that chose it, each times its score's gradient: (Td, dim).

    Sorting the choices by token makes a list for each, summed up in order: the same bits each time, on a GPU too, where
    adding rows by index is in an order of chance; and a third of the time that takes on a CPU.
    """
    rows = queries.to(grad.dtype)
    tokens = len(queries)
    step = max(1, block.winners // tokens)
    out = []
    for first in range(0, len(winners), step):
        last = min(first + step, len(winners))
        begins = torch.tensor(starts[first:last], dtype=torch.int32, device=grad.device) - starts[first]
        chosen, choice = (winners[first:last] + begins[:, None]).flatten().sort(stable=True)
        asked = choice % tokens  # the query token; the document is choice // tokens
        weights = grad[query_of[asked], first + choice // tokens]
        lists = torch.searchsorted(chosen, torch.arange(starts[last] - starts[first], device=grad.device))
        out.append(F.embedding_bag(asked, rows, offsets=lists, per_sample_weights=weights, mode="sum"))
    return torch.cat(out)
