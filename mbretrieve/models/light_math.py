"""A ModernBERT's arithmetic in numpy, on one text: the formulas of ``modernbert`` and ``attention``, in float32."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mbretrieve.models.settings import SavedLayer
from mbretrieve.types import FloatArray


def _erf(x: FloatArray) -> FloatArray:
    """The error function to 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    series = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0):
        series *= t
        series += coefficient
    return np.asarray(np.copysign(1 - series * np.exp(-x * x), x))


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


def _gelu(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * x * (1 + _erf(x * np.float32(0.5**0.5))))


def _gelu_tanh(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + 0.044715 * x * x * x))))


def _silu(x: FloatArray) -> FloatArray:
    return np.asarray(x * _sigmoid(x))


def _relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0)


ACTIVATION: dict[str, Callable[[FloatArray], FloatArray]] = {
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "silu": _silu,
    "swish": _silu,
    "relu": _relu,
    # of a projection
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": _relu,
    "GELU": _gelu,
    "SiLU": _silu,
    "Sigmoid": _sigmoid,
}


def turns(place: NDArray[np.int64], head_dim: int, theta: float) -> tuple[FloatArray, FloatArray]:
    """Return cosine and sine of each position's angles: (T, 1, 1, head_dim / 2) each."""
    angles = place[:, None, None, None] * theta ** (np.arange(0, head_dim, 2) / -head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: FloatArray, cosine: FloatArray, sine: FloatArray) -> FloatArray:
    """Rotate each pair (i, i + head_dim / 2) of x (T, 2, heads, head_dim) by its position's angle."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)


def bias(place: NDArray[np.int64], attended: NDArray[np.bool_] | None, window: int | None) -> FloatArray:
    """Return what is added to the scores: 0 where a key may be seen, else a number that its weight does not survive."""
    seen = np.ones((len(place), len(place)), dtype=bool) if attended is None else np.tile(attended, (len(place), 1))
    if window is not None:
        seen &= np.abs(place[:, None] - place) <= window
    return np.where(seen, np.float32(0), np.float32(-1e30))


def attend(query: FloatArray, key: FloatArray, value: FloatArray, bias: FloatArray | None) -> FloatArray:
    """Attend: three of (T, heads, head_dim), bias (T, T) -> (T, hidden)."""
    scaled: FloatArray = query * np.float32(query.shape[-1] ** -0.5)
    weights: FloatArray = scaled.transpose(1, 0, 2) @ key.transpose(1, 2, 0)  # (heads, T, T)
    if bias is not None:
        weights += bias
    weights -= weights.max(axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    if bias is not None:
        weights *= bias == 0  # a token that sees no key gets zeros
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(1e-30))
    mixed: FloatArray = (weights @ value.transpose(1, 0, 2)).transpose(1, 0, 2)
    return mixed.reshape(len(query), -1)


def project(x: FloatArray, layer: SavedLayer[FloatArray]) -> FloatArray:
    """Apply a layer of a projection: (rows, in) -> (rows, out)."""
    out = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    out = ACTIVATION[layer.activation.rpartition(".")[2]](out)
    if layer.use_residual:
        out = out + (x if layer.residual is None else x @ layer.residual.T)
    return out
