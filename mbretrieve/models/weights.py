"""Tensors on disk: safetensors only, whole or in shards, and the hash that tells one model's weights from another's."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mbretrieve.errors import ModelError
from mbretrieve.models.files import read_json
from mbretrieve.models.settings import Weight

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Read = Callable[[Path], dict[str, Weight]]
"""What reads the weights of a folder."""

FILE = "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "model.bin", "pytorch_model.bin.index.json")
_TO_SAFETENSORS = (
    "import torch; from safetensors.torch import save_file; "
    "w = torch.load('{0}/pytorch_model.bin', weights_only=True); "
    "save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{0}/model.safetensors', {{'format': 'pt'}})"
)
_FOLD = 512  # words
BFLOAT16 = np.dtype("V2")
"""What stands for bfloat16, which numpy does not know."""
# safetensors' names of the formats that models come in.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read_tensors(folder: Path) -> "dict[str, Tensor]":
    """Read a folder's weights, memory-mapped: model.safetensors, else the shards of its index.

    Raises: ModelError if there are none, they are damaged, or there is a pickle only (with the command to convert it).
    """
    from safetensors.torch import load_file

    return _read(folder, load_file)


def read_arrays(folder: Path) -> dict[str, Array]:
    """Read a folder's weights as ``read_tensors`` does, without torch: arrays of what is mapped, not to be written."""
    return _read(folder, _map_file)


def as_array(tensor: "Tensor") -> Array:
    """See a tensor as an array, a copy only if it is on another device or not in one piece."""
    import torch

    owned = tensor.detach().cpu().contiguous()
    if owned.dtype == torch.bfloat16:
        return owned.view(torch.int16).numpy().view(BFLOAT16)
    array: Array = owned.numpy()
    return array


def as_float32(array: Array) -> NDArray[np.float32]:
    """Return an array's numbers as float32: itself if they are."""
    if array.dtype == BFLOAT16:  # the upper half of a float32
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _read(folder: Path, read: Callable[[Path], dict[str, Weight]]) -> dict[str, Weight]:
    if (folder / FILE).is_file():
        return _read_file(folder / FILE, read)
    if (folder / _SHARDS).is_file():
        names = read_json(folder / _SHARDS).get("weight_map")
        if not isinstance(names, dict) or not all(_is_plain(name) for name in names.values()):
            raise ModelError(f"{folder / _SHARDS} has no weight_map of file names beside it")
        shards = sorted(set(names.values()))
        return {key: value for name in shards for key, value in _read_file(folder / name, read).items()}
    if any((folder / name).exists() for name in _PICKLES):
        command = _TO_SAFETENSORS.format(folder.as_posix())
        raise ModelError(
            f"{folder} has its weights in a pickle, which can run code when it is read, expected {FILE}: "
            f'if you trust it, convert it with: python -c "{command}"'
        )
    raise ModelError(f"{folder} has no {FILE}, the only format of weights that is read")


def write_tensors(tensors: "Mapping[str, Tensor]", folder: Path) -> None:
    """Write model.safetensors, each tensor with memory of its own, as the format wants."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(owned, folder / FILE, metadata={"format": "pt"})


def weights_hash(arrays: Iterable[tuple[str, Array]], more: bytes) -> str:
    """Hash named weights, and ``more`` beside them, as 32 hex digits.

    Each start of the command line pays for this, so an array's bytes are first folded: summed as 64-bit words into 512
    columns, which took a quarter of the time of hashing them all. Any training step changes the sums; nobody is meant
    to be stopped from forging them.
    """
    digest = hashlib.blake2b(more, digest_size=16)
    for name, array in sorted(arrays, key=lambda item: item[0]):
        dtype = "bfloat16" if array.dtype == BFLOAT16 else array.dtype.name
        digest.update(f"{name} {tuple(array.shape)} torch.{dtype}".encode())
        digest.update(_folded(array))
    return digest.hexdigest()


def _folded(array: Array) -> bytes:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(data) - len(data) % (_FOLD * 8)
    columns = data[:whole].view(np.uint64).reshape(-1, _FOLD).sum(axis=0, dtype=np.uint64)
    return bytes(columns.tobytes() + data[whole:].tobytes())


def _map_file(path: Path) -> dict[str, Array]:
    """Map a safetensors file: its tensors lie one behind the other behind a header and the header's length."""
    with safe_open(path, framework="np") as file:  # it checks the header, and that the tensors fill the file
        names = file.offset_keys()
        slices = [file.get_slice(name) for name in names]
        kinds = [(one.get_dtype(), tuple(one.get_shape())) for one in slices]
    data = np.memmap(path, dtype=np.uint8, mode="r")
    at = 8 + int(data[:8].view("<u8")[0])
    arrays: dict[str, Array] = {}
    for name, (kind, shape) in zip(names, kinds, strict=True):
        if kind not in _DTYPES:
            raise ValueError(f"{name} has numbers of type {kind}")
        size = math.prod(shape) * _DTYPES[kind].itemsize
        arrays[name] = data[at : at + size].view(_DTYPES[kind]).reshape(shape)
        at += size
    return arrays


def _read_file(path: Path, read: Callable[[Path], dict[str, Weight]]) -> dict[str, Weight]:
    try:
        return read(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}): fetch it again") from error


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name
