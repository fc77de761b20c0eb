"""The index for late interaction: many vectors a window, ranked by exact MaxSim over memory-mapped tokens."""

import warnings
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.base import VectorIndex
from mbretrieve.index.catalogue import Integers
from mbretrieve.index.view import Found, View
from mbretrieve.types import Kind


class MultiVectorIndex(VectorIndex):
    """Documents of many vectors, kept as float16, scored by MaxSim; usable alone, with anyone's vectors.

    >>> index = MultiVectorIndex.create("my.index", dim=2)
    >>> index.add(["a", "b"], [np.eye(2), np.array([[1.0, 0.0]])], [{"lang": "en"}, {"lang": "fr"}])
    >>> [(match.id, match.score) for match in index.search([np.eye(2)], k=2)[0]]
    [('a', 2.0), ('b', 1.0)]
    >>> [match.id for match in index.search([np.eye(2)], k=2, where={"lang": "fr"})[0]]
    ['b']
    >>> index.delete(["b"])
    1
    """

    kind: ClassVar[Kind] = "colbert"

    def _one_window(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(rows)

    def _score_windows(
        self, view: View, queries: list[NDArray[np.float32]], positions: Integers
    ) -> NDArray[np.float32]:
        # Here, not above: status and search by words do without torch.
        import torch

        from mbretrieve.scoring import maxsim_ragged_batch

        out = np.empty((len(queries), len(positions)), dtype=np.float32)
        tensors = [torch.from_numpy(query) for query in queries]
        for segment, some, rows in view.by_segment(positions):
            with warnings.catch_warnings():
                # torch warns of arrays that cannot be written. Mapped copy-on-write they could be, but the kernel would
                # then count a segment as memory, and refuse one larger than there is.
                warnings.simplefilter("ignore", UserWarning)
                tokens, offsets = torch.from_numpy(segment.vectors), torch.from_numpy(segment.offsets)
            out[:, some] = maxsim_ragged_batch(tensors, tokens, offsets, rows).numpy()
        return out

    def _candidates(
        self,
        view: View,
        queries: list[NDArray[np.float32]],
        positions: Integers,
        k: int,  # noqa: ARG002 - exact search by MaxSim has to score every window whatever k
    ) -> list[Found]:
        return [Found(positions, scores) for scores in self._score_windows(view, queries, positions)]
