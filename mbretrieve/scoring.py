"""Exact similarity, computed nowhere else: search, evaluation, reranking and training losses call this."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Sizes of the blocks of `maxsim_ragged`: small enough to stay in a core's cache, where the whole is twice as fast as
# with blocks sixteen times as large (the similarities are then read from memory again to find their maxima).
BLOCK_TOKENS = 4096
BLOCK_SIMILARITIES = 128 * 1024
BLOCK_MAXIMA = 8 * 1024 * 1024


def maxsim(queries: Tensor, documents: Tensor, query_mask: Tensor, document_mask: Tensor) -> Tensor:
    """Score every query against every document: ``out[q, d] = sum_i max_j queries[q, i] @ documents[d, j]``.

    The late interaction of ColBERT (Khattab and Zaharia, SIGIR 2020, equation 3). Differentiable.

    Shapes: queries (Q, I, dim), documents (D, J, dim), masks (Q, I) and (D, J) bool -> (Q, D) float32.
    Padding is excluded from the max, not zeroed: a zero would beat a negative similarity.
    Raises: ValueError if the dims differ or a document has no real token.
    """
    _check_dims(queries, documents)
    if not bool(document_mask.any(dim=1).all()):
        raise ValueError("a document has no real token: MaxSim is the maximum over its tokens")
    similarities = torch.einsum("qih,djh->qdij", queries, documents).float()  # (Q, D, I, J)
    best = similarities.masked_fill(~document_mask[None, :, None, :], -torch.inf).amax(dim=3)  # (Q, D, I)
    return best.masked_fill(~query_mask[:, None, :], 0.0).sum(dim=2)


def maxsim_ragged(query: Tensor, tokens: Tensor, offsets: Tensor) -> Tensor:
    """Score one query against documents laid end to end: ``out[d] = sum_i max_t query[i] @ tokens[t]``, with t in
    ``range(offsets[d], offsets[d + 1])``.

    Shapes: query (I, dim), tokens (T, dim) float16, bfloat16 or float32, offsets (D + 1,) int64 -> (D,) float32.
    All on the CPU; memory and errors as for ``maxsim_ragged_batch``.
    """
    return maxsim_ragged_batch([query], tokens, offsets)[0]


def maxsim_ragged_batch(
    queries: Sequence[Tensor], tokens: Tensor, offsets: Tensor, rows: NDArray[np.int64] | None = None
) -> Tensor:
    """Score many queries against documents laid end to end, reading the documents once for all of them.

    Shapes: queries Q times (I_q, dim), tokens (T, dim) float16, bfloat16 or float32, offsets (D + 1,) int64 with
    document d in ``tokens[offsets[d] : offsets[d + 1]]``, rows (R,) the documents to score (None: all of them) ->
    (Q, R) float32. All on the CPU. ``tokens`` may be memory-mapped: a block of it at a time becomes float32, so that
    beside the result some tens of megabytes are needed, or the size of the largest document if that is more.
    Raises: ValueError if the dims differ, or a query or a scored document has no token.
    """
    bounds: NDArray[np.int64] = offsets.numpy()
    selected = np.arange(len(bounds) - 1, dtype=np.int64) if rows is None else rows
    starts, lengths = bounds[selected], bounds[selected + 1] - bounds[selected]
    for query in queries:
        _check_dims(query, tokens)
    if any(len(query) == 0 for query in queries):
        raise ValueError("a query has no token: MaxSim is a sum over its tokens")
    if len(selected) and lengths.min() < 1:
        raise ValueError(f"document {selected[lengths.argmin()]} has no token: MaxSim is the maximum over its tokens")
    out = torch.zeros((len(queries), len(selected)), dtype=torch.float32)
    if not len(queries) or not len(selected):
        return out
    stacked = torch.cat([query.float() for query in queries])  # (sum I, dim)
    query_starts = np.cumsum([0] + [len(query) for query in queries[:-1]])
    scores = out.numpy()
    for first, last in _blocks(lengths, max_documents=max(1, BLOCK_MAXIMA // len(stacked))):
        block = _gather(tokens, starts[first:last], lengths[first:last])  # (t, dim) float32
        at = np.cumsum(lengths[first:last]) - lengths[first:last]
        maxima = np.empty((last - first, len(stacked)), dtype=np.float32)
        step = max(1, BLOCK_SIMILARITIES // len(block))
        for row in range(0, len(stacked), step):
            # (t, I), not (I, t): a document's maximum is then taken over whole rows, from which short ones gain most.
            # numpy's reduceat, as torch's segment_reduce and index_reduce_ are slower on documents of usual length.
            similarities = (block @ stacked[row : row + step].T).numpy()
            np.maximum.reduceat(similarities, at, axis=0, out=maxima[:, row : row + step])
        scores[:, first:last] = np.add.reduceat(maxima, query_starts, axis=1).T
    return out


def cosine(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine similarity of every query with every document: ``q @ d / (|q| |d|)``, or 0 for a zero vector.

    Shapes: queries (Q, dim), documents (D, dim) -> (Q, D) float32. Differentiable.
    Raises: ValueError if the dims differ.
    """
    _check_dims(queries, documents)
    normalize = torch.nn.functional.normalize
    return normalize(queries.float(), dim=-1) @ normalize(documents.float(), dim=-1).T


def _check_dims(queries: Tensor, documents: Tensor) -> None:
    if queries.shape[-1] != documents.shape[-1]:
        raise ValueError(f"queries have dim {queries.shape[-1]}, documents have dim {documents.shape[-1]}")


def _blocks(lengths: NDArray[np.int64], max_documents: int) -> Iterator[tuple[int, int]]:
    """Cut documents into runs [first, last) of at most BLOCK_TOKENS tokens; a longer document is a run of its own."""
    ends = np.cumsum(lengths)
    first, count = 0, len(lengths)
    while first < count:
        done = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right"))
        last = min(max(last, first + 1), first + max_documents, count)
        yield first, last
        first = last


def _gather(tokens: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
    """Return the tokens of some documents end to end, as float32: a slice where they already lie so, else a copy."""
    total = int(lengths.sum())
    if np.array_equal(starts[1:], starts[:-1] + lengths[:-1]):
        return tokens[int(starts[0]) : int(starts[0]) + total].float()
    shifts = starts - (np.cumsum(lengths) - lengths)
    return tokens[torch.from_numpy(np.repeat(shifts, lengths) + np.arange(total))].float()
