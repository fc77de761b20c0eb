"""Exact similarity, computed nowhere else: search, evaluation, reranking and training losses call this."""

from mbretrieve.scoring.packed import maxsim_packed
from mbretrieve.scoring.padded import cosine, maxsim
from mbretrieve.scoring.search import (
    SCALES,
    CompressedTokens,
    maxsim_compressed,
    maxsim_ragged,
    maxsim_ragged_batch,
)

__all__ = [
    "SCALES",
    "CompressedTokens",
    "cosine",
    "maxsim",
    "maxsim_compressed",
    "maxsim_packed",
    "maxsim_ragged",
    "maxsim_ragged_batch",
]
