"""Documents of like length put together, so that what is ragged is computed as matrices: on a GPU, and for training."""

from collections.abc import Iterator

import torch
from torch import Tensor


def by_length(
    starts: Tensor, lengths: Tensor, max_tokens: int, device: torch.device
) -> tuple[Tensor, Iterator[tuple[slice, Tensor]]]:
    """Put documents in order, longest first, and cut that into groups of at most ``max_tokens`` tokens with padding.

    Returns the documents' numbers in that order, (D,), and for each group which of them it has, and where their tokens
    are: (n, J). Where a document is shorter than J its last token is repeated: that changes no maximum, and needs no
    mask. A longer document is a group of its own. Shapes: starts and lengths (D,) int64, on the CPU; what comes is on
    ``device``, where it is made of one copy: a copy for each group would have the host wait for the one before.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    sorted_lengths = lengths[order]
    on_device = torch.stack([order, starts[order], sorted_lengths - 1]).to(device)
    numbers, firsts, lasts = on_device.unbind()
    return numbers, _groups(sorted_lengths.tolist(), firsts, lasts, max_tokens)


def _groups(lengths: list[int], firsts: Tensor, lasts: Tensor, max_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    first = 0
    while first < len(lengths):
        longest = lengths[first]
        some = slice(first, min(len(lengths), first + max(1, max_tokens // longest)))
        within = torch.arange(longest, device=firsts.device)
        yield some, firsts[some, None] + within.minimum(lasts[some, None])
        first = some.stop
