"""How much arithmetic a document is: the floating-point operations of its matrix products, from the config alone.

Counted, at two operations a multiply-add: the four matrices of each layer; queries times keys and weights times
values, in global layers over the whole document, in sliding ones over the keys within the window; the projection. Not
counted, because they are no matrix products: embeddings, norms, rotations, softmax, activations. Nothing is counted for
padding or for keys that a mask hides, whoever computes them.
"""

from collections.abc import Iterable, Sequence

from mbretrieve.models.config import FULL, ModernBertConfig

Shape = tuple[int, int]


def matrices(config: ModernBertConfig) -> tuple[Shape, Shape, Shape, Shape]:
    """Return (in, out) of a layer's four: queries, keys and values; heads together; gated linear unit, in and out."""
    width, inner = config.hidden_size, config.intermediate_size
    return (width, 3 * width), (width, width), (width, 2 * inner), (inner, width)


def pairs(length: int, window: int | None) -> int:
    """Count the (query, key) pairs of a document with ``|query - key| <= window``; None: all of them."""
    if window is None or window >= length - 1:
        return length * length
    # Each of the `window` distances d > 0 has length - d pairs on either side.
    return length + 2 * sum(length - distance for distance in range(1, window + 1))


def document(config: ModernBertConfig, projection: Sequence[Shape], length: int) -> int:
    """Return the operations of one document of ``length`` tokens."""
    dense = sum(rows * columns for rows, columns in matrices(config)) * config.num_hidden_layers
    dense += sum(rows * columns for rows, columns in projection)
    windows = (None if kind == FULL else config.half_window for kind in config.layer_types)
    # Each pair is head_dim multiply-adds a head for its weight, and as many for what it adds to the query's row.
    attention = 2 * config.hidden_size * sum(pairs(length, window) for window in windows)
    return 2 * (length * dense + attention)


def documents(config: ModernBertConfig, projection: Sequence[Shape], lengths: Iterable[int]) -> int:
    """Return the operations of documents of so many tokens each."""
    return sum(document(config, projection, length) for length in lengths)
