"""Codebooks: how a multi-vector index compresses tokens, how both kinds fill lists, and the training from a sample.

A token is rotated, assigned to the nearest of some thousand centroids, and what the centroid leaves of it (the
residual) is kept in 8-bit codes, a few dimensions each. Inner products are those of before the rotation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index.files import save_array
from mbretrieve.index.products import ProductQuantizer, are_few, quantizer, spaced, train_products
from mbretrieve.scoring import SCALES, CompressedTokens, spacing, spares_torch

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Assignments = NDArray[np.integer[Any]]

STAGES = {1: (8, 1), 2: (4, 1), 4: (4, 2), 8: (1, 1)}
"""For each number of bits a dimension takes: how many dimensions an 8-bit code stands for, and how many codes in turn,
each for what the ones before it left. Two stages of 4 dimensions err less than one of 2, and are faster to train. Codes
of one dimension are equally spaced: what they stand for is found, and scored, by a product instead of a table."""
EIGHT_BY_TABLES = (4, 4)
"""How 8 bits are kept of few different tokens, which tables hold exactly; all tokens once were."""
PRODUCT_WIDTH = 4
"""Dimensions of a 4-bit code, by which candidates are found."""

# Of a large sample a part places no centroid: residuals of tokens that did are shorter than those of tokens to come.
HELD_OUT = 4  # one in so many tokens
MOST_HELD_OUT = 49152
MOST_MEASURED = 16384  # of them, to measure the error
LEAST_SAMPLE = 4096  # a smaller one serves whole for everything
CENTROID_ITERATIONS = 4
BLOCK_TOKENS = 16384
LEAST_VARIANCE = 1e-6  # of a direction, relative to the largest: less than this is rounding

_COARSE_ARRAYS = ("rotation", "centroids", "products")
COARSE_FILES = tuple(f"{name}.npy" for name in _COARSE_ARRAYS)
"""What ``save_coarse`` writes."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Coarse:
    """By what inverted lists are filled and searched; immutable.

    rotation (dim, padded), orthonormal rows, padded = dim rounded up to a multiple of 8; centroids (L, padded) rotated;
    products (padded / 4, 16, 4): the vectors of the 4-bit codes, for what a centroid leaves; all float32.
    """

    rotation: Floats
    centroids: Floats
    products: Floats

    @property
    def dim(self) -> int:
        """Numbers in a token before rotation."""
        return len(self.rotation)

    @property
    def padded(self) -> int:
        """Numbers in a rotated token."""
        return int(self.rotation.shape[1])

    def rotate(self, vectors: Floats) -> Floats:
        """Return tokens or query tokens (n, dim) as (n, padded), inner products kept."""
        rotated: Floats = vectors @ self.rotation
        return rotated

    def restore(self, rotated: Floats) -> Floats:
        """Undo ``rotate``: (n, padded) -> (n, dim)."""
        return rotated @ self.rotation.T

    def assign(self, rotated: Floats) -> NDArray[np.int32]:
        """Return each token's centroid, the nearest: (n, padded) -> (n,)."""
        from mbretrieve.index.kmeans import nearest  # it needs torch, which not every reader does

        return nearest(rotated, self.centroids)

    def nearest_lists(self, rotated: Floats, count: int) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Return the products of (n, padded) with all centroids (n, L), and of at most ``count`` of these the largest:
        their numbers and themselves (n, count)."""
        count = min(count, len(self.centroids))
        if spares_torch():
            scores: Floats = rotated @ self.centroids.T
            some = np.argpartition(scores, -count, axis=1)[:, -count:]
            order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1)
            best = np.take_along_axis(some, order, axis=1)
            return scores, best, np.take_along_axis(scores, best, axis=1)
        import torch

        products = torch.from_numpy(rotated) @ torch.from_numpy(self.centroids).T
        largest, numbers = torch.topk(products, count, dim=1)
        return products.numpy(), numbers.numpy(), largest.numpy()

    def pack_products(self, rotated: Floats, assignments: Assignments) -> Bytes:
        """Return each token's 4-bit codes, the even group in the low half of a byte: (n, padded), (n,) ->
        (n, padded / 8)."""
        quantizer = ProductQuantizer(self.products)
        packed = np.empty((len(rotated), len(self.products) // 2), dtype=np.uint8)
        for block, left in self._residuals(rotated, assignments):
            packed[block] = quantizer.encode(left)
        return packed

    def _residuals(self, rotated: Floats, assignments: Assignments) -> Iterator[tuple[slice, Floats]]:
        for block in _blocks(len(rotated)):
            yield block, rotated[block] - self.centroids[assignments[block]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Codebook(Coarse):
    """What compresses and restores the tokens of the segments that name it; immutable.

    residuals (stages, groups, 256, width) float32: the vectors of the 8-bit codes. error: the mean squared length of
    what compression takes from a token, of tokens held out of training where the sample was large enough.
    """

    bits: int
    residuals: Floats
    error: float

    @property
    def code_size(self) -> int:
        """Bytes of a token's residual codes and its length."""
        return int(self.residuals.shape[0] * self.residuals.shape[1]) + 1

    def encode(self, rotated: Floats, assignments: Assignments) -> Bytes:
        """Return each token's codes, stage after stage, and its length: (n, padded), (n,) -> (n, stages * groups + 1).

        Lengths are kept apart from directions, as in Gupta et al., QUIPS (https://arxiv.org/abs/1509.01469).
        """
        codes = np.empty((len(rotated), self.code_size), dtype=np.uint8)
        quantizers = [quantizer(stage) for stage in self.residuals]
        groups = self.residuals.shape[1]
        for block, left in self._residuals(rotated, assignments):
            for stage, one in enumerate(quantizers):
                found = one.encode(left)
                codes[block, stage * groups : (stage + 1) * groups] = found
                left -= one.decode(found)
            codes[block, -1] = _scale_codes(rotated[block], rotated[block] - left)
        return codes

    def decode(self, assignments: Assignments, codes: Bytes) -> Floats:
        """Return tokens as compression left them, rotated: (n,), (n, code_size) -> (n, padded)."""
        return CompressedTokens(self.centroids, self.residuals, assignments, codes).decode()

    def squared_error(self, rotated: Floats, assignments: Assignments, codes: Bytes) -> float:
        """Return the mean squared length of token minus decoded token; 0 for no tokens."""
        total = 0.0
        for block in _blocks(len(rotated)):
            total += float(np.square(rotated[block] - self.decode(assignments[block], codes[block])).sum(dtype=float))
        return total / max(1, len(rotated))


