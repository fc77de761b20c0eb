"""The index for late interaction: many vectors a window, ranked by MaxSim.

While it is small every window is scored. A larger one is packed: inverted lists give the tokens nearest to each token
of a query, the windows that these point to are ranked by what was found of them, and MaxSim over their packed tokens
decides between the best. That order of work is PLAID's (Santhanam et al., CIKM 2022), the estimate XTR's (Lee et al.,
NeurIPS 2023).
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.index import plan
from mbretrieve.index.arrays import distinct, first_of_each
from mbretrieve.index.base import VectorIndex
from mbretrieve.index.catalogue import Integers
from mbretrieve.index.plan import Effort
from mbretrieve.index.records import one_head
from mbretrieve.index.segments import PackedSegment, RawSegment
from mbretrieve.index.view import Found, View
from mbretrieve.types import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from mbretrieve.index.codebooks import Codebook
    from mbretrieve.scoring.native import Laned

BITS = (1, 2, 4, 8)
DEFAULT_BITS = 2
FIRST_SCORED = 96  # of the windows found, whatever the others promise
# A window is thought to score at most what those before it did above their estimates, on average and so many times the
# standard deviation. It spares half of the work; at 12.6 million tokens it cost half a point of recall@10 (.950 to .943
# and .945; 60 questions, 2 bits).
UNLIKELY = 2.5
MOST_TOKENS = 512  # of queries that are looked up together: a row of scores with every centroid is held for each

Floats = NDArray[np.float32]


class MultiVectorIndex(VectorIndex[Floats]):
    """Documents of many vectors, scored by MaxSim; usable alone, with anyone's vectors.

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

    def _query(self, name: str, query: NDArray[Any]) -> Floats:
        return one_head(name, query, self.dim)

    @classmethod
    def _bits(cls, bits: int | None) -> int | None:
        return checked_bits(bits)

    def _score_windows(self, view: View, queries: list[Floats], positions: Integers) -> Floats:
        return score_windows(view, queries, positions)

    def _candidates(
        self,
        view: View,
        queries: list[Floats],
        positions: Integers,
        k: int,
        effort: Effort | None,
        also: Integers | None = None,
    ) -> list[Found]:
        packed, raw = view.by_packing(positions)
        planned = effort or plan.effort(view.packed_tokens, k)
        if not len(packed) or self._is_small(view, packed, queries, planned):
            return [Found(positions, scores) for scores in self._score_windows(view, queries, positions)]
        beside = self._score_windows(view, queries, raw)
        selected = None if len(packed) == view.packed_windows else view.selected(packed)
        found: list[Found] = []
        for first, last in _groups(queries):
            nearest = self._nearest(view, queries[first:last], planned, selected, also)
            for query, scores, (near, is_all) in zip(queries[first:last], beside[first:last], nearest, strict=True):
                one = near.joined(Found(raw, scores))
                # What was asked for is not there although it exists; unless the caller wanted to look no further.
                if (is_all or effort is None) and _lacks(view, one.positions, positions, k):
                    one = Found(positions, self._score_windows(view, [query], positions)[0])
                found.append(one)
        return found

    def _is_small(self, view: View, packed: Integers, queries: list[Floats], effort: Effort) -> bool:
        """Say whether scoring all of these windows is less work than to look for the best of them."""
        if len(packed) == view.packed_windows:
            return False
        lists = min(len(segment.codebook.centroids) for segment in view.segments if isinstance(segment, PackedSegment))
        longest = max(map(len, queries), default=1)
        visited = min(1.0, effort.probes * longest / lists) * view.packed_tokens
        return view.tokens(packed) <= max(visited, plan.RAW_TOKENS)

    def _nearest(
        self,
        view: View,
        queries: list[Floats],
        effort: Effort,
        selected: list[NDArray[np.bool_]] | None,
        also: Integers | None,
    ) -> list[tuple[Found, bool]]:
        """Return for each query the windows in packed segments that look best and those at some other positions, scored
        by MaxSim, and whether what looks best is all that was found."""
        from mbretrieve.index.gather import best_found, candidates

        ends = np.cumsum([0] + [len(query) for query in queries])
        parts: list[tuple[Floats, Integers]] = []
        looks: dict[int, list[_Look]] = {}  # by codebook, which segments share: each query's
        asked: dict[int, tuple[NDArray[Any], ...]] = {}  # and of all queries end to end, what lists are searched by
        for number, segment in enumerate(view.segments):
            if not isinstance(segment, PackedSegment):
                continue
            book = segment.codebook
            if id(book) not in looks:
                looks[id(book)] = of_book = _looks(book, queries, effort.probes)
                asked[id(book)] = tuple(map(np.concatenate, zip(*(look[:3] for look in of_book), strict=True)))
            rotated, probes, coarse = asked[id(book)]
            segment.check_lists(distinct(probes))
            mask = None if selected is None else selected[number]
            scores, rows = segment.lists.search(rotated, probes, coarse, effort.tokens, mask)
            parts.append((scores, view.at(number, rows)))
        scores, at = best_found(parts, effort.tokens)
        found = []
        for query, (first, last) in enumerate(pairwise(ends)):
            ranked, estimates = candidates(scores[first:last], at[first:last], effort.rescore)
            score = _scorer(view, {key: seen[query] for key, seen in looks.items()})
            one = _rescored(view, ranked, estimates, effort.sure, score)
            is_all = len(one.positions) == len(ranked) < effort.rescore
            missing = one.without(None if also is None else view.by_packing(also)[0])
            found.append((one.joined(Found(missing, score(missing))), is_all))
        return found


