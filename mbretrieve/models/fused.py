"""Linear layers that do what comes after them in the same pass, as oneDNN does it: inference in bfloat16 on a CPU.

A sum, a product or an activation then reads a matrix product's float32 sums from the cache, before they are rounded;
done afterwards, in bfloat16, these passes took longer than the products.
"""

from functools import cache

import torch
from torch import Tensor

# What `hidden_activation` names, in oneDNN's words: the activation, and which formula it is computed by.
ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu_new": ("gelu", "tanh"),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
    "relu": ("relu", ""),
}


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether a stream can go through such layers: no gradient is asked for, and the CPU multiplies bfloat16."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _is_built()
    )


def activated(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Return ``activation(x @ weight.T + bias)``: (T, in) -> (T, out)."""
    name, formula = ACTIVATIONS[activation]
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], formula)
    return out


def multiplied(x: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor) -> Tensor:
    """Return ``(x @ weight.T + bias) * factor``: (T, in) -> (T, out)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, factor, weight, bias, "mul")
    return out


def added(x: Tensor, weight: Tensor, bias: Tensor | None, summand: Tensor) -> Tensor:
    """Return ``(x @ weight.T + bias) + summand``: (T, in) -> (T, out)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, summand, weight, bias, "add")
    return out


@cache
def _is_built() -> bool:
    """Ask this build of torch for the operators, which are not in its public interface, and the CPU for bfloat16."""
    try:
        return bool(torch.ops.mkldnn._linear_pointwise and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
