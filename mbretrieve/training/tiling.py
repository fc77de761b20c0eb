"""A larger model's first weights, tiled from a smaller one's, as ModernBERT-large began as ModernBERT-base.

Each axis of each matrix is tiled about its centre: the small model sits whole in the middle of the large one, and its
copies go on to both sides (https://arxiv.org/abs/2412.13663, section 2.2; the idea is Gopher's and Phi's).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mbretrieve.errors import ModelError
from mbretrieve.models.config import FULL, SLIDING, ModernBertConfig

_GROWN = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_KEPT = ("vocab_size", "head_dim", "hidden_activation", "norm_bias", "attention_bias", "mlp_bias")


def centred(small: int, large: int) -> Tensor:
    """Return which of ``small`` places each of ``large`` copies: ``out[i] = (i - (large - small) // 2) mod small``."""
    return (torch.arange(large) - (large - small) // 2) % small


class _Axes(NamedTuple):
    """For each kind of axis, which place of the small model's each place of the large model's copies."""

    words: Tensor
    stream: Tensor
    heads: Tensor
    queries_keys_values: Tensor
    inner: Tensor
    signal_and_gate: Tensor


# What the axes of a tensor are, by the end of its name.
_AXES: dict[str, Callable[[_Axes], tuple[Tensor, ...]]] = {
    "tok_embeddings.weight": lambda axes: (axes.words, axes.stream),
    "norm.weight": lambda axes: (axes.stream,),
    "norm.bias": lambda axes: (axes.stream,),
    "attn.Wqkv.weight": lambda axes: (axes.queries_keys_values, axes.stream),
    "attn.Wqkv.bias": lambda axes: (axes.queries_keys_values,),
    "attn.Wo.weight": lambda axes: (axes.stream, axes.heads),
    "attn.Wo.bias": lambda axes: (axes.stream,),
    "mlp.Wi.weight": lambda axes: (axes.signal_and_gate, axes.stream),
    "mlp.Wi.bias": lambda axes: (axes.signal_and_gate,),
    "mlp.Wo.weight": lambda axes: (axes.stream, axes.inner),
    "mlp.Wo.bias": lambda axes: (axes.stream,),
    "head.dense.weight": lambda axes: (axes.stream, axes.stream),
    "head.dense.bias": lambda axes: (axes.stream,),
    "decoder.bias": lambda axes: (axes.words,),
}


def tile(small: ModernBertConfig, state: Mapping[str, Tensor], large: ModernBertConfig) -> dict[str, Tensor]:
    """Return the weights of a ``large`` model from a small one's, a masked-language head's among them if it has one.

    Heads are tiled whole, in queries, keys and values alike, and so are the gated unit's two halves: a head keeps its
    own channels, which RoPE has paired. Layers are tiled by ``layer_sources``. The first layer has no norm before its
    attention, so a copy of it further up gets one of ones.
    Raises: ModelError naming what of the large model is smaller than, or not of a kind with, the small one's.
    """
    _check(small, large)
    axes = _axes(small, large)
    found = {name.removeprefix("model."): tensor for name, tensor in state.items() if name != "decoder.weight"}
    sources = layer_sources(small.layer_types, large.layer_types)
    tiled: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if not name.startswith("layers."):
            tiled[name] = _tiled(name, tensor, axes)
    for layer, source in enumerate(sources):
        prefix = f"layers.{source}."
        for name, tensor in found.items():
            if name.startswith(prefix) and not (layer == 0 and ".attn_norm." in name):
                tiled[f"layers.{layer}.{name.removeprefix(prefix)}"] = _tiled(name, tensor, axes)
        if layer > 0 and source == 0:
            like = found["embeddings.norm.weight"]
            tiled[f"layers.{layer}.attn_norm.weight"] = torch.ones(large.hidden_size, dtype=like.dtype)
            if large.norm_bias:
                tiled[f"layers.{layer}.attn_norm.bias"] = torch.zeros(large.hidden_size, dtype=like.dtype)
    return tiled


def layer_sources(small: tuple[str, ...], large: tuple[str, ...]) -> list[int]:
    """Return which small layer each large one copies: of its own type, and as far up among these.

    The j-th of n layers of a type copies the ``floor(j m / n)``-th of the small model's m. Within a type, because a
    layer that saw a window of neighbours has not learned to look at a whole text.
    Raises: ModelError if the large model has a type of layer that the small one has not.
    """
    places = {kind: [index for index, own in enumerate(small) if own == kind] for kind in (FULL, SLIDING)}
    counts = {kind: large.count(kind) for kind in places}
    seen = dict.fromkeys(places, 0)
    sources = []
    for kind in large:
        if not places[kind]:
            raise ModelError(f"the larger model has layers of type {kind}, of which the smaller one has none to tile")
        sources.append(places[kind][seen[kind] * len(places[kind]) // counts[kind]])
        seen[kind] += 1
    return sources


def _axes(small: ModernBertConfig, large: ModernBertConfig) -> _Axes:
    heads = centred(small.num_attention_heads, large.num_attention_heads)
    channels = (heads[:, None] * small.head_dim + torch.arange(small.head_dim)).flatten()
    inner = centred(small.intermediate_size, large.intermediate_size)
    return _Axes(
        words=torch.arange(small.vocab_size),
        stream=centred(small.hidden_size, large.hidden_size),
        heads=channels,
        queries_keys_values=torch.cat([channels + block * small.hidden_size for block in range(3)]),
        inner=inner,
        signal_and_gate=torch.cat([inner, inner + small.intermediate_size]),
    )


def _tiled(name: str, tensor: Tensor, axes: _Axes) -> Tensor:
    kind = next((end for end in _AXES if name.endswith(end)), None)
    if kind is None:
        raise ModelError(
            f"the smaller model has a tensor {name}, expected a ModernBERT's, with or without its MLM head"
        )
    rows, *columns = _AXES[kind](axes)
    return tensor[rows][:, columns[0]] if columns else tensor[rows]


def _check(small: ModernBertConfig, large: ModernBertConfig) -> None:
    for key in _GROWN:
        if getattr(large, key) < getattr(small, key):
            raise ModelError(
                f"{key} is {getattr(large, key)}, expected at least the smaller model's {getattr(small, key)}"
            )
    for key in _KEPT:
        if getattr(large, key) != getattr(small, key):
            raise ModelError(
                f"{key} is {getattr(large, key)!r}, expected {getattr(small, key)!r} as in the smaller model: "
                "tiling copies whole heads and keeps the rest of the architecture"
            )
