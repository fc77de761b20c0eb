"""Which lines of a text have to do with a query: from the vectors of its tokens, or of its lines."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mbretrieve.types import FloatArray


def line_shares(question: FloatArray, rows: FloatArray, spans: NDArray[np.int64], text: str) -> FloatArray:
    """Score each line of a text by its share in the match: (lines,) float32, none below 0.

    Each token of ``question`` (t, dim) gives its similarity to the line that holds the row (n, dim) nearest to it;
    ``spans`` (n, 2) are the rows' characters, empty for what is not of the text.
    """
    real = np.flatnonzero(spans[:, 1] > spans[:, 0])  # not the markers
    of_lines = np.zeros(text.count("\n") + 1, dtype=np.float32)
    if len(real):
        breaks = np.array([at for at, character in enumerate(text) if character == "\n"], dtype=np.int64)
        similarities = question @ rows[real].T  # (query tokens, tokens)
        nearest = spans[real[similarities.argmax(axis=1)], 0]
        np.add.at(of_lines, np.searchsorted(breaks, nearest), similarities.max(axis=1).clip(min=0))
    return of_lines


def line_gains(question: FloatArray, texts: Sequence[str], lines: FloatArray) -> list[FloatArray]:
    """Score each line of each text by how much nearer to the query it is than the text's lines are on average: one
    (lines,) float32 array a text, none below 0, 0 for a blank line.

    Shapes: question (dim,), lines (all lines of all texts, dim).
    """
    parted = [text.split("\n") for text in texts]
    ends = np.cumsum([len(of_text) for of_text in parted])[:-1]
    scores = []
    for of_text, found in zip(parted, np.split(lines @ question, ends), strict=True):
        blank = np.array([not line.strip() for line in of_text])
        mean = found[~blank].mean() if len(found[~blank]) > 1 else np.float32(0)
        scores.append(np.where(blank, np.float32(0), (found - mean).clip(min=0)))
    return scores
