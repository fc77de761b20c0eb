"""Inference in int8 on a CPU: weights by output channel, each token by its own largest number, products by oneDNN.

A row of bytes travels with its unit, what its numbers are to be multiplied by. Where the kernel of ``amx`` serves, it
takes a layer from row to row; elsewhere ``Int8Linear`` stands for ``Linear``, bfloat16 in and out.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mbretrieve.errors import ModelError
from mbretrieve.models import amx
from mbretrieve.models.amx import Rows
from mbretrieve.models.attention import PackedBatch

if TYPE_CHECKING:
    from mbretrieve.models.modernbert import Layer, Norm

# Tokens whose products are taken at once: what is larger malloc gives back, to be faulted in anew at each layer.
_PART = 2048
_MOST = 127
_LEAST_UNIT = 1e-30 / _MOST  # of a row of zeros


class Int8Linear(nn.Module):
    """A linear layer whose weights are bytes; they are laid out for oneDNN, so that it is for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weights = to_bytes(linear.weight.detach())
        self._units, self._zeros = weights.units, torch.zeros(len(weights.units), dtype=torch.int32)
        self._weights: Tensor = torch.ops.onednn.qlinear_prepack(weights.numbers, [_PART, linear.in_features])
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """Project each token: (T, in) -> (T, out)."""
        numbers, units = self.product(to_bytes(input), input.dtype)
        out = numbers * units[:, None]
        return (out if self.bias is None else out + self.bias).to(input.dtype)

    def product(self, rows: Rows, dtype: torch.dtype = torch.bfloat16) -> Rows:
        """Project rows of bytes, without the bias: their units stay what they were."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.numbers, 1.0, 0, self._weights, self._units, self._zeros, None, 1.0, 0, dtype, "none", [], ""
        )
        return Rows(out, rows.units)


def to_bytes(rows: Tensor) -> Rows:
    """Quantize each row: (n, width)."""
    wide = rows.float()
    units = (wide.abs().amax(-1) / _MOST).clamp_min(_LEAST_UNIT)
    return Rows((wide / units[:, None]).round().to(torch.int8), units)


def check(device: torch.device) -> None:
    """Raise ModelError where the device is no CPU, or this one does not multiply bytes."""
    if device.type != "cpu":
        raise ModelError(
            f"dtype is int8, which needs a CPU, but the device is {device}: name device cpu, or leave the dtype out"
        )
    if not _multiplies():
        raise ModelError(
            "dtype is int8, but torch does not multiply bytes exactly on this CPU (of x86 it needs one with VNNI): "
            "leave the dtype out"
        )


@cache
def _multiplies() -> bool:
    """Whether the largest bytes have the product that they should: without VNNI oneDNN adds them up in 16 bits, which
    overflow; and there are builds of torch that know the operator by name alone."""
    ones = nn.Linear(64, 64, bias=False, device="meta").to_empty(device="cpu")  # which draws nothing
    nn.init.ones_(ones.weight)
    try:
        linear = Int8Linear(ones)
        rows = Rows(torch.full((2, 64), _MOST, dtype=torch.int8), torch.ones(2))
        found = linear.product(rows, torch.float32).numbers
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(found, torch.tensor(64.0 * _MOST), rtol=1e-3)


def quantize(layer: "Layer") -> None:
    """Put ``Int8Linear`` in the place of a layer's matrices."""
    for part in (layer.attn, layer.mlp):
        for name, linear in list(part.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(part, name, Int8Linear(linear))


def serves(layers: Sequence["Layer"], last: "Norm") -> bool:
    """Whether ``encode`` knows all that these layers and the norm behind them do, where ``amx`` serves."""
    return len(layers) > 0 and last.plain and all(_is_plain(layer) for layer in layers)


def encode(
    layers: Sequence["Layer"], last: "Norm", x: Tensor, batch: PackedBatch, tables: Mapping[str, Tensor]
) -> Tensor:
    """Take a stream (T, hidden) through layers and the norm behind them; x is changed in place."""
    waiting: Rows | None = None  # what the layer before adds to the stream
    stream = x.new_empty(len(x), 3 * x.shape[1])
    for layer in layers:
        if isinstance(layer.attn_norm, nn.Identity):
            rows = amx.to_bytes(x)
        else:
            rows = amx.normalize_to_bytes(x, waiting, layer.attn_norm.weight, layer.attn_norm.eps)
        for part, some in zip(torch.split(stream, _PART), _parts(rows), strict=True):
            part.copy_(_product(layer.attn.Wqkv, some).numbers)
        mixed = amx.attend(stream, tables[layer.kind], batch.lengths, layer.attn.window, rows.units)
        rows = amx.normalize_to_bytes(
            x, _product(layer.attn.Wo, amx.to_bytes(mixed)), layer.mlp_norm.weight, layer.mlp_norm.eps
        )
        gated = [amx.gate_to_bytes(_product(layer.mlp.Wi, some)) for some in _parts(rows)]
        waiting = _product(layer.mlp.Wo, Rows(*map(torch.cat, zip(*gated, strict=True))))
    return amx.normalize(x, last.weight, last.eps, waiting)


def _parts(rows: Rows) -> list[Rows]:
    return [Rows(*part) for part in zip(*(torch.split(part, _PART) for part in rows), strict=True)]


def _product(linear: nn.Module, rows: Rows) -> Rows:
    assert isinstance(linear, Int8Linear)  # as ``serves`` found
    return linear.product(rows)


def _is_plain(layer: "Layer") -> bool:
    linears = (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo)
    norms = [norm for norm in (layer.attn_norm, layer.mlp_norm) if not isinstance(norm, nn.Identity)]
    return (
        not layer.training
        and layer.mlp.activation == "gelu"
        and all(isinstance(linear, Int8Linear) for linear in linears)
        and all(module.bias is None for module in (*linears, *norms))
        and layer.mlp.width % amx.LANES == 0
    )
