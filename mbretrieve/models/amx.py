"""Attention in bfloat16 on CPUs with AMX: the kernel of ``amx.cpp``, which this machine's own compiler builds, once.

It is built in the first job that is long enough to win by it, a second's work. Where there is no AMX, or no kernel can
be had (see ``compiled``), torch's kernels do the work.
"""

import ctypes
import math
import platform
from typing import NamedTuple

import torch
from torch import Tensor

from mbretrieve.compiled import FLOAT, INT, LONG, POINTER, Compiled

HEAD_DIM = 64
"""Numbers a head: the kernel knows no other."""
LANES = 16
"""Rows are taken so many numbers at a time: their width is a multiple."""
_LONG_JOB = 4096  # tokens of a batch from which on a job is taken to be long enough for a compiler to be called
_SHORT = 512  # tokens of a batch for which no threads are started


def serves(x: Tensor, head_dim: int) -> bool:
    """Whether ``attend`` can be called for hidden states like these, (T, hidden)."""
    tokens = len(x)
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and head_dim == HEAD_DIM
        and tokens >= _SHORT
        and KERNEL.get(build=tokens >= _LONG_JOB) is not None
    )


def attend(stream: Tensor, table: Tensor, lengths: Tensor, window: int | None, units: Tensor | None = None) -> Tensor:
    """Rotate queries and keys and attend within each text: (T, 3 hidden) -> (T, hidden).

    ``stream``: of each token the queries of all heads, then their keys, then their values; with ``units``, (T,)
    float32, a token's numbers are to be multiplied by its unit. ``lengths``: (texts,) int64. ``table``: (2, positions,
    64) float32, as ``Rotary`` has it. ``window``: as in ``attention``.
    """
    tokens, width = len(stream), stream.shape[1] // 3
    stream, table = stream.contiguous(), table.contiguous()
    out = stream.new_empty(tokens, width)
    _loaded().mbretrieve_attend(
        stream.data_ptr(),
        _address(units),
        out.data_ptr(),
        table[0].data_ptr(),
        table[1, 0, HEAD_DIM // 2 :].data_ptr(),  # the first half has the other sign
        HEAD_DIM,
        lengths.data_ptr(),
        len(lengths),
        width // HEAD_DIM,
        -1 if window is None else window,
        math.log2(math.e) * HEAD_DIM**-0.5,  # weights are powers of two there
        torch.get_num_threads(),
    )
    return out


def normalize(x: Tensor, weight: Tensor, eps: float, more: "Rows | None" = None) -> Tensor:
    """Apply a layer norm without bias, (T, hidden) -> (T, hidden); to x is added first, in place, what ``more`` is."""
    out = torch.empty_like(x)
    _norm(x, more, weight, eps, out, None, None)
    return out


def normalize_to_bytes(x: Tensor, more: "Rows | None", weight: Tensor, eps: float) -> "Rows":
    """Do the same, and give bytes."""
    out = Rows(torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x)))
    _norm(x, more, weight, eps, None, *out)
    return out


def to_bytes(x: Tensor) -> "Rows":
    """Quantize each row: (T, width) bfloat16."""
    out = Rows(torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x)))
    _loaded().mbretrieve_quantize(
        x.data_ptr(), *x.shape, out.numbers.data_ptr(), out.units.data_ptr(), torch.get_num_threads()
    )
    return out


def gate_to_bytes(both: "Rows") -> "Rows":
    """Return ``gelu(a) * b`` of rows that have a, then b: (T, 2 width) -> (T, width) in bytes."""
    tokens, width = len(both.units), both.numbers.shape[1] // 2
    out = Rows(torch.empty(tokens, width, dtype=torch.int8), torch.empty(tokens))
    _loaded().mbretrieve_gate(
        both.numbers.data_ptr(),
        both.units.data_ptr(),
        tokens,
        width,
        out.numbers.data_ptr(),
        out.units.data_ptr(),
        torch.get_num_threads(),
    )
    return out


class Rows(NamedTuple):
    """Rows whose numbers are to be multiplied by the row's unit: (T, width) int8 or bfloat16, and (T,) float32."""

    numbers: Tensor
    units: Tensor


def _norm(
    x: Tensor,
    more: Rows | None,
    weight: Tensor,
    eps: float,
    out: Tensor | None,
    numbers: Tensor | None,
    units: Tensor | None,
) -> None:
    scale = weight.float()
    _loaded().mbretrieve_norm(
        x.data_ptr(),
        None if more is None else more.numbers.data_ptr(),
        None if more is None else more.units.data_ptr(),
        scale.data_ptr(),
        eps,
        *x.shape,
        _address(out),
        _address(numbers),
        _address(units),
        torch.get_num_threads(),
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _loaded() -> ctypes.CDLL:
    library = KERNEL.get()
    assert library is not None  # as ``serves`` found
    return library


def has_amx() -> bool:
    """Whether this machine's processor can run the kernel."""
    # The public spelling is younger than the oldest torch we run on.
    return platform.system() == "Linux" and torch.cpu._is_amx_tile_supported() and torch.cpu._is_avx512_bf16_supported()


KERNEL = Compiled(
    "mbretrieve.models",
    "amx",
    ("-O3", "-march=sapphirerapids"),
    {
        "mbretrieve_attend": (*[POINTER] * 5, LONG, POINTER, LONG, INT, INT, FLOAT, INT),
        "mbretrieve_norm": (*[POINTER] * 4, FLOAT, LONG, INT, *[POINTER] * 3, INT),
        "mbretrieve_quantize": (POINTER, LONG, INT, POINTER, POINTER, INT),
        "mbretrieve_gate": (POINTER, POINTER, LONG, INT, POINTER, POINTER, INT),
    },
    suits=lambda: has_amx(),
    starts=lambda library: library.mbretrieve_prepare() == 0,  # the system grants its tiles
)
