"""Compressed tokens: what their codes stand for, and their products with a query."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.scoring.blocks import BLOCK_TOKENS, Places, take

if TYPE_CHECKING:
    from torch import Tensor

# What the last byte of a compressed token stands for: its length over that of what its other codes add up to, in steps
# of half a percent. Codes shorten tokens, some more than others, and MaxSim's maximum is among tokens of one document.
SCALES: NDArray[np.float32] = np.exp2((np.arange(256, dtype=np.float32) - 128) / 128)


@dataclass(frozen=True, eq=False)
class CompressedTokens:
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

    @cached_property
    def spacing(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """What ``spacing`` says of the residuals."""
        return spacing(self.residuals)

    def decode(self, places: Places = slice(None)) -> NDArray[np.float32]:
        """Return some tokens as the codes give them back, (t, groups * width) float32."""
        stages, groups, _, width = self.residuals.shape
        table = self.residuals.reshape(-1, width)
        tokens = self.centroids.take(take(self.assignments, places), axis=0)
        codes = take(self.codes, places)
        entries = codes[:, :-1] + self._first_entries()
        for stage in range(stages):
            chosen = entries[:, stage * groups : (stage + 1) * groups]
            tokens += table.take(chosen, axis=0).reshape(tokens.shape)
        tokens *= SCALES[codes[:, -1:]]
        return tokens

    def score_codes(self, query: "Tensor", coarse: "Tensor") -> "Callable[[Places], Tensor]":
        """Return a function from tokens to their inner products with a query, (t, I): the sum of the products of the
        query with the vectors that make up the token, each of them computed once, here.

        The asymmetric distance of Jegou et al. (Product quantization for nearest neighbor search, TPAMI 2011, section
        III.A). Shapes: query (I, groups * width), coarse (I, L) its products with the centroids.
        """
        import torch

        if (spaced := self.spacing) is not None:
            return self._score_spaced(query, coarse, *spaced)
        _, groups, _, width = self.residuals.shape
        parts = query.view(len(query), groups, width).permute(1, 2, 0)  # (groups, width, I)
        products = torch.from_numpy(self.residuals) @ parts  # (stages, groups, 256, I)
        scores = torch.cat([products.flatten(0, 2), coarse.T])
        # Where the entries of each of a block's codes begin, the last of them the centroids: added row by row, thirty
        # numbers at a time, it would take four times as long.
        firsts = np.arange(0, self.codes.shape[1] * 256, 256, dtype=np.int32)
        of_block = np.tile(firsts, (BLOCK_TOKENS, 1))

        def score(places: Places) -> "Tensor":
            codes = take(self.codes, places)
            chosen = codes.astype(np.int32)
            chosen[:, -1] = take(self.assignments, places)
            chosen += of_block[: len(chosen)] if len(chosen) <= len(of_block) else firsts
            sums = torch.nn.functional.embedding_bag(torch.from_numpy(chosen), scores, mode="sum")
            # In numpy: torch would wake its other threads for what takes some microseconds.
            sums.numpy()[:] *= SCALES[codes[:, -1:]]
            return sums

        return score

    def _score_spaced(
        self, query: "Tensor", coarse: "Tensor", lowest: NDArray[np.float32], steps: NDArray[np.float32]
    ) -> "Callable[[Places], Tensor]":
        """Return the function of ``score_codes`` for codes that are numbers: ``q . (lowest + code * steps)``."""
        import torch

        weights = (query * torch.from_numpy(steps)).T  # (groups, I)
        rest = (coarse + (query @ torch.from_numpy(lowest))[:, None]).T.contiguous()  # (L, I)

        def score(places: Places) -> "Tensor":
            codes = take(self.codes, places)
            assigned = torch.from_numpy(take(self.assignments, places).astype(np.int32))
            sums = rest.index_select(0, assigned)
            sums.addmm_(torch.from_numpy(codes[:, :-1].astype(np.float32)), weights)
            return sums.mul_(torch.from_numpy(SCALES[codes[:, -1:]]))

        return score

    def _first_entries(self) -> NDArray[np.int32]:
        """Return where the 256 entries of each of a token's codes begin, all of them taken as one table."""
        return np.arange(0, (self.codes.shape[1] - 1) * 256, 256, dtype=np.int32)


def spacing(residuals: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the least entry of each dimension, and the step between its entries, if residuals (1, groups, 256, 1) are
    equally spaced: a code's product with a query is then linear in the code."""
    stages, _, entries, width = residuals.shape
    if (stages, width) != (1, 1):
        return None
    [tables] = residuals[..., 0]  # (groups, 256)
    steps = (tables[:, -1] - tables[:, 0]) / (entries - 1)
    apart = np.abs(tables - tables[:, :1] - steps[:, None] * np.arange(entries, dtype=np.float32)).max(axis=1)
    return (tables[:, 0], steps) if (apart <= 1e-5 * np.abs(tables).max(axis=1)).all() else None
