"""Compressed tokens: what their codes stand for, and their products with a query."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.scoring.blocks import Places, take

if TYPE_CHECKING:
    from torch import Tensor

# What the last byte of a compressed token stands for: its length over that of what its other codes add up to, in steps
# of half a percent. Codes shorten tokens, some more than others, and MaxSim's maximum is among tokens of one document.
SCALES: NDArray[np.float32] = np.exp2((np.arange(256, dtype=np.float32) - 128) / 128)


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

    def decode(self, places: Places = slice(None)) -> "Tensor":
        """Return some tokens as the codes give them back, (t, groups * width) float32."""
        import torch

        stages, groups, _, width = self.residuals.shape
        table = torch.from_numpy(self.residuals).view(-1, width)
        assignments = take(self.assignments, places).astype(np.int32)
        tokens = torch.from_numpy(self.centroids).index_select(0, torch.from_numpy(assignments))
        codes = take(self.codes, places)
        entries = torch.from_numpy(codes[:, :-1] + self._first_entries())
        for stage in range(stages):
            chosen = entries[:, stage * groups : (stage + 1) * groups].reshape(-1)
            tokens += table.index_select(0, chosen).view_as(tokens)
        return tokens.mul_(torch.from_numpy(SCALES[codes[:, -1:]]))

    def score_codes(self, query: "Tensor", coarse: "Tensor") -> "Callable[[Places], Tensor]":
        """Return a function from tokens to their inner products with a query, (t, I): the sum of the products of the
        query with the vectors that make up the token, each of them computed once, here.

        The asymmetric distance of Jegou et al. (Product quantization for nearest neighbor search, TPAMI 2011, section
        III.A). Shapes: query (I, groups * width), coarse (I, L) its products with the centroids.
        """
        import torch

        _, groups, _, width = self.residuals.shape
        parts = query.view(len(query), groups, width).permute(1, 2, 0)  # (groups, width, I)
        products = torch.from_numpy(self.residuals) @ parts  # (stages, groups, 256, I)
        scores = torch.cat([products.flatten(0, 2), coarse.T])
        first_entries = self._first_entries()
        first_centroid = len(scores) - len(self.centroids)

        def score(places: Places) -> "Tensor":
            codes = take(self.codes, places)
            # numpy adds in the calling thread; torch would wake its other ones for what takes some microseconds.
            chosen = np.empty(codes.shape, dtype=np.int32)
            np.add(codes[:, :-1], first_entries, out=chosen[:, :-1])
            np.add(take(self.assignments, places), first_centroid, out=chosen[:, -1], dtype=np.int32)
            sums = torch.nn.functional.embedding_bag(torch.from_numpy(chosen), scores, mode="sum")
            return sums.mul_(torch.from_numpy(SCALES[codes[:, -1:]]))

        return score

    def _first_entries(self) -> NDArray[np.int32]:
        """Return where the 256 entries of each of a token's codes begin, all of them taken as one table."""
        return np.arange(0, (self.codes.shape[1] - 1) * 256, 256, dtype=np.int32)
