"""What a search answers: ranked contents become documents, each held against its own row."""

from collections.abc import Collection, Sequence

import numpy as np

from mbretrieve.index.arrays import distinct
from mbretrieve.index.catalogue import Catalogue, Integers, damaged
from mbretrieve.index.reading import check_passing, metadata_of, owners
from mbretrieve.index.records import Match, best_first
from mbretrieve.index.view import Ranked, View
from mbretrieve.types import Where


def matches(
    catalogue: Catalogue, view: View, ranked: list[list[Ranked]], passed: Sequence[Integers | None], k: int
) -> list[list[Match]]:
    """Give ranked contents the ids of their documents, for each query of those that passed (n, 2), and check the stored
    bytes of their rows and vectors."""
    positions = distinct(np.array([one.position for some in ranked for one in some], dtype=np.int64))
    view.check(positions)
    windows = dict(zip(positions.tolist(), view.windows(positions), strict=True))
    # Looked up at once where the same documents passed for all queries: a query's own look-up costs as much.
    together = all(documents is passed[0] for documents in passed)
    ids = owners(catalogue, {one.content for some in ranked for one in some}, passed[0]) if together and passed else {}
    results = []
    for some, documents in zip(ranked, passed, strict=True):
        if not together:
            ids = owners(catalogue, [one.content for one in some], documents)
        found = []
        for one in some:
            window = windows[one.position]
            span = window.start, window.stop
            found += [Match(id, one.score, window.number, span) for id in ids[one.content]]
        results.append(sorted(found, key=best_first)[:k])
    return results


def all_passing(
    catalogue: Catalogue, where: Where | None, ids: Collection[str] | None, results: list[list[Match]]
) -> list[list[Match]]:
    """Return what was found by a filter and a set of ids, all of which passes them by its own row.

    Raises: IndexFormatError.
    """
    found = {match.id for some in results for match in some}
    if where:
        check_passing(catalogue, where, metadata_of(catalogue, found))
    if ids is not None and not found.issubset(ids):
        raise damaged(catalogue.index, "the index of ids was changed")
    return results
