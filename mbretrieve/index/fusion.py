"""Joining two rankings of one query into one. A ranking is a mapping of document ids to scores."""

from collections.abc import Mapping


def weighted_sum(semantic: Mapping[str, float], lexical: Mapping[str, float], weight: float) -> dict[str, float]:
    """Add two scores after each was divided by the best of its ranking: ``s / max|s| + weight * l / max|l|``.

    A document missing from one ranking has 0 there. Dividing keeps the distances between a ranking's scores, and a
    document's zero stays a zero, where stretching to [0, 1] would make the last of every ranking worthless.
    """
    joined = dict.fromkeys([*semantic, *lexical], 0.0)
    for scores, factor in ((semantic, 1.0), (lexical, weight)):
        best = max((abs(score) for score in scores.values()), default=0.0)
        if best > 0:
            for id, score in scores.items():
                joined[id] += factor * score / best
    return joined


def reciprocal_rank_fusion(
    semantic: Mapping[str, float], lexical: Mapping[str, float], weight: float, *, k: int = 60
) -> dict[str, float]:
    """Add ``1 / (k + rank by meaning) + weight / (k + rank by words)``, with ranks from 1, equal scores ranked by id.

    Cormack, Clarke and Büttcher, SIGIR 2009, where k is 60. A document missing from a ranking gets nothing from it.
    """
    joined = dict.fromkeys([*semantic, *lexical], 0.0)
    for scores, factor in ((semantic, 1.0), (lexical, weight)):
        for rank, id in enumerate(sorted(scores, key=lambda id: (-scores[id], id)), start=1):
            joined[id] += factor / (k + rank)
    return joined
