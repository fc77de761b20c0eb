"""MaxSim of queries with documents laid end to end, as they are or compressed, for search: on a CPU by blocks."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve.scoring.blocks import Places, maxsim_by_blocks
from mbretrieve.scoring.compressed import CompressedTokens
from mbretrieve.scoring.native import native_maxsim, native_scorer
from mbretrieve.scoring.on_device import maxsim_on_device
from mbretrieve.scoring.padded import stack

BLOCK_SIMILARITIES = 128 * 1024  # they stay in a core's cache, as the tokens of a block do
# Up to so many query tokens, adding up the scores of a document token's codes is faster than decoding the token: by the
# kernel, and by torch.
NATIVE_QUERY_TOKENS = 128
TABLE_QUERY_TOKENS = 48


def maxsim_ragged(query: Tensor, tokens: Tensor, offsets: Tensor) -> Tensor:
    """Score one query against documents laid end to end: ``out[d] = sum_i max_t query[i] @ tokens[t]``, with t in
    ``range(offsets[d], offsets[d + 1])``.

    Shapes: query (I, dim), tokens (T, dim) float16, bfloat16 or float32, offsets (D + 1,) int64 -> (D,) float32.
    Devices, memory and errors as for ``maxsim_ragged_batch``.
    """
    return maxsim_ragged_batch([query], tokens, offsets)[0]


def maxsim_ragged_batch(
    queries: Sequence[Tensor], tokens: Tensor, offsets: Tensor, rows: NDArray[np.int64] | None = None
) -> Tensor:
    """Score many queries against documents laid end to end, reading the documents once for all of them.

    Shapes: queries Q times (I_q, dim), tokens (T, dim) float16, bfloat16 or float32, offsets (D + 1,) int64 with
    document d in ``tokens[offsets[d] : offsets[d + 1]]``, rows (R,) the documents to score (None: all of them) ->
    (Q, R) float32, on the device of ``tokens``; ``offsets`` are on the CPU. ``tokens`` may be memory-mapped: a block of
    it at a time becomes float32, so that beside the result some tens of megabytes are needed, or the size of the
    largest document if that is more; on a GPU some hundreds of megabytes.
    Raises: ValueError if the dims differ, or a query or a scored document has no token.
    """
    if not tokens.is_cpu:
        return maxsim_on_device(queries, tokens, offsets, rows)
    stacked = stack(queries, tokens)
    if (by_kernel := _maxsim_by_kernel(queries, tokens, offsets, rows)) is not None:
        return by_kernel

    def similarities(places: Places) -> Iterator[tuple[int, NDArray[np.float32]]]:
        some = tokens[places] if isinstance(places, slice) else tokens[torch.from_numpy(places)]
        return _products(some.float(), stacked)

    lengths = [len(query) for query in queries]
    return torch.from_numpy(maxsim_by_blocks(lengths, offsets.numpy(), rows, similarities))


def maxsim_compressed(
    queries: Sequence[Tensor],
    tokens: CompressedTokens,
    offsets: Tensor,
    rows: NDArray[np.int64] | None = None,
    coarse: Tensor | None = None,
) -> Tensor:
    """Score many queries against compressed documents laid end to end, as ``maxsim_ragged_batch`` does on the decoded
    tokens.

    Shapes: queries Q times (I_q, groups * width) float32, offsets, rows and result as there; coarse (sum I_q, L) the
    products of all query tokens with the centroids, if already known. Memory beside the result: some tens of megabytes,
    or what the largest document needs, decoded, if that is more. Raises: ValueError as there.
    """
    return compressed_scorer(queries, tokens, offsets, coarse)(rows)


def compressed_scorer(
    queries: Sequence[Tensor], tokens: CompressedTokens, offsets: Tensor, coarse: Tensor | None = None
) -> Callable[[NDArray[np.int64] | None], Tensor]:
    """Return a function from rows (R,) to what ``maxsim_compressed`` says of them, (Q, R): for who asks it in turns.

    Few query tokens are scored without decoding.
    """
    centroids = torch.from_numpy(tokens.centroids)
    stacked = stack(queries, centroids)
    if len(stacked) <= NATIVE_QUERY_TOKENS and (by_kernel := _by_kernel(queries, tokens, offsets, coarse)) is not None:
        return by_kernel
    if len(stacked) <= TABLE_QUERY_TOKENS:
        score = tokens.score_codes(stacked, stacked @ centroids.T if coarse is None else coarse)

        def similarities(places: Places) -> Iterator[tuple[int, NDArray[np.float32]]]:
            yield 0, score(places).numpy()

    else:

        def similarities(places: Places) -> Iterator[tuple[int, NDArray[np.float32]]]:
            return _products(torch.from_numpy(tokens.decode(places)), stacked)

    lengths, bounds = [len(query) for query in queries], offsets.numpy()
    return lambda rows: torch.from_numpy(maxsim_by_blocks(lengths, bounds, rows, similarities))


def _maxsim_by_kernel(
    queries: Sequence[Tensor], tokens: Tensor, offsets: Tensor, rows: NDArray[np.int64] | None
) -> Tensor | None:
    bfloat16 = tokens.dtype == torch.bfloat16
    numbers = (tokens.view(torch.uint16) if bfloat16 else tokens).numpy()
    found = []
    for query in queries:
        scores = native_maxsim(query.float().numpy(), numbers, offsets.numpy(), rows, bfloat16=bfloat16)
        if scores is None:
            return None
        found.append(scores)
    return torch.from_numpy(np.stack(found)) if found else None


def _by_kernel(
    queries: Sequence[Tensor], tokens: CompressedTokens, offsets: Tensor, coarse: Tensor | None
) -> Callable[[NDArray[np.int64] | None], Tensor] | None:
    lengths = [len(query) for query in queries]
    each = [None] * len(queries) if coarse is None else np.split(coarse.numpy(), np.cumsum(lengths)[:-1])
    scorers = [
        scorer
        for query, of in zip(queries, each, strict=True)
        if (scorer := native_scorer(query.float().numpy(), tokens, offsets.numpy(), of)) is not None
    ]
    if not queries or len(scorers) < len(queries):
        return None
    return lambda rows: torch.from_numpy(np.stack([score(rows) for score in scorers]))


def _products(block: Tensor, stacked: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the products of a block of tokens with some query tokens at a time, (t, i), and the first one's number."""
    step = max(1, BLOCK_SIMILARITIES // len(block))
    for first in range(0, len(stacked), step):
        # (t, I), not (I, t): a document's maximum is then taken over whole rows, from which short ones gain most.
        # numpy's reduceat, as torch's segment_reduce and index_reduce_ are slower on documents of usual length.
        yield first, (block @ stacked[first : first + step].T).numpy()
