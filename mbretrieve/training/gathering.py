"""Rows of all ranks on each of them: a loss over the whole batch, whatever number of processes encoded it.

Every rank that computes the loss of the whole batch from gathered rows gets, after the averaging of gradients that
DistributedDataParallel does, the gradient that one process alone would have.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the ranks' rows, in the order of ranks: (n_r, ...) on rank r -> (sum of n_r, ...) on each.

    Differentiable. A rank's rows get the sum of all ranks' gradients on them, as the rows of one process get those of
    all uses: with a loss on each rank, this is the gradient of their sum. The ranks may have different numbers of rows,
    0 among them; the other dimensions and the dtype are the same. Without a process group the rows come back.
    """
    return cast(Tensor, _GatherRows.apply(rows)) if ranks() > 1 else rows  # type: ignore[no-untyped-call]


def gather_counts(counts: Sequence[int], device: torch.device) -> list[int]:
    """Concatenate the ranks' whole numbers, such as lengths of texts: what tells gathered rows apart.

    ``device`` is one that the process group serves: the GPU for nccl.
    """
    return list(counts) if ranks() == 1 else _gather(torch.tensor(counts, dtype=torch.int64, device=device))[0].tolist()


def summed(numbers: Tensor) -> Tensor:
    """Return the sum over the ranks of numbers that have one shape on each; not differentiable."""
    if ranks() > 1:
        dist.all_reduce(numbers)
    return numbers


def ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        whole, sizes = _gather(rows)
        first = sum(sizes[: dist.get_rank()])
        ctx.own = slice(first, first + len(rows))
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)  # gloo has no reduce_scatter for parts of different sizes
        return total[ctx.own]


def _gather(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Return the ranks' rows end to end, and how many each has. Sent with padding: collectives want equal sizes."""
    own = torch.tensor([len(rows)], dtype=torch.int64, device=rows.device)
    counts = [torch.empty_like(own) for _ in range(ranks())]
    dist.all_gather(counts, own)
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sizes
