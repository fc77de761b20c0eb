"""Search by words: BM25 over the inverted index, and the best texts become documents."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.arrays import best_of
from mbretrieve.index.catalogue import Catalogue, Integers
from mbretrieve.index.postings import K1, Lengths, Postings, completions, count_contents, read_lengths, read_postings
from mbretrieve.index.reading import owners, spans
from mbretrieve.index.records import Match
from mbretrieve.index.words import is_beginning, query_words

LEAST_WEIGHT = 1e-6  # of a word that half of the contents have: it says next to nothing, but not that they do not match


class Limits(NamedTuple):
    """What bounds the work of a query. Within them the ranking is BM25 over every content that has any of the words.

    completed: a word that more contents have is not completed, for what begins with it would add little and is most to
    read: a content that has only such longer words is lost, and others lose what these would add. completions: a word
    is completed by so many, those that most contents have. postings: once as many were read and k documents are found,
    the commoner words are left out: they say least. What this loses is measured (`eval/bench/lexical.py`).
    """

    completed: int = 1 << 14
    completions: int = 128
    postings: int = 1 << 20


class Term(NamedTuple):
    """A word of a query, the longer words that complete it, and how many postings all of them have."""

    word: str
    longer: list[str]
    postings: int


LIMITS = Limits()


def search_words(
    catalogue: Catalogue, query: str, k: int, passing: Integers | None, limits: Limits = LIMITS
) -> list[Match]:
    """Return the best ``k`` of the documents that share a word with the query, equal scores by id.

    passing: (n, 2) key and content of the documents to rank; None ranks all.
    """
    contents, scores = search_contents(catalogue, query, k, passing, limits)
    best = best_of(scores, k)  # every content has a document: the best k documents have the best k contents
    return _documents(catalogue, dict(zip(contents[best].tolist(), scores[best].tolist(), strict=True)), k, passing)


def search_contents(
    catalogue: Catalogue, query: str, k: int, passing: Integers | None, limits: Limits = LIMITS
) -> tuple[Integers, NDArray[np.float64]]:
    """Return the contents that share a word with the query, rising, and their scores; where they are many, at least
    ``k`` of them. passing: as for ``search_words``."""
    terms = plan(catalogue, query_words(query), limits)
    scores = score(catalogue, terms, k, None if passing is None else passing[:, 1], limits.postings)
    contents = np.flatnonzero(scores > 0)
    return contents, scores[contents]


def plan(catalogue: Catalogue, words: Sequence[str], limits: Limits) -> list[Term]:
    """Return what is searched for words, rarest first."""
    counts = count_contents(catalogue, words)
    terms = []
    for word in words:
        having = counts.get(word, 0)
        longer: dict[str, int] = {}
        if is_beginning(word) and having <= limits.completed:
            longer = completions(catalogue, word, limits.completions)
        if having or longer:
            terms.append(Term(word, list(longer), having + sum(longer.values())))
    return sorted(terms, key=lambda term: term.postings)


def score(
    catalogue: Catalogue, terms: Sequence[Term], k: int, passing: Integers | None, most: int
) -> NDArray[np.float64]:
    """Return the score of every content, (n,) by key; 0 for one that has none of the terms or is not in ``passing``.

    A word adds twice, for itself and for all that begins with it: so it weighs more than a completion of it.
    Terms come rarest first, and those that would make it more than ``most`` postings are read only for want of ``k``
    contents.
    """
    lengths = read_lengths(catalogue)
    scores = np.zeros(len(lengths.words))
    if passing is not None:
        passing = passing[passing < len(scores)]  # what is beyond has no words
    read = 0
    for term in terms:
        if read + term.postings > most and _found(scores, passing) >= k:
            break
        read += term.postings
        whole, beginning = read_postings(catalogue, term.word, term.longer)
        add_bm25(scores, whole, lengths)
        if is_beginning(term.word):
            add_bm25(scores, beginning, lengths)
    if passing is not None:
        others = np.ones(len(scores), dtype=np.bool_)
        others[passing] = False
        scores[others] = 0.0
    return scores


def add_bm25(scores: NDArray[np.float64], postings: Postings, lengths: Lengths) -> None:
    """Add to the scores (n,) of contents what a term with these postings gives them.

    ``idf * count * (k1 + 1) / (count + norm)`` with ``idf = ln((texts - n + 0.5) / (n + 0.5))``: Robertson and
    Zaragoza, The Probabilistic Relevance Framework, 2009; norm is ``k1 * (1 - b + b * length / average length)``.
    """
    last = int(np.searchsorted(postings.contents, len(lengths.words)))
    contents, counts = postings.contents[:last], postings.counts[:last]
    live = lengths.words[contents] > 0  # what was deleted has no length, and may lie beyond all that have one
    if not live.all():
        contents, counts = contents[live], counts[live]
    having = len(contents)
    weight = max(LEAST_WEIGHT, math.log((lengths.texts - having + 0.5) / (having + 0.5)))
    scores[contents] += counts * (weight * (K1 + 1)) / (counts + lengths.norms[contents])


def _found(scores: NDArray[np.float64], passing: Integers | None) -> int:
    return int(np.count_nonzero(scores if passing is None else scores[passing]))


def _documents(catalogue: Catalogue, best: dict[int, float], k: int, passing: Integers | None) -> list[Match]:
    """Return the best ``k`` documents of some contents with their scores."""
    ids = owners(catalogue, best, passing)
    found = sorted(
        ((score, id, key) for key, score in best.items() for id in ids[key]), key=lambda one: (-one[0], one[1])
    )
    of = spans(catalogue, {key for *_, key in found[:k]})
    return [Match(id, score, -1, of[key]) for score, id, key in found[:k]]
