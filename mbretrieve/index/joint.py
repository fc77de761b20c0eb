"""The index for a joint model: a window is fetched by its one dense vector, and ranked by its tokens'.

The dense vectors find the documents that are worth a look, as in a dense index; MaxSim over these documents' tokens,
kept as in an index of late interaction, decides. So a search costs what its depth does, and hardly more where there
are more documents.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index import plan
from mbretrieve.index.arrays import distinct, to_array
from mbretrieve.index.base import VectorIndex
from mbretrieve.index.catalogue import Integers
from mbretrieve.index.dense import nearest_windows
from mbretrieve.index.multivector import checked_bits, score_windows
from mbretrieve.index.plan import Effort
from mbretrieve.index.records import both_heads
from mbretrieve.index.view import Found, View
from mbretrieve.types import JointVectors, Kind


class JointIndex(VectorIndex[JointVectors]):
    """Documents of many vectors and one dense vector a window; usable alone, with anyone's vectors.

    >>> index = JointIndex.create("my.index", dim=2, pooled_dim=3)
    >>> [x, y, z] = np.eye(3)
    >>> index.add(["a", "b"], [JointVectors(np.eye(2), x), JointVectors(np.array([[1.0, 0.0]]), y)])
    >>> query = JointVectors(np.eye(2), y)
    >>> [(match.id, match.score) for match in index.search([query], k=2)[0]]
    [('a', 2.0), ('b', 1.0)]
    >>> only_one = Effort(probes=1, tokens=1, rescore=1)
    >>> [(match.id, match.score) for match in index.search([query], k=2, effort=only_one)[0]]
    [('b', 1.0)]
    """

    kind: ClassVar[Kind] = "joint"

    def effort(self, k: int) -> Effort:
        """Return how far ``search`` goes for the best ``k`` documents if it is not told."""
        _, view = self._snapshot()
        return _planned(view, k)

    def _query(self, name: str, query: NDArray[Any] | JointVectors) -> JointVectors:
        return both_heads(name, query, self.dim, self._catalogue.layout.pooled_dim)

    @classmethod
    def _bits(cls, bits: int | None) -> int | None:
        return checked_bits(bits)

    def _score_windows(self, view: View, queries: list[JointVectors], positions: Integers) -> NDArray[np.float32]:
        return score_windows(view, [query.tokens for query in queries], positions)

    def _candidates(
        self,
        view: View,
        queries: list[JointVectors],
        positions: Integers,
        k: int,
        effort: Effort | None,
        also: Integers | None = None,
    ) -> list[Found]:
        planned = effort or _planned(view, k)
        if len(positions) <= planned.rescore:
            return [Found(positions, scores) for scores in self._score_windows(view, queries, positions)]
        stacked = np.stack([query.pooled for query in queries])
        nearest = nearest_windows(view, stacked, positions, planned.rescore, planned)
        found = []
        for query, near in zip(queries, nearest, strict=True):
            fetched = to_array([one.content for one in view.best(near, planned.rescore)])
            theirs = view.positions(fetched)
            if also is not None:
                theirs = distinct(np.concatenate([theirs, also]))
            found.append(Found(theirs, self._score_windows(view, [query], theirs)[0]))
        return found


def _planned(view: View, k: int) -> Effort:
    return plan.joint_effort(max((segment.record.rows for segment in view.segments), default=0), k)
