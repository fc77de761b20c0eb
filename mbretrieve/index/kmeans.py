"""The nearest of many centroids to each of many vectors, and the k-means that places the centroids."""

import numpy as np
import torch
from numpy.typing import NDArray

# A block's products with all centroids are read again for their maxima: they must stay in cache, while a block of too
# few rows leaves the matrix unit idle. Measured best at 4096 centroids: 512 to 1024 rows, 4 to 8 MiB of bfloat16.
BLOCK_ROWS = 1024
BLOCK_PRODUCTS = 8 * 1024 * 1024


def nearest(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return for each vector the centroid at the least Euclidean distance: the largest ``x @ c - |c|^2 / 2``.

    Shapes: vectors (n, dim), centroids (L, dim) -> (n,). Where the processor multiplies bfloat16 the products are
    rounded to 8 bits, so that of centroids almost equally near the second nearest may be returned; elsewhere float32.
    """
    out = np.empty(len(vectors), dtype=np.int32)
    enough = 1 << max(0, len(vectors) - 1).bit_length()  # a power of two, so that there are few shapes
    rows = min(BLOCK_ROWS, max(64, BLOCK_PRODUCTS // len(centroids)), enough)
    columns = _Columns(centroids, rows)
    for first in range(0, len(vectors), rows):
        out[first : first + rows] = columns.nearest(torch.from_numpy(vectors[first : first + rows]))
    return out


def train_centroids(
    sample: NDArray[np.float32], count: int, iterations: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Place centroids by Lloyd's iterations (IEEE Transactions on Information Theory, 1982), starting from tokens
    drawn without replacement; a centroid to which no token is nearest is moved to a token drawn at random.

    Shapes: sample (n, dim) -> (min(count, n), dim). Deterministic for a state of ``random``.
    """
    count = min(count, len(sample))
    centroids = sample[random.choice(len(sample), count, replace=False)]
    for _ in range(iterations):
        assignments = nearest(sample, centroids)
        sizes = np.bincount(assignments, minlength=count)
        centroids = _means(sample, assignments, sizes)
        empty = np.flatnonzero(sizes == 0)
        centroids[empty] = sample[random.choice(len(sample), len(empty), replace=False)]
    return centroids


class _Columns:
    """Centroids laid out as the columns of a matrix product, with ``-|c|^2 / 2`` as one more row; up to ``rows``
    vectors at a time, in memory used again, are multiplied by them.

    It is always a product of ``rows`` rows: oneDNN keeps a kernel of about 1 MiB for each of the last thousand shapes.
    """

    def __init__(self, centroids: NDArray[np.float32], rows: int) -> None:
        self._narrow = _multiplies_bfloat16()
        # From every product `x @ mean` is left out, which changes no maximum but brings the best products near zero,
        # where bfloat16 is finest.
        mean = centroids.mean(axis=0, dtype=np.float64)
        half = -(np.square(centroids, dtype=np.float64).sum(axis=1) - mean @ mean) / 2
        columns = np.concatenate([(centroids - mean).T, half[None]])
        self._exact = torch.from_numpy(columns.astype(np.float32))  # (dim + 1, L)
        if self._narrow:
            rounded = self._exact.bfloat16()
            # |c|^2 as the sum of two bfloat16: its error would move the border between two cells for every vector.
            rest = (self._exact[-1] - rounded[-1].float()).bfloat16()
            self._columns = torch.cat([rounded, rest[None]])  # (dim + 2, L)
            self._rows = torch.ones((rows, len(self._columns)), dtype=torch.bfloat16)
            self._products = torch.empty((rows, len(centroids)), dtype=torch.bfloat16)

    def nearest(self, vectors: torch.Tensor) -> NDArray[np.int64]:
        if not self._narrow:
            return self._by_float32(vectors)
        self._rows[: len(vectors), :-2] = vectors
        torch.mm(self._rows, self._columns, out=self._products)
        # Not negative, bfloat16 are ordered as their bits are, and the maximum of int16 takes a sixth of the time.
        bits: NDArray[np.int16] = self._products[: len(vectors)].view(torch.int16).numpy()
        best: NDArray[np.int64] = bits.argmax(axis=1)
        negative = bits[np.arange(len(bits)), best] < 0
        if negative.any():  # of these bits the largest mean the least of numbers
            best[negative] = self._by_float32(vectors[torch.from_numpy(negative)])
        return best

    def _by_float32(self, vectors: torch.Tensor) -> NDArray[np.int64]:
        products = torch.addmm(self._exact[-1], vectors, self._exact[:-1])
        best: NDArray[np.int64] = products.numpy().argmax(axis=1)  # numpy's takes a third of the time of torch's
        return best


def _multiplies_bfloat16() -> bool:
    """Say whether bfloat16 products are faster than float32 here: AVX-512 BF16 or AMX, through oneDNN."""
    capabilities = torch.cpu.get_capabilities()
    return bool(torch.backends.mkldnn.is_available()) and bool(capabilities.get("avx512_bf16"))  # type: ignore[no-untyped-call]


def _means(
    sample: NDArray[np.float32], assignments: NDArray[np.int32], sizes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean of the vectors of each centroid, zero where there are none."""
    order = np.argsort(assignments, kind="stable")
    starts = np.cumsum(sizes) - sizes
    means = torch.nn.functional.embedding_bag(
        torch.from_numpy(order), torch.from_numpy(sample), torch.from_numpy(starts), mode="mean"
    )
    array: NDArray[np.float32] = means.numpy()
    return array
