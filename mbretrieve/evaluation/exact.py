"""Exact search without an index: every query against every vector, a bounded number of documents at a time.

What an index finds is measured against this. It takes the vectors as the model made them, in float32, and shares
nothing with an index's way to its answer but the formula.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mbretrieve.types import FloatArray, Head

Ranking = list[tuple[str, float]]
"""Document ids and their scores, best first."""


class Group(NamedTuple):
    """Some documents: their ids, and for each its windows' vectors, (tokens, dim) float32 each."""

    ids: Sequence[str]
    windows: Sequence[Sequence[FloatArray]]


def search(
    head: Head,
    queries: Sequence[FloatArray],
    groups: Iterable[Group],
    k: int,
    among: Sequence[Collection[str]] | None = None,
) -> list[Ranking]:
    """Return for each query, (tokens, dim) float32, the best ``k`` of all documents; equal scores by id.

    A document scores as its best window. among: for each query the ids that are ranked, all if None. The groups are
    read one at a time. Raises: ValueError for k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 was expected")
    best: list[Ranking] = [[] for _ in queries]
    for ids, windows in groups:
        scores = _SCORES[head](queries, [rows for of_document in windows for rows in of_document])  # (Q, W)
        starts = np.cumsum([0] + [len(of_document) for of_document in windows[:-1]])
        of_documents = np.maximum.reduceat(scores, starts, axis=1)  # (Q, D)
        for query, row in enumerate(of_documents):
            if among is not None:
                row[[id not in among[query] for id in ids]] = -np.inf
            # All that tie with the k-th stay until ids have been compared.
            cut = np.partition(row, len(row) - k)[len(row) - k] if k < len(row) else -np.inf
            found = [(ids[at], float(row[at])) for at in np.flatnonzero((row >= cut) & (row > -np.inf)).tolist()]
            best[query] = sorted(best[query] + found, key=lambda pair: (-pair[1], pair[0]))[:k]
    return best


def grouped(documents: Iterable[tuple[str, Sequence[FloatArray]]], rows: int = 1 << 17) -> Iterator[Group]:
    """Gather documents, an id and its windows' vectors each, into groups of about so many vectors."""
    ids: list[str] = []
    windows: list[Sequence[FloatArray]] = []
    held = 0
    for id, of_document in documents:
        ids.append(id)
        windows.append(of_document)
        held += sum(map(len, of_document))
        if held >= rows:
            yield Group(ids, windows)
            ids, windows, held = [], [], 0
    if ids:
        yield Group(ids, windows)


def _maxsim(queries: Sequence[FloatArray], windows: Sequence[FloatArray]) -> FloatArray:
    # torch is imported where scores are computed: `mbretrieve eval --model bm25` does without it.
    import torch

    from mbretrieve.scoring import maxsim_ragged_batch

    offsets = torch.from_numpy(np.cumsum([0] + [len(rows) for rows in windows]))
    tokens = torch.from_numpy(np.concatenate(windows))
    scores: FloatArray = maxsim_ragged_batch([torch.from_numpy(query) for query in queries], tokens, offsets).numpy()
    return scores


def _cosine(queries: Sequence[FloatArray], windows: Sequence[FloatArray]) -> FloatArray:
    import torch

    from mbretrieve.scoring import cosine

    scores: FloatArray = cosine(
        torch.from_numpy(np.concatenate(queries)), torch.from_numpy(np.concatenate(windows))
    ).numpy()
    return scores


_SCORES: dict[Head, Callable[[Sequence[FloatArray], Sequence[FloatArray]], FloatArray]] = {
    "colbert": _maxsim,
    "dense": _cosine,
}
