"""sentence-transformers' Dense module, read: one layer of a projection."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbretrieve.errors import ModelError
from mbretrieve.models.settings import SavedLayer, Weight
from mbretrieve.models.weights import Read

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU")
"""By the class's last name: sentence-transformers saves torch's whole path and makes them without arguments."""


def read_layer(
    folder: Path, config: Mapping[str, Any], default_activation: str, read: Read[Weight]
) -> SavedLayer[Weight]:
    """Read a Dense module's folder. Raises: ModelError naming what is missing, misshapen or not supported."""
    activation = str(config.get("activation_function", default_activation))
    if not activation.startswith("torch.nn.") or activation.rpartition(".")[2] not in ACTIVATIONS:
        raise ModelError(
            f"{folder}: activation {activation} is not supported, expected one of {', '.join(ACTIVATIONS)}"
        )
    sizes = config.get("out_features"), config.get("in_features")
    use_residual = bool(config.get("use_residual", False))
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": sizes}
    if config.get("bias", True):
        shapes["linear.bias"] = sizes[:1]
    if use_residual and sizes[0] != sizes[1]:
        shapes["residual.weight"] = sizes
    tensors = read(folder)
    for name, shape in shapes.items():
        came = tuple(tensors[name].shape) if name in tensors else "missing"
        if came != shape:
            raise ModelError(f"{folder}: {name} is {came}, expected shape {shape} from its config.json")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ModelError(f"{folder}: a tensor {unknown[0]} that its config.json does not provide for")
    return SavedLayer(
        tensors["linear.weight"], tensors.get("linear.bias"), activation, use_residual, tensors.get("residual.weight")
    )
