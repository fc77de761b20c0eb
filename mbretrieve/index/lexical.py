"""Search by words: FTS5 ranks texts by BM25, and here they become documents."""

import numpy as np

from mbretrieve.index.catalogue import Catalogue, Integers
from mbretrieve.index.reading import ids_by_key
from mbretrieve.index.records import Match, best_first
from mbretrieve.index.words import match_expression


def search_words(catalogue: Catalogue, query: str, k: int, passing: Integers | None) -> list[Match]:
    """Return the best ``k`` of the documents that share a word with the query, equal scores by id.

    passing: (n, 2) key and content of the documents to rank; None ranks all.
    """
    expression = match_expression(query)
    if expression is None:
        return []
    rows = catalogue.rows("SELECT rowid, -bm25(words) FROM words WHERE words MATCH ?", (expression,))
    contents = np.array([row[0] for row in rows], dtype=np.int64)
    scores = np.array([row[1] for row in rows], dtype=np.float64)
    if passing is not None:
        here = np.isin(contents, passing[:, 1])
        contents, scores = contents[here], scores[here]
    if k < len(scores):  # every content has a document, so the best k documents have the best k contents
        here = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        contents, scores = contents[here], scores[here]
    best = dict(zip(contents.tolist(), scores.tolist(), strict=True))
    pairs = catalogue.to_integers(
        catalogue.rows_among("SELECT key, content FROM documents WHERE content", best), columns=2
    )
    if passing is not None:
        pairs = pairs[np.isin(pairs[:, 0], passing[:, 0])]
    ids = ids_by_key(catalogue, pairs[:, 0].tolist())
    spans: dict[int, tuple[int, int]] = {}
    for content, start, stop in catalogue.rows_among("SELECT content, start, stop FROM windows WHERE content", best):
        before = spans.get(content, (start, stop))
        spans[content] = min(start, before[0]), max(stop, before[1])
    matches = [Match(ids[key], best[content], -1, spans[content]) for key, content in pairs.tolist()]
    return sorted(matches, key=best_first)[:k]
