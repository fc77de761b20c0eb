"""MaxSim on a CUDA device as one Triton kernel: no similarity is ever written to memory. For who has ``triton``."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 32  # of a query's tokens and of a document's; a product needs 16 of each
_WIDTH = 64  # numbers of a vector that are multiplied at a time, at most


@triton.jit  # type: ignore[untyped-decorator]
def _maxsim(  # type: ignore[no-untyped-def]
    queries,
    query_starts,
    tokens,
    starts,
    lengths,
    scores,
    documents,
    dim,
    TILE: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
):
    """Score one document with one query: ``scores[q, d] = sum_i max_j queries[i] @ tokens[j]``."""
    document = tl.program_id(0)
    query = tl.program_id(1)
    first = tl.load(starts + document)
    length = tl.load(lengths + document)
    begin = tl.load(query_starts + query)
    count = tl.load(query_starts + query + 1) - begin
    numbers = tl.arange(0, WIDTH)
    total = tl.zeros((TILE,), dtype=tl.float32)
    for i in range(0, count, TILE):
        asked = i + tl.arange(0, TILE)
        best = tl.full((TILE,), float("-inf"), dtype=tl.float32)
        for j in range(0, length, TILE):
            there = j + tl.arange(0, TILE)
            sums = tl.zeros((TILE, TILE), dtype=tl.float32)
            for n in range(0, dim, WIDTH):
                some = n + numbers
                inside = some < dim
                q = tl.load(
                    queries + (begin + asked)[:, None] * dim + some[None, :],
                    mask=(asked < count)[:, None] & inside[None, :],
                    other=0.0,
                )
                t = tl.load(
                    tokens + (first + there)[None, :] * dim + some[:, None],
                    mask=(there < length)[None, :] & inside[:, None],
                    other=0.0,
                )
                # "ieee": float32 as it is, not cut to TF32's ten bits.
                sums = tl.dot(q, t.to(tl.float32), sums, input_precision="ieee")
            # What is behind the document's end is no candidate: its 0 would beat a negative similarity.
            sums = tl.where((there < length)[None, :], sums, float("-inf"))
            best = tl.maximum(best, tl.max(sums, axis=1))
        total += tl.where(asked < count, best, 0.0)
    tl.store(scores + query.to(tl.int64) * documents + document, tl.sum(total, axis=0))


def maxsim_by_kernel(stacked: Tensor, counts: Sequence[int], tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Score as ``on_device.by_groups`` does, with its shapes; in memory there are arguments and result, no more."""
    device, dim = tokens.device, tokens.shape[1]
    places = torch.tensor([0, *counts]).cumsum(0).to(device)
    scores = torch.empty(len(counts), len(starts), device=device)
    queries, tokens = stacked.contiguous(), tokens.contiguous()
    width = min(_WIDTH, max(16, triton.next_power_of_2(dim)))
    most = 65535  # queries that a grid's second dimension takes
    with torch.cuda.device_of(tokens):  # type: ignore[no-untyped-call]
        for query in range(0, len(counts), most):
            some = scores[query : query + most]
            _maxsim[len(starts), len(some)](
                queries,
                places[query:],
                tokens,
                starts.to(device),
                lengths.to(device),
                some,
                len(starts),
                dim,
                TILE=_TILE,
                WIDTH=width,
            )
    return scores
