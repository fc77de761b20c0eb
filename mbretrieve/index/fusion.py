"""Joining two rankings of one query into one. A ranking maps documents, by id or number, to scores."""

from collections.abc import Mapping
from itertools import chain
from typing import TypeVar

Key = TypeVar("Key", int, str)

LEXICAL_UNIT = 30.0
"""A score by words (BM25) that is one unit of a weighted sum: what a question's best document usually has."""


def weighted_sum(semantic: Mapping[Key, float], lexical: Mapping[Key, float], weight: float) -> dict[Key, float]:
    """Add a score by meaning, as a share of the query's best, and one by words: ``s / max|s| + weight * l / 30``.

    Meaning always finds something, and its scores say how near to each other documents are. Words may say little or
    much: how many rare words match is in the height of their score, which dividing it by the best would take away
    (eval/bench/fusion.py: it costs half a point of nDCG@10). A document missing from one ranking has 0 there.
    """
    best = max((abs(score) for score in semantic.values()), default=0.0) or 1.0
    joined: dict[Key, float] = dict.fromkeys(chain(semantic, lexical), 0.0)
    for id, score in semantic.items():
        joined[id] = score / best
    for id, score in lexical.items():
        joined[id] += weight * score / LEXICAL_UNIT
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
