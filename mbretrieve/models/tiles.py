"""Attention written out, for training where there is no flash kernel: tiles of a packed stream, and their gradient.

torch's SDPA is a fast forward on a CPU, but its backward in bfloat16 takes some ten times as long, and autograd fills a
whole stream with zeros for each text that was cut out of it. Here a layer is one node of the graph: texts of
like length are padded into tiles, multiplied as batches of matrices, and their gradients written where they belong.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of a tile's score matrices, a head: as many as stay in a core's cache together with what is made of them.
_TILE_ENTRIES = 256 * 1024
# A text of more tokens is cut: so many of its queries at a time meet all keys that they see.
_WHOLE, _CUT = 512, 128


class Tile(NamedTuple):
    """Pieces of like shape, n of them: A queries and B keys each, as places in the stream.

    Shapes: queries (n, A) and keys (n, B) int64, a place beyond the stream where a piece has fewer; hidden (n, A, B) or
    (n, 1, B) bool, True where a query may not attend, or None.
    """

    queries: Tensor
    keys: Tensor
    hidden: Tensor | None


class Tiles(NamedTuple):
    """The tiles that cover a stream: each query is in one; ``shared`` says that a key may be in several.

    ``blind``: there may be queries without any key.
    """

    tiles: list[Tile]
    shared: bool
    blind: bool


def cut_tiles(lengths: Sequence[int], window: int | None, attended: Tensor | None, device: torch.device) -> Tiles:
    """Cut a stream of texts into tiles for one kind of layer; window and attended as for ``attend``."""
    pieces = sorted(_pieces(lengths, window), key=lambda piece: (piece[3] - piece[2], piece[1] - piece[0]))
    tiles: list[Tile] = []
    nowhere = sum(lengths)
    while pieces:
        _, _, first, last = pieces[-1]
        keys = last - first
        # Longest first; what is less than three quarters as long would be padding for the most part.
        fitting = max(1, _TILE_ENTRIES // (keys * min(keys, _WHOLE)))
        some = [pieces.pop()]
        while pieces and len(some) < fitting and 4 * (pieces[-1][3] - pieces[-1][2]) >= 3 * keys:
            some.append(pieces.pop())
        bounds = torch.tensor(some)  # (n, 4)
        query_places = _places(bounds[:, :2], nowhere)
        key_places = _places(bounds[:, 2:], nowhere)
        hidden = (key_places == nowhere)[:, None, :]  # (n, 1, B)
        if attended is not None:
            seen = torch.nn.functional.pad(attended.cpu(), (0, 1))[key_places]
            hidden = hidden | ~seen[:, None, :]
        if window is not None and keys > window + 1:
            hidden = hidden | ((query_places[:, :, None] - key_places[:, None, :]).abs() > window)
        masked = hidden.to(device) if bool(hidden.any()) else None
        tiles.append(Tile(query_places.to(device), key_places.to(device), masked))
    return Tiles(tiles, any(length > _limit(window) for length in lengths), attended is not None)


def attend_tiles(query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
    """Attend as ``attention.attend`` does: three of (T, heads, head_dim) -> the same shape. Differentiable once.

    Beside the result and its inputs nothing is kept for the backward, which computes the weights again, tile by tile.
    """
    mixed: Tensor = _AttendTiles.apply(query, key, value, tiles)  # type: ignore[no-untyped-call]
    return mixed


class _AttendTiles(torch.autograd.Function):
    """``out = P v`` with ``P = softmax(s q k^T)``. With dP = dout v^T and dS = P * (dP - sum_j P dP), the gradients are
    ``dv = P^T dout``, ``dq = s dS k`` and ``dk = s dS^T q``."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: Tiles) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.tiles = tiles
        out = _rows_like(query, query.dtype)
        with torch.autocast(query.device.type, enabled=False):
            for tile in tiles.tiles:
                _, _, weights = _weights(query, key, tile, tiles.blind)
                _put(out, tile.queries, weights @ _take(value, tile.keys), add=False)
        return out[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        # Parts of one key's gradient, from several tiles, are added up in full precision.
        wide = torch.promote_types(query.dtype, torch.float32) if tiles.shared else query.dtype
        to_query, to_key, to_value = _rows_like(query, query.dtype), _rows_like(key, wide), _rows_like(value, wide)
        if tiles.shared:
            to_key.zero_()
            to_value.zero_()
        with torch.autocast(query.device.type, enabled=False):
            for tile in tiles.tiles:
                q, k, weights = _weights(query, key, tile, tiles.blind)
                # A query that is padding has no gradient to give.
                padding = (tile.queries == len(query)).repeat_interleave(query.shape[1], dim=0)[:, :, None]
                out = _take(grad, tile.queries).masked_fill_(padding, 0.0)
                _put(to_value, tile.keys, weights.transpose(1, 2) @ out, tiles.shared)
                scores = torch._softmax_backward_data(
                    out @ _take(value, tile.keys).transpose(1, 2), weights, -1, weights.dtype
                )
                _put(to_query, tile.queries, (scores @ k).mul_(query.shape[-1] ** -0.5), add=False)
                _put(to_key, tile.keys, scores.transpose(1, 2) @ q, tiles.shared)
        return to_query[:-1], to_key[:-1].to(key.dtype), to_value[:-1].to(value.dtype), None


def _limit(window: int | None) -> int:
    """The longest text that is one piece."""
    return _WHOLE if window is None else min(_WHOLE, _CUT + 2 * window)


def _pieces(lengths: Sequence[int], window: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Yield the places of queries and of the keys they see, [first, last) each."""
    start = 0
    for length in lengths:
        end = start + length
        if length <= _limit(window):
            yield start, end, start, end
        else:
            for first in range(start, end, _CUT):
                last = min(first + _CUT, end)
                reach = length if window is None else window
                yield first, last, max(start, first - reach), min(end, last + reach)
        start = end


def _places(bounds: Tensor, nowhere: int) -> Tensor:
    """Spell ranges out: (n, 2) -> (n, longest), filled up with ``nowhere``."""
    first, last = bounds[:, :1], bounds[:, 1:]
    places = first + torch.arange(int((last - first).max()))
    return places.masked_fill(places >= last, nowhere)


def _weights(query: Tensor, key: Tensor, tile: Tile, blind: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return a tile's queries, divided by the root of head_dim, its keys, and how queries weigh keys.

    Shapes: (n * heads, A, head_dim), (n * heads, B, head_dim) and (n * heads, A, B).
    """
    q, k = _take(query, tile.queries).mul_(query.shape[-1] ** -0.5), _take(key, tile.keys)
    scores = q @ k.transpose(1, 2)
    if tile.hidden is None:
        return q, k, scores.softmax(-1)
    by_text = scores.view(len(tile.queries), -1, *scores.shape[1:])  # (n, heads, A, B)
    # Not -inf, which makes NaN of a row that is all hidden: then all its keys weigh the same, and it is dealt with.
    by_text.masked_fill_(tile.hidden[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if blind:
        weights.view_as(by_text).masked_fill_(tile.hidden[:, None], 0.0)
    return q, k, weights


def _take(stream: Tensor, places: Tensor) -> Tensor:
    """Gather rows of a stream (T, heads, head_dim) at places (n, A): (n * heads, A, head_dim), a copy.

    Places beyond the stream get its last row.
    """
    rows = stream.flatten(1).index_select(0, places.flatten().clamp(max=len(stream) - 1))
    return rows.view(*places.shape, *stream.shape[1:]).transpose(1, 2).flatten(0, 1).contiguous()


def _put(stream: Tensor, places: Tensor, rows: Tensor, add: bool) -> None:
    """Scatter what ``_take`` would gather into a stream of one more row, where what is beyond it goes."""
    flat = rows.view(len(places), -1, *rows.shape[1:]).transpose(1, 2).reshape(places.numel(), -1)
    target = stream.view(len(stream), -1)
    if add:
        target.index_add_(0, places.flatten(), flat.to(stream.dtype))
    else:
        target.index_copy_(0, places.flatten(), flat)


def _rows_like(stream: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(len(stream) + 1, *stream.shape[1:], dtype=dtype, device=stream.device)