class _Look(NamedTuple):
    """What a query sees of a codebook: itself rotated (n, padded), of its products with all centroids the largest, the
    lists' numbers and the products (n, p), and all of them: (n, L), or as the kernel has them."""

    rotated: Floats
    probes: Integers
    coarse: Floats
    products: "Floats | Laned"


def _looks(codebook: "Codebook", queries: list[Floats], probes: int) -> list[_Look]:
    """Return what each query sees of a codebook."""
    from mbretrieve.scoring.native import look

    rotated, count = [codebook.rotate(query) for query in queries], min(probes, len(codebook.centroids))
    seen = []
    for query in rotated:
        if (found := look(query, codebook.centroids, count)) is None:
            break
        laned, numbers, largest = found
        seen.append(_Look(query, numbers, largest, laned))
    if len(seen) == len(rotated):
        return seen
    # All at once: the centroids are then read once.
    ends = np.cumsum([len(query) for query in rotated])[:-1]
    products, numbers, largest = codebook.nearest_lists(np.concatenate(rotated), count)
    return [
        _Look(*of_query)
        for of_query in zip(
            rotated, np.split(numbers, ends), np.split(largest, ends), np.split(products, ends), strict=True
        )
    ]


def _scorer(view: View, looks: dict[int, _Look]) -> Callable[[Integers], Floats]:
    """Return what scores the windows at some positions, rising, by MaxSim for the query of these looks, by codebook."""
    scorers: dict[int, Callable[[Integers], Floats]] = {}  # by segment: it has tables for the query

    def score(positions: Integers) -> Floats:
        out = np.empty(len(positions), dtype=np.float32)
        for segment, some, rows in view.by_segment(positions):
            assert isinstance(segment, PackedSegment)  # in whose lists they were found
            segment.check_rows(rows)
            if id(segment) not in scorers:
                scorers[id(segment)] = _looked_scorer(segment, looks[id(segment.codebook)])
            out[some] = scorers[id(segment)](rows)
        return out

    return score


def _looked_scorer(segment: PackedSegment, look: _Look) -> Callable[[Integers], Floats]:
    """Return what scores rows (R,) by their codes for one query: (R,)."""
    products = look.products
    if not isinstance(products, np.ndarray):
        from mbretrieve.scoring.native import native_scorer

        if (by_kernel := native_scorer(products, segment.compressed, segment.offsets)) is not None:
            return by_kernel
        products = products.by_token()
    score = _packed_scorer(segment, [look.rotated], products)
    return lambda rows: score(rows)[0]


