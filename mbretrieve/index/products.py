"""Product quantizers: vectors cut into groups of dimensions, each replaced by the nearest of 256 or 16 entries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.index.kernels import KERNELS
from mbretrieve.scoring import spacing
from mbretrieve.scoring.native import threads

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

TRAINED_VECTORS = 32768
ITERATIONS = 8
# Entries are best as dense as a power below 1 of the density of the vectors they stand for (Gersho, "Asymptotically
# optimal block quantization", IEEE Transactions on Information Theory, 1979). Lloyd's iterations get there slowly: so
# entries drawn are spread first. On residuals of code tokens the error after 8 iterations was 13% less than without.
SPREAD = 2.0


class ProductQuantizer:
    """Encodes by vectors (groups, entries, width), 256 entries (8-bit codes) or 16 (4-bit codes)."""

    def __init__(self, vectors: Floats) -> None:
        import faiss  # here, not above: who only searches, by the kernels, does without

        groups, entries, width = self._shape = vectors.shape
        halves = np.square(vectors).sum(axis=2, keepdims=True) / 2
        self._table = np.concatenate([vectors, halves], axis=2, dtype=np.float32)
        self._quantizer: Any = faiss.ProductQuantizer(groups * width, groups, entries.bit_length() - 1)
        faiss.copy_array_to_vector(vectors.ravel(), self._quantizer.centroids)
        if entries == 16:
            self._quantizer.sync_transposed_centroids()  # a quarter faster than without; with 256, slower

    def encode(self, vectors: Floats) -> Bytes:
        """Return the codes of (n, groups * width): (n, groups), or of 4 bits (n, groups / 2), the even group's in the
        low half of a byte."""
        groups, entries, width = self._shape
        kernel = KERNELS.get()
        if kernel is None or width not in (4, 8):  # FAISS takes four to eight times as long
            found: Bytes = self._quantizer.compute_codes(vectors)
            return found
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        codes = np.empty((len(vectors), groups // 2 if entries == 16 else groups), dtype=np.uint8)
        kernel.mbretrieve_nearest_entries(
            *(self._table.ctypes.data, groups, entries, width),
            *(vectors.ctypes.data, len(vectors), codes.ctypes.data, threads()),
        )
        return codes

    def decode(self, codes: Bytes) -> Floats:
        """Return the vectors that codes stand for, (n, groups * width)."""
        vectors: Floats = self._quantizer.decode(codes)
        return vectors


class SpacedQuantizer:
    """Encodes each dimension by equally spaced vectors (dims, entries, 1), as ``spaced`` makes them."""

    def __init__(self, vectors: Floats) -> None:
        if (found := spacing(vectors[None])) is None:
            raise ValueError("codes of one dimension stand for entries that are not equally spaced")
        self._entries = vectors.shape[1]
        self._lowest, self._steps = found

    def encode(self, vectors: Floats) -> Bytes:
        """Return the codes of (n, dims): (n, dims)."""
        codes = vectors - self._lowest
        codes *= np.divide(1, self._steps, out=np.zeros_like(self._steps), where=self._steps > 0)
        np.rint(codes, out=codes).clip(0, self._entries - 1, out=codes)
        return codes.astype(np.uint8)

    def decode(self, codes: Bytes) -> Floats:
        """Return the vectors that codes stand for, (n, dims)."""
        vectors: Floats = codes * self._steps
        vectors += self._lowest
        return vectors


def quantizer(vectors: Floats) -> ProductQuantizer | SpacedQuantizer:
    """Return what encodes by vectors (groups, entries, width)."""
    return ProductQuantizer(vectors) if vectors.shape[2] > 1 else SpacedQuantizer(vectors)


def spaced(sample: Floats) -> Floats:
    """Return 256 equally spaced entries for each dimension of a sample (n, dim), a little beyond its least and its
    greatest number, as those to come will be: (dim, 256, 1)."""
    least, greatest = sample.min(axis=0), sample.max(axis=0)
    beyond = (greatest - least) / 16
    parts = np.arange(256, dtype=np.float32) / 255
    entries: Floats = (least - beyond)[:, None] + (greatest - least + 2 * beyond)[:, None] * parts
    return entries[:, :, None]


def train_products(sample: Floats, width: int, entries: int, random: np.random.Generator) -> Floats:
    """Return the vectors of a product quantizer for a sample (n, dim), (dim / width, entries, width), by Lloyd's
    iterations. Vectors of which there are no more than entries, however often they come, are entries themselves.
    Deterministic for a state of ``random``."""
    KERNELS.get(build=True)
    sample = np.ascontiguousarray(sample[:TRAINED_VECTORS])
    count, groups = len(sample), sample.shape[1] // width
    by_group = sample.reshape(count, groups, width)
    if (few := _distinct(by_group, entries)) is not None:
        return few
    drawn = by_group[random.choice(count, entries, replace=False)]
    vectors = np.ascontiguousarray(drawn.transpose(1, 0, 2)) * np.float32(SPREAD)
    dimensions = [np.ascontiguousarray(by_group[:, :, d].T).ravel() for d in range(width)]  # each (groups * n,)
    first_entries = np.arange(groups)[:, None] * entries
    for _ in range(ITERATIONS):
        codes = ProductQuantizer(vectors).encode(sample)
        if entries == 16:
            codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(count, groups)
        chosen = (codes.T + first_entries).ravel()
        sizes = np.bincount(chosen, minlength=groups * entries)
        sums = [np.bincount(chosen, values, minlength=groups * entries) for values in dimensions]
        means = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
        vectors = means.astype(np.float32).reshape(groups, entries, width)
        group, entry = np.nonzero(sizes.reshape(groups, entries) == 0)
        vectors[group, entry] = by_group[random.integers(count, size=len(group)), group]
    return vectors


def are_few(sample: Floats, width: int, entries: int) -> bool:
    """Say whether the vectors of each group of a sample (n, dim) are no more than entries, so that
    ``train_products`` keeps them all."""
    some = sample[:TRAINED_VECTORS]
    return _distinct(some.reshape(len(some), -1, width), entries) is not None


def _distinct(by_group: Floats, entries: int) -> Floats | None:
    """Return the vectors of each group of (n, groups, width), repeated up to the number of entries, or None where they
    are more than that."""
    if len(by_group) > entries and len(np.unique(by_group[:, 0], axis=0)) > entries:
        return None  # the usual case, soon known
    distinct = [np.unique(by_group[:, group], axis=0) for group in range(by_group.shape[1])]
    if max(map(len, distinct)) > entries:
        return None
    return np.stack([np.resize(vectors, (entries, by_group.shape[2])) for vectors in distinct])
