"""How much of an index a search looks at: one table, by the number of tokens in the index."""

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
"""A codebook is trained on at most so many tokens."""


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


# eval/bench/index_scale.py measures it.
TABLE = (
    Row(1 << 21, Effort(probes=16, tokens=512, rescore=100)),
    Row(1 << 24, Effort(probes=16, tokens=768, rescore=100)),
    Row(1 << 62, Effort(probes=16, tokens=1024, rescore=128)),
)


def effort(tokens: int, k: int) -> Effort:
    """Return how far to search an index of ``tokens`` packed tokens for the best ``k`` documents."""
    row = next(row for row in TABLE if tokens <= row.tokens)
    least = row.effort
    # To return k documents more than k have to be looked at: candidates are ranked by an estimate.
    return Effort(least.probes, max(least.tokens, 4 * k), max(least.rescore, 2 * k))


def lists(tokens: int) -> int:
    """Return how many lists a codebook is to have that is trained when an index has so many tokens.

    Four times the square root, to the next power of two below: it then suits an index of sixteen times the size, too.
    """
    root = 4 * max(tokens, 1) ** 0.5
    return min(1 << 16, max(16, 1 << (int(root).bit_length() - 1)))
