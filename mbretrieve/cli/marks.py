"""Which lines of a hit are marked as its best."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mbretrieve.retriever import Retriever
    from mbretrieve.types import Hit

MARKED = 3


def best_lines(
    retriever: "Retriever", query: str, hits: "Sequence[Hit]", pattern: re.Pattern[str] | None, by_words: bool
) -> list[set[int]]:
    """Return for each hit the lines of its text, from 0, that match best: by the model, or by words alone where it was
    not asked; and those where the regular expression is found."""
    if by_words:
        best = [set(lines_with_words(query, hit.text)) for hit in hits]
    else:
        best = [set(lines) for lines in retriever.highlight(query, hits)]
    if pattern is not None:
        for lines, hit in zip(best, hits, strict=True):
            lines.update(lines_with_match(pattern, hit.text))
    return best


def lines_with_words(query: str, text: str) -> list[int]:
    """Return the lines that hold the most of the query's words, at most three."""
    from mbretrieve.index.words import STOP_WORDS, tokenize

    wanted = set(tokenize(query))
    wanted = wanted - STOP_WORDS or wanted
    counts = {i: len(wanted & set(tokenize(line))) for i, line in enumerate(text.split("\n"))}
    most = max(counts.values())
    return [i for i, count in counts.items() if count and count == most][:MARKED]


def lines_with_match(pattern: re.Pattern[str], text: str) -> list[int]:
    """Return the lines where the first three matches begin."""
    starts = [match.start() for match, _ in zip(pattern.finditer(text), range(MARKED), strict=False)]
    return [text.count("\n", 0, start) for start in starts]
