"""Where a model runs, and in which number format, when the caller does not say."""

from collections.abc import Sequence

import torch

from mbretrieve.errors import ModelError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def default_device() -> torch.device:
    """Return the first CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device a caller named, or the default; ModelError if torch does not know it, or it is not here."""
    if device is None:
        return default_device()
    try:
        found = torch.device(device)
    except RuntimeError as error:
        if isinstance(device, str) and "," in device:
            raise ModelError(
                f"device is {device!r}: one encoder runs on one; mbretrieve.load_encoder gives one of several processes"
            ) from error
        raise ModelError(f"device is {device!r}, expected a torch device such as cpu, cuda or cuda:1") from error
    try:
        torch.zeros(1, device=found).item()  # a name is good on every machine: only using it tells
    except (
        RuntimeError,
        AssertionError,
        ImportError,
    ) as error:  # each backend has its own way to say that it is absent
        raise ModelError(
            f"device is '{found}', which torch cannot use here: name one that it can, such as {default_device()}"
        ) from error
    return found


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, float32 elsewhere.

    Emulated bfloat16 is several times slower than float32, so a CPU without AVX512-BF16 or AMX stays with float32.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # torch.cpu.get_capabilities, the public spelling, is younger than the oldest torch we run on.
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device, others: Sequence[str] = ()) -> torch.dtype:
    """Return the dtype a caller named, or the device's default; ModelError for a name that is none, or int8, which
    ``from_pretrained`` alone takes: nothing is trained in it. ``others``: what the caller takes beside these."""
    if dtype is None:
        return default_dtype(device)
    if isinstance(dtype, torch.dtype):
        if dtype in _DTYPES.values():
            return dtype
    elif dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype in ("int8", torch.int8):
        raise ModelError(f"dtype is int8, which is for encoding only, expected one of {', '.join(_DTYPES)}")
    raise ModelError(f"dtype is {dtype}, expected one of {', '.join([*_DTYPES, *others])}")