def _rescored(view: View, ranked: Integers, estimates: Floats, k: int, score: Callable[[Integers], Floats]) -> Found:
    """Score windows, best estimates first, until what is left is not likely to be among the best ``k`` contents; all of
    them for k = 0."""
    scores, done = np.empty(len(ranked), dtype=np.float32), 0
    found = Found(ranked[:0], scores[:0])
    while done < len(ranked):
        last = min(len(ranked), max(FIRST_SCORED, 2 * k, 2 * done)) if k else len(ranked)
        order = done + np.argsort(ranked[done:last])
        scores[order] = score(ranked[order])
        done = last
        by_position = np.argsort(ranked[:done])
        found = Found(ranked[by_position], scores[by_position])
        if done < len(ranked):
            above = scores[:done] - estimates[:done]
            if estimates[done] + above.mean() + UNLIKELY * above.std() < view.score_of(found, k):
                break
    return found


def checked_bits(bits: int | None) -> int:
    """Return how many bits a dimension of a packed token's vector is to have. Raises: DataError if it cannot."""
    if bits is not None and bits not in BITS:
        raise DataError(f"{bits} bits a dimension were asked for; {', '.join(map(str, BITS))} can be had")
    return bits or DEFAULT_BITS


def score_windows(view: View, queries: list[Floats], positions: Integers) -> Floats:
    """Score windows (P,) for each query (tokens, dim) by MaxSim over their tokens as they are kept: (Q, P)."""
    out = np.empty((len(queries), len(positions)), dtype=np.float32)
    for segment, some, rows in view.by_segment(positions):
        segment.check_rows(rows)
        if isinstance(segment, RawSegment):
            out[:, some] = _raw_scores(segment, queries, rows)
        else:
            rotated = [segment.codebook.rotate(query) for query in queries]
            out[:, some] = _packed_scorer(segment, rotated)(rows)
    return out


def _raw_scores(segment: RawSegment, queries: list[Floats], rows: Integers) -> Floats:
    # Here, not above: status and search by words do without torch.
    from mbretrieve import scoring

    if scoring.spares_torch():
        return np.stack([scoring.maxsim_rows(query, segment.vectors, segment.offsets, rows) for query in queries])
    import torch

    tensors = [torch.from_numpy(query) for query in queries]
    vectors, offsets = _tensor(segment.vectors), _tensor(segment.offsets)
    scores: Floats = scoring.maxsim_ragged_batch(tensors, vectors, offsets, rows).numpy()
    return scores


def _packed_scorer(
    segment: PackedSegment, rotated: list[Floats], products: Floats | None = None
) -> Callable[[Integers], Floats]:
    """Return what scores rows by their codes, (Q, R); products (n, L): all query tokens' with the centroids, if already
    known."""
    from mbretrieve import scoring

    tokens = segment.compressed
    if scoring.spares_torch():
        ends = np.cumsum([len(query) for query in rotated])[:-1]
        coarse = [None] * len(rotated) if products is None else np.split(products, ends)
        each = [
            scoring.codes_scorer(query, tokens, segment.offsets, of) for query, of in zip(rotated, coarse, strict=True)
        ]
        return lambda rows: np.stack([score(rows) for score in each])
    import torch

    score = scoring.compressed_scorer(
        [torch.from_numpy(query) for query in rotated],
        tokens,
        _tensor(segment.offsets),
        None if products is None else torch.from_numpy(products),
    )
    return lambda rows: score(rows).numpy()


def _tensor(array: NDArray[Any]) -> "Tensor":
    import torch

    with warnings.catch_warnings():
        # torch warns of arrays that cannot be written. Mapped copy-on-write they could be, but the kernel would then
        # count a segment as memory, and refuse one larger than there is.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _groups(queries: list[Floats]) -> list[tuple[int, int]]:
    """Cut queries into runs [first, last) of at most MOST_TOKENS tokens; a longer query is a run of its own."""
    runs, first, held = [], 0, 0
    for i, query in enumerate(queries):
        if i > first and held + len(query) > MOST_TOKENS:
            runs.append((first, i))
            first, held = i, 0
        held += len(query)
    return [*runs, (first, len(queries))] if queries else []


def _lacks(view: View, found: Integers, positions: Integers, k: int) -> bool:
    """Say whether the windows found are of fewer than ``k`` contents, though all windows are of more."""
    if len(found) == len(positions) or (contents := _count(view, found)) >= k:
        return False
    return contents < _count(view, positions)


def _count(view: View, positions: Integers) -> int:
    return int(first_of_each(view.contents(positions)).sum())
