"""Attention in bfloat16 on CPUs with AMX: the kernel of ``amx.cpp``, which this machine's own compiler builds, once.

It is built in the first job that is long enough to win by it, a second's work, and kept in the user's cache folder.
Where there is no AMX, no compiler or no such folder, or MBRETRIEVE_COMPILE is 0, torch's kernels do the work.
"""

import ctypes
import math
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

HEAD_DIM = 64
"""Numbers a head: the kernel knows no other."""
LANES = 16
"""Rows are taken so many numbers at a time: their width is a multiple."""
_LONG_JOB = 4096  # tokens of a batch from which on a job is taken to be long enough for a compiler to be called
_SHORT = 512  # tokens of a batch for which no threads are started
_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = ("-std=c++17", "-O3", "-march=sapphirerapids", "-shared", "-fPIC", "-pthread")
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_FUNCTIONS = {
    "mbretrieve_attend": (*[_POINTER] * 5, _LONG, _POINTER, _LONG, _INT, _INT, _FLOAT, _INT),
    "mbretrieve_norm": (*[_POINTER] * 4, _FLOAT, _LONG, _INT, *[_POINTER] * 3, _INT),
    "mbretrieve_quantize": (_POINTER, _LONG, _INT, _POINTER, _POINTER, _INT),
    "mbretrieve_gate": (_POINTER, _POINTER, _LONG, _INT, _POINTER, _POINTER, _INT),
}


def serves(x: Tensor, head_dim: int) -> bool:
    """Whether ``attend`` can be called for hidden states like these, (T, hidden)."""
    tokens = len(x)
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and head_dim == HEAD_DIM
        and tokens >= _SHORT
        and (_library(False) is not None or (tokens >= _LONG_JOB and _library(True) is not None))
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
    library = _load()
    assert library is not None  # as ``serves`` found
    return library


def _library(build: bool) -> ctypes.CDLL | None:
    """Return the kernel if it has been built; ``build`` it, if not, in case that can be done."""
    library = _load()
    if library is None and build and _build():
        _load.cache_clear()
        library = _load()
    return library


@cache
def _load() -> ctypes.CDLL | None:
    """Load the kernel, if it is there and the system grants its tiles."""
    try:
        path = _place() if _has_amx() else None
        if path is None:
            return None
        owner = path.stat()
        if owner.st_uid != os.getuid() or owner.st_mode & 0o022:  # others could have put code of theirs there
            return None
        library = ctypes.CDLL(str(path))
        for name, arguments in _FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        return library if library.mbretrieve_prepare() == 0 else None
    except (OSError, AttributeError):
        return None


def _has_amx() -> bool:
    if os.environ.get("MBRETRIEVE_COMPILE") == "0" or platform.system() != "Linux":
        return False
    # The public spelling is younger than the oldest torch we run on.
    return torch.cpu._is_amx_tile_supported() and torch.cpu._is_avx512_bf16_supported()


@cache
def _place() -> Path | None:
    """Return where the kernel is kept, under a name of its own for each source."""
    try:
        cache_folder = Path(
            os.environ.get("MBRETRIEVE_CACHE")
            or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbretrieve"
        )
    except RuntimeError:  # a user without a home
        return None
    digest = blake2b(_source() + " ".join(_OPTIONS).encode(), digest_size=8).hexdigest()
    return cache_folder / "kernels" / f"amx-{digest}.so"


def _source() -> bytes:
    return (files("mbretrieve.models") / "amx.cpp").read_bytes()


@cache
def _build() -> bool:
    """Compile the kernel; False, without a word, where that cannot be done."""
    path, compiler = _place(), next(filter(None, map(shutil.which, _COMPILERS)), None)
    if path is None or compiler is None or not _has_amx():
        return False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, made = Path(folder) / "amx.cpp", Path(folder) / "amx.so"
            source.write_bytes(_source())
            command = [compiler, *_OPTIONS, "-o", str(made), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603
            made.chmod(0o700)
            made.replace(path)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
