"""nDCG, MRR, MAP, recall, precision and hit rate at a cut-off, equal to trec_eval's.

All of them need one thing only: at which ranks a query's relevant documents came. `_Judged` holds those for all
queries in flat arrays, and each metric is one formula over it. Conventions, trec_eval's: a document is relevant if its
judgement is positive; gains are linear and a negative judgement counts 0; documents rank by score as float32, ties by
document id descending. Ours: the mean is over the queries of the qrels, so a query that the run lacks scores 0; a query
without a positive judgement has no ideal and is left out, and counted.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.types import Run

Values = NDArray[np.float64]

DEFAULT_METRICS = ("ndcg@10", "mrr@10", "map@100", "recall@10", "recall@100", "precision@10", "hit@10")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one run: by query, rows as in ``queries``, and their means.

    ``unjudged`` counts the queries left out because no judgement of theirs is positive, ``missing`` the judged queries
    that the run lacks and that therefore score 0.
    """

    queries: list[str]
    values: dict[str, Values]
    unjudged: int
    missing: int

    @property
    def means(self) -> dict[str, float]:
        """Each metric's mean over ``queries``; 0 where there are none."""
        return {name: float(values.mean()) if len(values) else 0.0 for name, values in self.values.items()}

    def per_query(self, metric: str) -> dict[str, float]:
        """Return one metric by query id."""
        return dict(zip(self.queries, self.values[metric].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Judged:
    """The ranks of the relevant documents that a run found, and the gains it could have found.

    Found, one row a document (F,), sorted by query, then rank: ``query`` (0..Q-1), ``rank`` (from 1), ``gain``.
    Ideal, one row a relevant document (R,), as a perfect run has them: ``ideal_query``, ``ideal_rank``, ``ideal_gain``.
    """

    query: NDArray[np.int64]
    rank: NDArray[np.int64]
    gain: Values
    ideal_query: NDArray[np.int64]
    ideal_rank: NDArray[np.int64]
    ideal_gain: Values
    size: int

    @property
    def relevant(self) -> Values:
        """How many documents are relevant to each query: (Q,)."""
        return np.bincount(self.ideal_query, minlength=self.size).astype(np.float64)

    def found(self, k: int) -> Values:
        """How many relevant documents each query has in its first ``k``: (Q,)."""
        return np.bincount(self.query[self.rank <= k], minlength=self.size).astype(np.float64)


def evaluate(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> Evaluation:
    """Measure a run against judgements; metrics are named ``ndcg@10``, ``mrr@10``, ``map@100``, ``recall@100``,
    ``precision@10``, ``hit@1``.

    Raises: DataError for an unknown metric or a score that is not a number; ValueError for a cut-off below 1.
    """
    formulas = {name: parse_metric(name) for name in metrics}
    judged = {
        query: relevant
        for query, judgements in qrels.items()
        if (relevant := {document: grade for document, grade in judgements.items() if grade > 0})
    }
    ranks = _collect(run, judged)
    return Evaluation(
        queries=list(judged),
        values={name: formula(ranks, k) for name, (formula, k) in formulas.items()},
        unjudged=len(qrels) - len(judged),
        missing=sum(query not in run for query in judged),
    )


def without_own(run: Mapping[str, Mapping[str, float]]) -> Run:
    """Drop the document that has its query's own id: in ArguAna and Quora the queries are documents of the corpus."""
    return {
        query: {document: score for document, score in scores.items() if document != query}
        for query, scores in run.items()
    }


def agreement(run: Mapping[str, Mapping[str, float]], exact: Mapping[str, Mapping[str, float]], k: int) -> float:
    """The share of exact search's first ``k`` documents that an index has in its own first ``k``, a mean over queries.

    A document that ties with the last of the exact ones is as good as it and counts. Raises: ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k is at least 1, not {k}")
    shares = []
    for query, scores in exact.items():
        if not scores:
            continue
        wanted = min(k, len(scores))
        last = sorted(scores.values(), reverse=True)[wanted - 1]
        good = {document for document, score in scores.items() if score >= last}
        found = run.get(query, {})
        first = sorted(found, key=lambda document: (found[document], document), reverse=True)[:k]
        shares.append(min(wanted, len(good.intersection(first))) / wanted)
    return sum(shares) / len(shares) if shares else 1.0


def _collect(run: Mapping[str, Mapping[str, float]], judged: Mapping[str, Mapping[str, int]]) -> _Judged:
    query: list[int] = []
    rank: list[int] = []
    gain: list[int] = []
    ideal_query: list[int] = []
    ideal_rank: list[int] = []
    ideal_gain: list[int] = []
    for row, (name, relevant) in enumerate(judged.items()):
        ideal_query += [row] * len(relevant)
        ideal_rank += range(1, len(relevant) + 1)
        ideal_gain += sorted(relevant.values(), reverse=True)
        scores = run.get(name)
        if scores:
            found = sorted((place, document) for document, place in _ranks(name, scores, relevant).items())
            query += [row] * len(found)
            rank += [place for place, _ in found]
            gain += [relevant[document] for _, document in found]
    return _Judged(
        query=np.array(query, np.int64),
        rank=np.array(rank, np.int64),
        gain=np.array(gain, np.float64),
        ideal_query=np.array(ideal_query, np.int64),
        ideal_rank=np.array(ideal_rank, np.int64),
        ideal_gain=np.array(ideal_gain, np.float64),
        size=len(judged),
    )


def _ranks(query: str, scores: Mapping[str, float], relevant: Mapping[str, int]) -> dict[str, int]:
    """Return the rank of each relevant document that was found.

    Only their own places are wanted, so the scores are sorted as bare numbers and ids are compared among ties alone:
    sorting (score, id) pairs, as trec_eval does, is most of its time.
    """
    with np.errstate(over="ignore"):  # a score beyond float32 is infinite there, as in trec_eval
        values = np.fromiter(scores.values(), np.float32, len(scores))
    ordered = np.sort(values)
    if np.isnan(ordered[-1]):  # numpy sorts these last
        raise DataError(f"query {query!r} has a score that is not a number: a run needs finite scores")
    found = [document for document in relevant if document in scores]
    with np.errstate(over="ignore"):
        own = np.array([scores[document] for document in found], np.float32)
    below = np.searchsorted(ordered, own, side="left")
    above = len(ordered) - np.searchsorted(ordered, own, side="right")
    ranks = dict(zip(found, (above + 1).tolist(), strict=True))
    tied = [place for place, count in enumerate((len(ordered) - above - below).tolist()) if count > 1]
    if tied:
        ids = list(scores)
        for place in tied:
            document = found[place]
            rivals = np.flatnonzero(values == own[place]).tolist()
            ranks[document] += sum(ids[rival] > document for rival in rivals)
    return ranks


def _ndcg(judged: _Judged, k: int) -> Values:
    """``sum(gain / log2(rank + 1))`` over the ideal ranking's (Järvelin and Kekäläinen 2002; ndcg_cut)."""

    def discounted(query: NDArray[np.int64], rank: NDArray[np.int64], gain: Values) -> Values:
        near = rank <= k
        return np.asarray(np.bincount(query[near], gain[near] / np.log2(rank[near] + 1), judged.size), np.float64)

    ideal = discounted(judged.ideal_query, judged.ideal_rank, judged.ideal_gain)
    return discounted(judged.query, judged.rank, judged.gain) / ideal


def _mrr(judged: _Judged, k: int) -> Values:
    """One over the rank of the first relevant document (Voorhees 1999; recip_rank)."""
    first = np.full(judged.size, np.inf)
    near = judged.rank <= k
    np.minimum.at(first, judged.query[near], judged.rank[near])
    return np.asarray(1.0 / first)


def _map(judged: _Judged, k: int) -> Values:
    """The mean, over all relevant documents, of the precision at their ranks; 0 beyond ``k`` (map_cut)."""
    starts = np.searchsorted(judged.query, judged.query, side="left")
    place = np.arange(len(judged.query)) - starts + 1  # the how-manieth relevant document of its query
    near = judged.rank <= k
    return np.bincount(judged.query[near], (place / judged.rank)[near], judged.size) / judged.relevant


def _recall(judged: _Judged, k: int) -> Values:
    """The share of the relevant documents that is among the first ``k`` (recall)."""
    return judged.found(k) / judged.relevant


def _precision(judged: _Judged, k: int) -> Values:
    """The share of the first ``k`` places that holds a relevant document; an empty place holds none (P)."""
    return judged.found(k) / k


def _hit(judged: _Judged, k: int) -> Values:
    """1 if a relevant document is among the first ``k``, else 0 (success)."""
    return (judged.found(k) > 0).astype(np.float64)


_FORMULAS: dict[str, Callable[[_Judged, int], Values]] = {
    "ndcg": _ndcg,
    "mrr": _mrr,
    "map": _map,
    "recall": _recall,
    "precision": _precision,
    "hit": _hit,
}


def parse_metric(name: str) -> tuple[Callable[[_Judged, int], Values], int]:
    """Return the formula and the cut-off that a name like ``ndcg@10`` stands for."""
    match = re.fullmatch(r"([a-z]+)@(\d+)", name)
    if match is None or match[1] not in _FORMULAS:
        near = difflib.get_close_matches(name.partition("@")[0], _FORMULAS, n=1, cutoff=0.4) or ["ndcg"]
        known = ", ".join(_FORMULAS)
        raise DataError(f"unknown metric {name!r}: did you mean {near[0]}@10? Known, each with @k: {known}")
    if (k := int(match[2])) < 1:
        raise ValueError(f"a cut-off is at least 1, not {k}: {name}")
    return _FORMULAS[match[1]], k
