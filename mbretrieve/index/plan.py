"""How much of an index a search looks at: a table by the number of tokens in it, and one for dense vectors."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

EXACT_TOKENS = 1 << 17
"""Up to so many tokens are kept as they came and every one of them is compared."""
FIRST_TOKENS = 1 << 21
"""So many tokens, or a quarter of all that are expected, are awaited before an index's first codebook is trained. It
then knows more files: of transformers' source, trained on 0.6 million tokens it lost 2.5 times as much of later files
as of these; on 1.8 million, a quarter less than that."""
RAW_TOKENS = 1 << 14
"""So many tokens that came after an index was packed wait, and are compared one by one, until they are packed too."""
DRIFT_TOKENS = 1 << 17
"""So many tokens must be unlike the old ones before a codebook is trained for them."""
DRIFT = 1.15
"""A codebook is too old for vectors of which it loses so many times what it lost of those it was held against when
trained, and what one trained on their neighbours loses of them. Of transformers' source, batches of 0.6 to 0.9 million
tokens differ by a fifth in what any codebook loses, but not in which of two loses more."""
SAMPLE_TOKENS = 1 << 17
SAMPLE_PER_LIST = 32
"""A codebook is trained on so many tokens, or so many for each of its lists if that is more."""
LEAST_PER_LIST = 8
"""It has fewer lists if there are not so many tokens for each."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How far a search goes: ``probes`` lists are visited for each query token, their best ``tokens`` tokens fetched,
    and of the windows that these belong to the best ``rescore`` are scored whole; or fewer of them, where all others
    are not likely to hold one of the best ``sure`` documents (0: none is left out).

    A dense vector is a window of one token. Of inverted lists the best ``tokens`` vectors by their codes, but at most
    ``rescore``, are scored as they came. In a graph ``tokens`` candidates are kept while it is walked (efSearch), each
    scored as it came. What is flat is compared whole, whatever the effort; a filter makes the others look further.
    In a joint index the best ``rescore`` documents by their windows' dense vectors, found as these say, are scored.
    """

    probes: int
    tokens: int
    rescore: int
    sure: int = 0

    def __post_init__(self) -> None:
        if min(self.probes, self.tokens, self.rescore) < 1 or self.sure < 0:
            raise ValueError(f"{self}: at least 1 of each was expected")


class Row(NamedTuple):
    """A row of the table: what holds for an index of up to so many tokens."""

    tokens: int
    effort: Effort


TABLE = (
    Row(1 << 21, Effort(probes=32, tokens=1024, rescore=300)),
    Row(1 << 23, Effort(probes=32, tokens=3072, rescore=300)),
    Row(1 << 25, Effort(probes=32, tokens=4096, rescore=300)),
    Row(1 << 62, Effort(probes=32, tokens=16384, rescore=300)),
)
"""Measured on the functions of eval/bench/index_scale.py, 1.3 and 12.6 million tokens; the second row is interpolated,
the last extrapolated. With too few tokens documents are missed (at 12.6 million, recall@10 is .92 with 2,048, .94 with
4,096 and .945 with 6,144, for which FAISS takes a third more time); with nearly all that the lists hold, what was not
found counts as what lies at their bottom, and candidates are ranked worse."""


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
        k,
    )


def lists(tokens: int) -> int:
    """Return how many lists a codebook is to have that is trained when an index has so many tokens.

    Four times the square root, to the nearest power of two: it then suits an index of sixteen times the size, too, and
    what is left to be coded is small (with 2 bits a dimension, nDCG@10 gains from every doubling).
    """
    return int(min(1 << 16, max(16, 2 ** round(math.log2(4 * math.sqrt(max(tokens, 1)))))))


def wait(expected: int) -> int:
    """Return how many tokens are to be there before the first codebook of an index is trained, if so many are expected
    in all."""
    return max(EXACT_TOKENS, min(FIRST_TOKENS, expected // 4))


Search = Literal["flat", "graph", "lists"]
"""How a dense segment is searched: each vector compared; along a graph (HNSW); by inverted lists (IVF-PQ)."""


class DenseRow(NamedTuple):
    """A row of the table for dense vectors: what holds for a segment of up to so many."""

    vectors: int
    search: Search
    effort: Effort


DENSE_TABLE = (
    DenseRow(1 << 14, "flat", Effort(probes=1, tokens=1, rescore=1)),
    DenseRow(1 << 16, "graph", Effort(probes=1, tokens=128, rescore=128)),
    DenseRow(1 << 62, "lists", Effort(probes=256, tokens=256, rescore=256)),
)
"""Measured by eval/bench/dense_index.py, at 256 dimensions on one core. Flat: 16,384 vectors take under 1 ms, 65,536 no
longer fit the cache and take 9; but several flat segments stay side by side until they are merged. A graph of 131,072
takes a minute to build, at a commit that may have come with one document; lists take 4 s and find nearly as much in a
millisecond more."""


def dense_row(vectors: int) -> DenseRow:
    """Return what holds for a dense segment of so many vectors."""
    return next(row for row in DENSE_TABLE if vectors <= row.vectors)


def dense_effort(vectors: int, k: int) -> Effort:
    """Return how far to search a dense segment of so many vectors for the best ``k`` documents."""
    least = dense_row(vectors).effort
    more = max(1, 4 * k // least.tokens)  # the best hundred lie in more lists than the best ten
    return Effort(least.probes * more, max(least.tokens, 4 * k), max(least.rescore, 4 * k))


FETCHED = 100
"""So many documents of a joint index are fetched by their dense vectors at least, and ranked by their tokens."""


def joint_effort(windows: int, k: int) -> Effort:
    """Return how far to search a joint index of so many windows for the best ``k`` documents."""
    rescore = max(FETCHED, 2 * k)
    least = dense_row(windows).effort
    return Effort(least.probes * max(1, 2 * rescore // least.tokens), max(least.tokens, 2 * rescore), rescore)
