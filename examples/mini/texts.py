"""What several of these steps read: the texts of pairs, and how often each token comes in them."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbretrieve.jsonl import read_lines, read_objects
from mbretrieve.models.tokenizer import Tokenizer

_AT_ONCE = 4096  # texts
_MOST_CHARS = 1000  # of a text: its beginning is what the model will see the most of


def read_texts(files: Sequence[Path], pairs: int) -> Iterator[str]:
    """Yield the queries and positives of at most ``pairs`` pairs, as many of each file, spread over it."""
    for path in files:
        total = sum(1 for _ in read_lines(path))
        every = max(1, total * len(files) // pairs)
        for _, row in islice(read_objects(path), 0, None, every):
            yield row["query"]
            yield row["positive"][:_MOST_CHARS]


def token_counts(tokenizer: Tokenizer, texts: Iterator[str]) -> NDArray[np.int64]:
    """Count each token in texts, special ones around them not counted: (vocabulary,) int64."""
    counts = np.zeros(tokenizer.size, np.int64)
    while batch := list(islice(texts, _AT_ONCE)):
        ids = [token for content in tokenizer.first_tokens(batch, _MOST_CHARS) for token in content.ids]
        counts += np.bincount(ids, minlength=len(counts))
    return counts
