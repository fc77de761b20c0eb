"""Tensors on disk: safetensors only, whole or in shards, and the hash that tells one model's weights from another's."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mbretrieve.errors import ModelError
from mbretrieve.models.files import read_json

FILE = "model.safetensors"
_SHARDS = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "model.bin", "pytorch_model.bin.index.json")
_TO_SAFETENSORS = (
    "import torch; from safetensors.torch import save_file; "
    "w = torch.load('{0}/pytorch_model.bin', weights_only=True); "
    "save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{0}/model.safetensors', {{'format': 'pt'}})"
)
_FOLD = 512  # words


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read a folder's weights, memory-mapped: model.safetensors, else the shards of its index.

    Raises: ModelError if there are none, they are damaged, or there is a pickle only (with the command to convert it).
    """
    if (folder / FILE).is_file():
        return _read(folder / FILE)
    if (folder / _SHARDS).is_file():
        names = read_json(folder / _SHARDS).get("weight_map")
        if not isinstance(names, dict) or not all(_is_plain(name) for name in names.values()):
            raise ModelError(f"{folder / _SHARDS} has no weight_map of file names beside it")
        return {key: value for name in sorted(set(names.values())) for key, value in _read(folder / name).items()}
    if any((folder / name).exists() for name in _PICKLES):
        command = _TO_SAFETENSORS.format(folder.as_posix())
        raise ModelError(
            f"{folder} has its weights in a pickle, which can run code when it is read, expected {FILE}: "
            f'if you trust it, convert it with: python -c "{command}"'
        )
    raise ModelError(f"{folder} has no {FILE}, the only format of weights that is read")


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write model.safetensors, each tensor with memory of its own, as the format wants."""
    folder.mkdir(parents=True, exist_ok=True)
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(owned, folder / FILE, metadata={"format": "pt"})


def weights_hash(tensors: Iterable[tuple[str, Tensor]], more: bytes) -> str:
    """Hash named weights, and ``more`` beside them, as 32 hex digits.

    Each start of the command line pays for this, so a tensor's bytes are first folded: summed as 64-bit words into 512
    columns, which took a quarter of the time of hashing them all. Any training step changes the sums; nobody is meant
    to be stopped from forging them.
    """
    digest = hashlib.blake2b(more, digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_folded(tensor))
    return digest.hexdigest()


def _folded(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    whole = len(data) - len(data) % (_FOLD * 8)
    columns = data[:whole].view(np.uint64).reshape(-1, _FOLD).sum(axis=0, dtype=np.uint64)
    return bytes(columns.tobytes() + data[whole:].tobytes())


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}): fetch it again") from error


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name
