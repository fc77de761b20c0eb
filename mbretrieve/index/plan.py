"""How much of an index a search looks at: one table, by the number of tokens in the index."""

import math
from dataclasses import dataclass
from typing import NamedTuple

EXACT_TOKENS = 1 << 17
"""Up to so many tokens are kept as they came and every one of them is compared."""
RAW_TOKENS = 1 << 14
"""So many tokens that came after an index was packed wait, and are compared one by one, until they are packed too."""
DRIFT_TOKENS = 1 << 17
"""So many tokens must be unlike the old ones before a codebook is trained for them."""
DRIFT = 1.15
"""A codebook is too old for vectors of which it loses so many times what it lost of those it was trained on."""
SAMPLE_TOKENS = 1 << 17
SAMPLE_PER_LIST = 32
"""A codebook is trained on so many tokens, or so many for each of its lists if that is more."""
LEAST_PER_LIST = 8
"""It has fewer lists if there are not so many tokens for each."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How far a search goes: ``probes`` lists are visited for each query token, their best ``tokens`` tokens fetched,
    and of the windows that these belong to the best ``rescore`` are scored whole."""

    probes: int
    tokens: int
    rescore: int

    def __post_init__(self) -> None:
        if min(self.probes, self.tokens, self.rescore) < 1:
            raise ValueError(f"{self}: at least 1 of each was expected")


class Row(NamedTuple):
    """A row of the table: what holds for an index of up to so many tokens."""

    tokens: int
    effort: Effort


TABLE = (
    Row(1 << 21, Effort(probes=32, tokens=1024, rescore=200)),
    Row(1 << 24, Effort(probes=32, tokens=1024, rescore=200)),
    Row(1 << 62, Effort(probes=32, tokens=1024, rescore=200)),
)
"""Measured by eval/bench/index_scale.py. More tokens without more lists make the ranking of candidates worse: what was
not found then counts as what lies at the bottom of the lists."""


def effort(tokens: int, k: int) -> Effort:
    """Return how far to search an index of ``tokens`` packed tokens for the best ``k`` documents."""
    return widened(next(row.effort for row in TABLE if tokens <= row.tokens), k)


def widened(least: Effort, k: int) -> Effort:
    """Return an effort, or as much more as the best ``k`` documents ask for."""
    # Candidates are ranked by an estimate: to find the best k, more of them have to be scored.
    rescore = min(8 * k, 2 * k + 1200)
    return Effort(
        least.probes * (2 if rescore > 2 * least.rescore else 1),
        max(least.tokens, 2 * rescore),
        max(least.rescore, rescore),
    )


def lists(tokens: int) -> int:
    """Return how many lists a codebook is to have that is trained when an index has so many tokens.

    Four times the square root, to the nearest power of two: it then suits an index of sixteen times the size, too, and
    what is left to be coded is small (with 2 bits a dimension, nDCG@10 gains from every doubling).
    """
    return int(min(1 << 16, max(16, 2 ** round(math.log2(4 * math.sqrt(max(tokens, 1)))))))
