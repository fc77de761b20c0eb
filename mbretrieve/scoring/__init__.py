"""Exact similarity, computed nowhere else: search, evaluation, reranking and training losses call this."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbretrieve.scoring.arrays import codes_scorer, maxsim_codes, maxsim_rows
    from mbretrieve.scoring.compressed import SCALES, CompressedTokens, spacing
    from mbretrieve.scoring.packed import maxsim_packed
    from mbretrieve.scoring.padded import cosine, maxsim
    from mbretrieve.scoring.search import compressed_scorer, maxsim_compressed, maxsim_ragged, maxsim_ragged_batch
    from mbretrieve.scoring.sparing import spares_torch, sparing_torch

__all__ = [
    "SCALES",
    "CompressedTokens",
    "codes_scorer",
    "compressed_scorer",
    "cosine",
    "maxsim",
    "maxsim_codes",
    "maxsim_compressed",
    "maxsim_packed",
    "maxsim_ragged",
    "maxsim_ragged_batch",
    "maxsim_rows",
    "spacing",
    "spares_torch",
    "sparing_torch",
]

# Resolved on first use (PEP 562): half of these modules need torch, the other half are for who does without.
_HOME = {
    "SCALES": "compressed",
    "CompressedTokens": "compressed",
    "codes_scorer": "arrays",
    "compressed_scorer": "search",
    "cosine": "padded",
    "maxsim": "padded",
    "maxsim_codes": "arrays",
    "maxsim_compressed": "search",
    "maxsim_packed": "packed",
    "maxsim_ragged": "search",
    "maxsim_ragged_batch": "search",
    "maxsim_rows": "arrays",
    "spacing": "compressed",
    "spares_torch": "sparing",
    "sparing_torch": "sparing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
