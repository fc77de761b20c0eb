"""Greedy token-budget batches: which texts travel together through the backbone, and what fills them up."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut ``range(len(lengths))`` into batches of at most ``budget`` tokens, longest texts first.

    Returns lists of indices into ``lengths``; each index is in exactly one. An item over the budget is a batch of its
    own. Lengths (tokens) fall along the batches, so that neighbours are alike, and the batch that needs the most memory
    comes first: what does not fit fails at once, not after an hour. Equal lengths keep their order.
    Raises: ValueError if the budget or a length is below 1.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}, expected at least 1 token")
    if any(length < 1 for length in lengths):
        raise ValueError(f"a length is {min(lengths)}, expected at least 1 token")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[index] > room:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= lengths[index]
    return batches


def filling(x: Tensor) -> int:
    """Return how many rows more (rows, ...) is to have before it is multiplied on a CPU; none where gradients are kept.

    oneDNN makes a kernel for each shape of a matrix, and keeps the last thousand of them: so texts packed as they came
    took a tenth more time, and more memory with each batch. A single question is left as it is.
    """
    rows = len(x) if x.device.type == "cpu" and not torch.is_grad_enabled() else 0
    return 0 if rows <= 64 else -rows % (16 if rows <= 512 else 64)


def steps(rows: int) -> int:
    """Return how many rows more a batch is to have that goes through compiled graphs on a GPU.

    To a multiple of an eighth of the power of two below: there are few sizes, so that what the allocator has kept of
    one batch fits the next, and matrices end at whole tiles; to a full batch next to nothing is added.
    """
    return -rows % max(64, 1 << max(0, (rows - 1).bit_length() - 4))
