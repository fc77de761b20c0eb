"""MaxSim of queries with documents laid end to end, as they are or compressed, for search: on the CPU, by blocks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve.scoring.padded import check_dims

# Sizes of the blocks of `maxsim_ragged`: small enough to stay in a core's cache, where the whole is twice as fast as
# with blocks sixteen times as large (the similarities are then read from memory again to find their maxima).
BLOCK_TOKENS = 4096
BLOCK_SIMILARITIES = 128 * 1024
BLOCK_MAXIMA = 8 * 1024 * 1024
# Up to so many query tokens, adding up the scores of a document token's codes is faster than decoding the token.
TABLE_QUERY_TOKENS = 48
# What the last byte of a compressed token stands for: its length over that of what its other codes add up to, in steps
# of half a percent. Codes shorten tokens, some more than others, and MaxSim's maximum is among tokens of one document.
SCALES: NDArray[np.float32] = np.exp2((np.arange(256, dtype=np.float32) - 128) / 128)

Places = slice | NDArray[np.int64]
Similarities = Callable[[Places], Iterator[tuple[int, NDArray[np.float32]]]]


class CompressedTokens(NamedTuple):
    """Tokens as a centroid, residual codes and a length each: token t is ``SCALES[codes[t, -1]]`` times the sum of
    ``centroids[assignments[t]]`` and, for every stage s, the vectors ``residuals[s, g, codes[t, s * groups + g]]`` of
    all groups g end to end.

    Shapes: centroids (L, groups * width) float32, residuals (stages, groups, 256, width) float32, assignments (T,)
    integers below L, codes (T, stages * groups + 1) uint8. The last two may be memory-mapped.
    """

    centroids: NDArray[np.float32]
    residuals: NDArray[np.float32]
    assignments: NDArray[np.integer[Any]]
    codes: NDArray[np.uint8]

    def decode(self, places: Places = slice(None)) -> Tensor:
        """Return some tokens as the codes give them back, (t, groups * width) float32."""
        stages, groups, _, width = self.residuals.shape
        table = torch.from_numpy(self.residuals).view(-1, width)
        tokens = torch.from_numpy(self.centroids).index_select(0, self._assignments(places))
        entries = self._codes(places) + self._first_entries()
        for stage in range(stages):
            chosen = entries[:, stage * groups : (stage + 1) * groups].reshape(-1)
            tokens += table.index_select(0, chosen).view_as(tokens)
        return tokens.mul_(self._scales(places))

    def score_codes(self, query: Tensor, coarse: Tensor) -> Callable[[Places], Tensor]:
        """Return a function from tokens to their inner products with a query, (t, I): the sum of the products of the
        query with the vectors that make up the token, each of them computed once, here.

        The asymmetric distance of Jegou et al. (Product quantization for nearest neighbor search, TPAMI 2011, section
        III.A). Shapes: query (I, groups * width), coarse (I, L) its products with the centroids.
        """
        _, groups, _, width = self.residuals.shape
        parts = query.view(len(query), groups, width).permute(1, 2, 0)  # (groups, width, I)
        products = torch.from_numpy(self.residuals) @ parts  # (stages, groups, 256, I)
        scores = torch.cat([products.flatten(0, 2), coarse.T])
        first_entries = self._first_entries().numpy()
        first_centroid = len(scores) - len(self.centroids)

        def score(places: Places) -> Tensor:
            codes = _take(self.codes, places)
            # numpy adds in the calling thread; torch would wake its other ones for what takes some microseconds.
            chosen = np.empty(codes.shape, dtype=np.int32)
            np.add(codes[:, :-1], first_entries, out=chosen[:, :-1])
            np.add(_take(self.assignments, places), first_centroid, out=chosen[:, -1], dtype=np.int32)
            sums = torch.nn.functional.embedding_bag(torch.from_numpy(chosen), scores, mode="sum")
            return sums.mul_(torch.from_numpy(SCALES[codes[:, -1:]]))

        return score

    def _codes(self, places: Places) -> Tensor:
        return torch.from_numpy(np.array(_take(self.codes[:, :-1], places)))

    def _scales(self, places: Places) -> Tensor:
        return torch.from_numpy(SCALES[_take(self.codes[:, -1:], places)])

    def _assignments(self, places: Places) -> Tensor:
        return torch.from_numpy(_take(self.assignments, places).astype(np.int32))

    def _first_entries(self) -> Tensor:
        """Return where the 256 entries of each of a token's codes begin, all of them taken as one table."""
        return torch.arange(0, (self.codes.shape[1] - 1) * 256, 256, dtype=torch.int32)


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
    stacked = _stack(queries, tokens)

    def similarities(places: Places) -> Iterator[tuple[int, NDArray[np.float32]]]:
        some = tokens[places] if isinstance(places, slice) else tokens[torch.from_numpy(places)]
        return _products(some.float(), stacked)

    return _maxsim_by_blocks([len(query) for query in queries], offsets, rows, similarities)


