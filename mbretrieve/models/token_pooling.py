"""Fewer rows a document: like token vectors are merged by hierarchical clustering, as in PyLate."""

import numpy as np
from numpy.typing import NDArray

from mbretrieve.types import FloatArray

PROTECTED = 1
"""The first row, the special token that stands for the whole text, is never merged."""


def pool_rows(rows: FloatArray, pool_factor: float, normalize: bool) -> FloatArray:
    """Merge the rows of a document, but the first, to a ``pool_factor``-th of their number, each cluster to its mean.

    Shapes: (tokens, dim) float32 -> (1 + max((tokens - 1) // pool_factor, 1), dim) float32, fewer where distances tie.
    Ward clusters of the cosine distances of unit rows (https://arxiv.org/abs/2409.14683), in the order of their first
    rows; ``normalize`` scales the means to unit length. Memory: 8 bytes a pair of tokens.
    """
    loose = rows[PROTECTED:]
    clusters = max(int(len(loose) // pool_factor), 1)
    if clusters >= len(loose):
        return rows
    labels = ward_clusters(np.clip(1.0 - loose @ loose.T, 0.0, 2.0), clusters)
    sums = np.zeros((int(labels.max()) + 1, rows.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, loose)
    means = sums / np.bincount(labels)[:, None].astype(np.float32)
    if normalize:
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.concatenate([rows[:PROTECTED], means])


def ward_clusters(distances: NDArray[np.floating], clusters: int) -> NDArray[np.int64]:
    """Cut Ward's hierarchy of n points, given their distances (n, n), to at most ``clusters`` clusters.

    Returns each point's cluster, (n,) int64, numbered by first appearance. Merges of equal height are made together, so
    that ties may leave fewer clusters. Nearest-neighbour chains (https://arxiv.org/abs/1109.2378), O(n^2).
    """
    count = len(distances)
    squared = np.square(distances, dtype=np.float64)  # (n, n)
    np.fill_diagonal(squared, np.inf)
    sizes = np.ones(count)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < count - 1:
        if not chain:
            chain.append(int(np.argmax(sizes > 0)))
        near = squared[chain[-1]]
        best = int(near.argmin())
        # On a tie the chain turns back, or it would never end.
        if len(chain) > 1 and near[chain[-2]] <= near[best]:
            best = chain[-2]
            a, b = chain.pop(), chain.pop()
            merges.append((float(near[best]), a, b))
            _merge(squared, sizes, a, b)
        else:
            chain.append(best)
    return _cut(merges, count, clusters)


def _merge(squared: NDArray[np.float64], sizes: NDArray[np.float64], a: int, b: int) -> None:
    """Put the union of clusters a and b in b's place, by the Lance-Williams update of Ward's distance.

    ``d(k, ab)^2 = ((n_k + n_a) d(k, a)^2 + (n_k + n_b) d(k, b)^2 - n_k d(a, b)^2) / (n_k + n_a + n_b)``
    """
    total = sizes + sizes[a] + sizes[b]
    between = squared[a, b]
    with np.errstate(invalid="ignore"):  # inf - inf, at points that are merged away
        row = ((sizes + sizes[a]) * squared[a] + (sizes + sizes[b]) * squared[b] - sizes * between) / total
    sizes[b] += sizes[a]
    sizes[a] = 0
    row[(sizes == 0)] = np.inf
    row[b] = np.inf
    squared[b], squared[:, b] = row, row
    squared[a], squared[:, a] = np.inf, np.inf


def _cut(merges: list[tuple[float, int, int]], count: int, clusters: int) -> NDArray[np.int64]:
    """Make the lowest merges, down to ``clusters`` clusters, and number what is left by first appearance."""
    parents = np.arange(count)

    def root(point: int) -> int:
        while parents[point] != point:
            parents[point] = parents[parents[point]]
            point = int(parents[point])
        return point

    heights = sorted(height for height, _, _ in merges)
    needed = count - clusters
    for height, a, b in merges:
        if needed > 0 and height <= heights[needed - 1]:
            parents[root(a)] = root(b)
    roots = [root(point) for point in range(count)]
    numbers = {point: number for number, point in enumerate(dict.fromkeys(roots))}
    return np.array([numbers[point] for point in roots], dtype=np.int64)
