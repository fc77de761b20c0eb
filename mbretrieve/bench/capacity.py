"""The largest batch that a GPU's memory holds, as the ModernBERT paper's efficiency table has it."""

from collections.abc import Callable

import torch

MOST = 1 << 15
"""No batch of more documents is tried."""


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """Return a number of documents that fits, by doubling until one does not and halving what is between.

    It is at least seven eighths of the largest that fits, if a batch that fits is followed by no smaller one that does
    not. 0 if not even one document fits; never more than ``most``.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > max(1, bad // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def fits_in_memory(encode: Callable[[], None], device: torch.device) -> bool:
    """Say whether something can be computed in the memory of a CUDA device, and leave the memory as it was."""
    try:
        encode()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True