def maxsim_compressed(
    queries: Sequence[Tensor],
    tokens: CompressedTokens,
    offsets: Tensor,
    rows: NDArray[np.int64] | None = None,
    coarse: Tensor | None = None,
) -> Tensor:
    """Score many queries against compressed documents laid end to end, as ``maxsim_ragged_batch`` does on the decoded
    tokens.

    Few query tokens are scored without decoding. Shapes: queries Q times (I_q, groups * width) float32, offsets, rows
    and result as there; coarse (sum I_q, L) the products of all query tokens with the centroids, if already known.
    Memory beside the result: some tens of megabytes, or what the largest document needs, decoded, if that is more.
    Raises: ValueError as there.
    """
    centroids = torch.from_numpy(tokens.centroids)
    stacked = _stack(queries, centroids)
    if len(stacked) <= TABLE_QUERY_TOKENS:
        score = tokens.score_codes(stacked, stacked @ centroids.T if coarse is None else coarse)

        def similarities(places: Places) -> Iterator[tuple[int, NDArray[np.float32]]]:
            yield 0, score(places).numpy()

    else:

        def similarities(places: Places) -> Iterator[tuple[int, NDArray[np.float32]]]:
            return _products(tokens.decode(places), stacked)

    return _maxsim_by_blocks([len(query) for query in queries], offsets, rows, similarities)


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


def _places(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Places:
    """Return where the tokens of some documents are, end to end: a slice where they already lie so."""
    total = int(lengths.sum())
    if np.array_equal(starts[1:], starts[:-1] + lengths[:-1]):
        return slice(int(starts[0]), int(starts[0]) + total)
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(total)


def _take(array: NDArray[Any], places: Places) -> NDArray[Any]:
    # `take` needs a tenth of the time of an index of the same rows.
    return array[places] if isinstance(places, slice) else array.take(places, axis=0)


def _stack(queries: Sequence[Tensor], documents: Tensor) -> Tensor:
    """Return the tokens of all queries end to end, (sum I, dim) float32, the dim that of the documents."""
    for query in queries:
        check_dims(query, documents)
    if any(len(query) == 0 for query in queries):
        raise ValueError("a query has no token: MaxSim is a sum over its tokens")
    return torch.cat([torch.empty((0, documents.shape[1])), *(query.float() for query in queries)])


def _products(block: Tensor, stacked: Tensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the products of a block of tokens with some query tokens at a time, (t, i), and the first one's number."""
    step = max(1, BLOCK_SIMILARITIES // len(block))
    for first in range(0, len(stacked), step):
        # (t, I), not (I, t): a document's maximum is then taken over whole rows, from which short ones gain most.
        # numpy's reduceat, as torch's segment_reduce and index_reduce_ are slower on documents of usual length.
        yield first, (block @ stacked[first : first + step].T).numpy()


def _maxsim_by_blocks(
    query_lengths: Sequence[int], offsets: Tensor, rows: NDArray[np.int64] | None, similarities: Similarities
) -> Tensor:
    """Score documents block by block: ``similarities`` yields those of some tokens with consecutive query tokens."""
    bounds: NDArray[np.int64] = offsets.numpy()
    selected = np.arange(len(bounds) - 1, dtype=np.int64) if rows is None else rows
    starts, lengths = bounds[selected], bounds[selected + 1] - bounds[selected]
    if len(selected) and lengths.min() < 1:
        raise ValueError(f"document {selected[lengths.argmin()]} has no token: MaxSim is the maximum over its tokens")
    out = torch.zeros((len(query_lengths), len(selected)), dtype=torch.float32)
    if not len(query_lengths) or not len(selected):
        return out
    total = sum(query_lengths)
    query_starts: NDArray[np.int64] = np.cumsum([0, *query_lengths[:-1]])
    scores = out.numpy()
    for first, last in _blocks(lengths, max_documents=max(1, BLOCK_MAXIMA // total)):
        at = np.cumsum(lengths[first:last]) - lengths[first:last]
        maxima = np.empty((last - first, total), dtype=np.float32)
        for start, some in similarities(_places(starts[first:last], lengths[first:last])):
            np.maximum.reduceat(some, at, axis=0, out=maxima[:, start : start + some.shape[1]])
        scores[:, first:last] = np.add.reduceat(maxima, query_starts, axis=1).T
    return out
