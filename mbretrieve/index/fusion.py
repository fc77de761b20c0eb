"""Joining two rankings of one query into one. A ranking maps documents, by id or number, to scores."""

from collections.abc import Mapping
from heapq import nlargest
from itertools import chain
from typing import TypeVar

Key = TypeVar("Key", int, str)

LEXICAL_UNIT = 30.0
"""A score by words (BM25) that is one unit of a weighted sum: what a question's best document usually has."""
PLACES = 10
"""A ranking tells its best from the rest by how far that lies above the tenth."""
LEAST_LEAD = 0.02
"""Added to the lead by meaning, so that no ranking counts for nothing because its best are alike."""
LEADS = 5.0
"""The lead by words over the lead by meaning at which words have the weight that was asked for."""
MOST = 3.0
"""So many times the weight at most."""


def weighted_sum(semantic: Mapping[Key, float], lexical: Mapping[Key, float], weight: float) -> dict[Key, float]:
    """Add a score by meaning, as a share of the query's best, and one by words: ``s / max|s| + w * l / 30``.

    ``w = weight * min(3, lead by words / (lead by meaning + 0.02) / 5)``, where a ranking's lead is that of its best
    document over its tenth, in the same units: words count as far as they tell documents apart and meaning does not.
    Meaning always finds something, and its scores say how near to each other documents are. Words may say little or
    much: how many rare words match is in the height of their score, which dividing it by the best would take away. What
    each of this gains is measured (eval/bench/fusion.py). A document missing from one ranking has 0 there.
    """
    best = max((abs(score) for score in semantic.values()), default=0.0) or 1.0
    # Beyond the last document by words there are others, which have none of them; by meaning there are no others.
    by_meaning = nlargest(PLACES, semantic.values()) or [0.0]
    by_words = [*nlargest(PLACES, lexical.values()), *[0.0] * PLACES]
    lead = (by_words[0] - by_words[PLACES - 1]) / LEXICAL_UNIT
    leads = lead / ((by_meaning[0] - by_meaning[-1]) / best + LEAST_LEAD)
    unit = weight * min(MOST, leads / LEADS) / LEXICAL_UNIT
    joined: dict[Key, float] = dict.fromkeys(chain(semantic, lexical), 0.0)
    for id, score in semantic.items():
        joined[id] = score / best
    for id, score in lexical.items():
        joined[id] += unit * score
    return joined


def reciprocal_rank_fusion(
    semantic: Mapping[Key, float], lexical: Mapping[Key, float], weight: float, *, k: int = 60
) -> dict[Key, float]:
    """Add ``1 / (k + rank by meaning) + weight / (k + rank by words)``, with ranks from 1, which equal scores share.

    Cormack, Clarke and Büttcher, SIGIR 2009, where k is 60. A document missing from a ranking gets nothing from it.
    """
    joined: dict[Key, float] = dict.fromkeys(chain(semantic, lexical), 0.0)
    for scores, factor in ((semantic, 1.0), (lexical, weight)):
        ranks: dict[float, int] = {}
        for rank, score in enumerate(sorted(scores.values(), reverse=True), start=1):
            ranks.setdefault(score, rank)
        for id, score in scores.items():
            joined[id] += factor / (k + ranks[score])
    return joined
