"""One example of training, and the columns that a batch of examples has as a score matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Example:
    """A query, a text that answers it and texts that do not; prompts of their source in front.

    ``scores`` are a teacher's: the positive's first, then one for each negative. ``vectors`` are a teacher's too, the
    query's and the positive's, (2, dim) float32.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    source: str = ""
    vectors: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


def documents(batch: Sequence[Example]) -> list[str]:
    """Return a batch's D documents, the columns of its score matrix: each example's positive, then its negatives.

    Example by example, so that the documents of the processes' shares, one after the other, are those of the batch.
    """
    return [text for example in batch for text in (example.positive, *example.negatives)]


def positives(batch: Sequence[Example]) -> NDArray[np.int64]:
    """Return each example's column in ``documents``: (B,) int64; its negatives are in the columns behind it."""
    widths = np.array([1 + len(example.negatives) for example in batch], np.int64)
    return np.cumsum(widths) - widths


def duplicates(batch: Sequence[Example]) -> NDArray[np.bool_]:
    """Say which columns are no negatives of an example though they are not its positive's own: (B, D) bool.

    A column is none if its text is the example's positive, or if it is the positive of the same query asked again.
    """
    own = positives(batch)
    texts = _numbered(documents(batch))
    queries = _numbered([example.query for example in batch])
    excluded: NDArray[np.bool_] = texts[own][:, None] == texts[None, :]
    excluded[:, own] |= queries[:, None] == queries[None, :]
    excluded[np.arange(len(batch)), own] = False
    return excluded


def shard(batch: Sequence[Item], rank: int, ranks: int) -> Sequence[Item]:
    """Return the share of one of ``ranks`` processes: one after the other they are the batch; sizes differ by 1.

    Raises: ValueError if the batch has fewer examples than there are processes.
    """
    if not 0 <= rank < ranks or len(batch) < ranks:
        raise ValueError(f"a batch of {len(batch)} has no share for process {rank} of {ranks}")
    return batch[len(batch) * rank // ranks : len(batch) * (rank + 1) // ranks]


def _numbered(texts: Sequence[str]) -> NDArray[np.int64]:
    """Number texts so that equal ones, and only they, have equal numbers."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