def train_codebook(sample: Floats, lists: int, bits: int, seed: int = 0) -> Codebook:
    """Make a codebook for tokens like those of a sample, (n, dim) with n and dim at least 1.

    lists is the number of centroids (at most n), bits how many a dimension takes: 1, 2, 4 or 8. Deterministic for a
    seed on one machine. Raises: ValueError.
    """
    if bits not in STAGES or lists < 1:
        raise ValueError(f"bits is {bits} and lists {lists}; bits is one of {sorted(STAGES)}, lists at least 1")
    if sample.ndim != 2 or not sample.size:
        raise ValueError(f"the sample has shape {sample.shape}; at least one token of one dimension is needed")
    random = np.random.default_rng(seed)
    fitting, coding, measuring = _split(sample[random.permutation(len(sample))])
    coarse, left = _train_coarse(fitting, coding, lists, random)
    width, stages = STAGES[bits]
    if width == 1 and are_few(left, EIGHT_BY_TABLES[0], 256):
        width, stages = EIGHT_BY_TABLES
    residuals = np.empty((stages, left.shape[1] // width, 256, width), dtype=np.float32)
    for stage in range(stages):
        residuals[stage] = spaced(left) if width == 1 else train_products(left, width, 256, random)
        one = quantizer(residuals[stage])
        left -= one.decode(one.encode(left))
    codebook = Codebook(
        rotation=coarse.rotation,
        centroids=coarse.centroids,
        products=coarse.products,
        bits=bits,
        residuals=residuals,
        error=0.0,
    )
    rotated = codebook.rotate(measuring)
    assignments = codebook.assign(rotated)
    error = codebook.squared_error(rotated, assignments, codebook.encode(rotated, assignments))
    return replace(codebook, error=error)


def train_coarse(sample: Floats, lists: int, seed: int = 0) -> Coarse:
    """Make what inverted lists need for vectors like those of a sample, (n, dim) with n and dim at least 1.

    lists is the number of centroids (at most n). Deterministic for a seed on one machine.
    """
    random = np.random.default_rng(seed)
    fitting, coding, _ = _split(sample[random.permutation(len(sample))])
    return _train_coarse(fitting, coding, lists, random)[0]


def _train_coarse(fitting: Floats, coding: Floats, lists: int, random: np.random.Generator) -> tuple[Coarse, Floats]:
    """Return what lists need, and what its centroids leave of ``coding``, rotated."""
    from mbretrieve.index.kmeans import nearest, train_centroids

    centroids = train_centroids(fitting, lists, CENTROID_ITERATIONS, random)
    rotation = _rotation(coding - centroids[nearest(coding, centroids)])
    coding, centroids = coding @ rotation, centroids @ rotation
    # Anew, as tokens will be assigned: of two centroids almost equally near, rounding may have chosen the other.
    left: Floats = coding - centroids[nearest(coding, centroids)]
    products = train_products(left, PRODUCT_WIDTH, 16, random)
    return Coarse(rotation=rotation, centroids=centroids, products=products), left


def assignment_dtype(lists: int) -> type[np.uint16] | type[np.uint32]:
    """Return the smallest type that numbers so many centroids."""
    return np.uint16 if lists <= 1 << 16 else np.uint32


def save_codebook(folder: Path, codebook: Codebook) -> list[str]:
    """Write a codebook, but for its error, into a folder that exists, each file durable; returns the files' names."""
    save_array(folder / "residuals.npy", codebook.residuals)
    return [*save_coarse(folder, codebook), "residuals.npy"]


def save_coarse(folder: Path, coarse: Coarse) -> list[str]:
    """Write what lists need into a folder that exists, each file durable; returns the files' names."""
    for name, file in zip(_COARSE_ARRAYS, COARSE_FILES, strict=True):
        save_array(folder / file, getattr(coarse, name))
    return list(COARSE_FILES)


def load_codebook(folder: Path, error: float) -> Codebook:
    """Read a codebook into memory, with the error that is kept elsewhere.

    Raises: FileNotFoundError, for who reads an index may only have come too late; IndexFormatError naming the file that
    is cut short or does not hold what it must.
    """
    coarse = load_coarse(folder)
    residuals = _read(folder / "residuals.npy", np.float32, (None, None, 256, None))
    stages, groups, _, width = residuals.shape
    layouts = [*STAGES.items(), (8, EIGHT_BY_TABLES)]
    bits = next((bits for bits, layout in layouts if layout == (width, stages)), None)
    if bits is None or groups * width != coarse.padded:
        raise _damaged(
            folder / "residuals.npy", f"its shape {residuals.shape} is not one for {coarse.padded} dimensions"
        )
    if width == 1 and spacing(residuals) is None:
        raise _damaged(folder / "residuals.npy", "its entries are not equally spaced")
    return Codebook(
        rotation=coarse.rotation,
        centroids=coarse.centroids,
        products=coarse.products,
        bits=bits,
        residuals=residuals,
        error=error,
    )


def load_coarse(folder: Path) -> Coarse:
    """Read what ``save_coarse`` wrote. Raises: IndexFormatError as ``load_codebook`` does."""
    rotation = _read(folder / "rotation.npy", np.float32, (None, None))
    dim, padded = rotation.shape
    if padded != _padded(dim) or np.abs(rotation @ rotation.T - np.eye(dim)).max() > 1e-3:
        raise _damaged(folder / "rotation.npy", f"its {dim} rows of {padded} numbers are no rotation")
    return Coarse(
        rotation=rotation,
        centroids=_read(folder / "centroids.npy", np.float32, (None, padded)),
        products=_read(folder / "products.npy", np.float32, (padded // PRODUCT_WIDTH, 16, PRODUCT_WIDTH)),
    )


def _read(path: Path, dtype: DTypeLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Read a file of finite numbers of a shape, None standing for any length but 0."""
    try:
        # Mapped first: an array larger than its file is then refused, not allocated.
        array = np.array(np.lib.format.open_memmap(path, mode="r"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from None
    if array.dtype != np.dtype(dtype).newbyteorder("<") or array.ndim != len(shape):
        raise _damaged(path, f"it holds {array.dtype} {array.shape}")
    if not array.size or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise _damaged(path, f"its shape {array.shape} does not fit the other files")
    if not np.isfinite(array).all():
        raise _damaged(path, "it holds NaN or infinite values")
    return array.astype(dtype, order="C", copy=False)


def _damaged(path: Path, what: str) -> IndexFormatError:
    return IndexFormatError(
        f"{path} is damaged: {what}; run `mbretrieve repair`, restore it from a copy, or index again"
    )


def _scale_codes(tokens: Floats, coded: Floats) -> Bytes:
    """Return by what in ``SCALES`` to multiply coded tokens, so that they are as long as the tokens: (n,)."""
    lengths = np.linalg.norm(tokens, axis=1), np.linalg.norm(coded, axis=1)
    known = np.minimum(*lengths) > 0
    ratios = np.divide(*lengths, out=np.ones(len(tokens), dtype=np.float32), where=known)
    bounds = np.sqrt(SCALES[:-1] * SCALES[1:])
    codes: Bytes = np.searchsorted(bounds, ratios).astype(np.uint8)
    return codes


def _padded(dim: int) -> int:
    """Return the numbers in a rotated token: a multiple of 8, which all codes divide."""
    return -(-dim // 8) * 8


def _split(shuffled: Floats) -> tuple[Floats, Floats, Floats]:
    """Part a sample into the tokens that place the centroids, those that make the codes, and those that measure."""
    if len(shuffled) < LEAST_SAMPLE:
        return shuffled, shuffled, shuffled
    held_out = min(len(shuffled) // HELD_OUT, MOST_HELD_OUT)
    measured = min(held_out // 4, MOST_MEASURED)
    return shuffled[held_out:], shuffled[measured:held_out], shuffled[:measured]


def _rotation(residuals: Floats) -> Floats:
    """Return the orthonormal (dim, padded) that deals the residuals' principal directions to groups.

    The error of codes is the least where the groups have the same product of eigenvalues (Ge et al., "Optimized product
    quantization for approximate nearest neighbor search", CVPR 2013, whose eigenvalue allocation this is). Groups of 4
    are dealt so, then pairs of them: the groups of 8.
    """
    dim = residuals.shape[1]
    padded = _padded(dim)
    values, vectors = np.linalg.eigh((residuals.T @ residuals).astype(np.float64))
    relative = np.full(padded, LEAST_VARIANCE)  # that of padding too
    relative[:dim] = np.maximum(values / max(values[-1], np.finfo(np.float64).tiny), LEAST_VARIANCE)
    logs = np.log(relative / LEAST_VARIANCE)
    directions = np.zeros((dim, padded))
    directions[:, :dim] = vectors
    groups = _deal(logs, PRODUCT_WIDTH)
    pairs = _deal(logs[groups].sum(axis=1), 2)
    return np.ascontiguousarray(directions[:, groups[pairs].ravel()], dtype=np.float32)


def _deal(logs: NDArray[np.float64], width: int) -> NDArray[np.int64]:
    """Deal numbers >= 0 to groups of ``width``, the largest first, each to the group with the least sum that is not
    full -> (groups, width) their places."""
    groups: list[list[int]] = [[] for _ in range(len(logs) // width)]
    sums = [0.0] * len(groups)
    for place in np.argsort(-logs, kind="stable").tolist():
        group = min((g for g in range(len(groups)) if len(groups[g]) < width), key=sums.__getitem__)
        groups[group].append(place)
        sums[group] += logs[place]
    return np.array(groups)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(first, first + BLOCK_TOKENS) for first in range(0, count, BLOCK_TOKENS))
