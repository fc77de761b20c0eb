"""MaxSim of documents laid end to end where they are, on a GPU: ``search``'s formula, in bounded memory."""

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve.errors import MbretrieveWarning
from mbretrieve.scoring.blocks import extents
from mbretrieve.scoring.groups import by_length
from mbretrieve.scoring.padded import stack

TOKENS = 256 * 1024
"""Documents' tokens, padding counted, that become float32 at a time; a longer document does alone."""
SIMILARITIES = 64 * 1024 * 1024
"""Similarities that there are at a time: a quarter of a gibibyte, and enough to keep a large GPU busy."""

_failed: list[str] = []  # what kept the kernel from running: it is not tried again


def maxsim_on_device(
    queries: Sequence[Tensor], tokens: Tensor, offsets: Tensor, rows: NDArray[np.int64] | None = None
) -> Tensor:
    """Score as ``search.maxsim_ragged_batch`` does, on the device of ``tokens``, where the scores stay: (Q, R) float32.

    Queries may be anywhere; ``offsets`` are on the CPU, because they say what is to be done. Raises: ValueError as
    there.
    """
    stacked = stack(queries, tokens)
    starts, lengths = map(torch.from_numpy, extents(offsets.numpy(), rows))
    if not queries or not len(starts):
        return torch.zeros(len(queries), len(starts), device=tokens.device)
    counts = [len(query) for query in queries]
    if tokens.is_cuda and _has_triton() and not _failed:
        from mbretrieve.scoring.triton_kernel import maxsim_by_kernel

        try:
            return maxsim_by_kernel(stacked, counts, tokens, starts, lengths)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever keeps Triton from making the kernel here: a compiler that is not there
            _do_without(error)
    return by_groups(stacked, counts, tokens, starts, lengths)


def by_groups(stacked: Tensor, counts: Sequence[int], tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Score documents a group of like length at a time, and in each some query tokens at a time.

    Shapes: stacked (sum I, dim) float32, queries of ``counts`` tokens end to end; tokens (T, dim); starts and lengths
    (R,) int64 on the CPU -> (Q, R). Beside arguments and result there are at most SIMILARITIES similarities, and
    TOKENS tokens in float32 (of the longest document, if that is longer).
    """
    numbers, groups = by_length(starts, lengths, TOKENS, tokens.device)
    most = max(TOKENS, int(lengths.max()))
    parts = _parts(counts, max(1, SIMILARITIES // most), tokens.device)
    columns = stacked.T  # (dim, sum I)
    scores = torch.zeros(len(counts), len(starts), device=tokens.device)  # in the order of ``numbers``
    for some, places in groups:
        documents, width = places.shape
        chosen = tokens[places.flatten()].float()  # (n * J, dim)
        for part in parts:
            similarities = (chosen @ columns[:, part.tokens]).view(documents, width, -1)  # (n, J, i)
            best = similarities.amax(dim=1).T.contiguous()  # (i, n)
            # ``unsafe``: the lengths are ours, and to check them the host would wait for the device.
            sums = torch.segment_reduce(best, "sum", lengths=part.counts, axis=0, unsafe=True)
            scores[part.queries, some] += sums
    out = torch.empty_like(scores)
    out[:, numbers] = scores
    return out


class _Part(NamedTuple):
    """Consecutive tokens of the stacked queries, the queries they are of, and how many of each, on the device."""

    tokens: slice
    queries: slice
    counts: Tensor


def _parts(counts: Sequence[int], step: int, device: torch.device) -> list[_Part]:
    """Cut stacked queries every ``step`` tokens, through a query if need be: its sum then comes in parts, in order."""
    ends: NDArray[np.int64] = np.cumsum(counts)
    starts = ends - counts
    parts = []
    for first in range(0, int(ends[-1]), step):
        last = min(first + step, int(ends[-1]))
        some = slice(int(ends.searchsorted(first, "right")), int(starts.searchsorted(last, "left")))
        inside = ends[some].clip(max=last) - starts[some].clip(min=first)
        parts.append(_Part(slice(first, last), some, torch.from_numpy(inside).to(device)))
    return parts


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _do_without(error: Exception) -> None:
    """Take the way of torch's own operations from now on, and say why."""
    said = (str(error).splitlines() or [""])[0]
    _failed.append(said)
    warnings.warn(
        f"the Triton kernel for MaxSim cannot be had here ({type(error).__name__}: {said}): going on by torch's own "
        "operations, with the same scores",
        MbretrieveWarning,
        stacklevel=3,
    )
