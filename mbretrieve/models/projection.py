"""The layers between the backbone and the vectors: a stack, as sentence-transformers and PyLate save it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mbretrieve.errors import ModelError
from mbretrieve.models.settings import DenseLayer
from mbretrieve.models.weights import read_tensors

# By the class's last name: sentence-transformers saves torch's whole path and makes them without arguments.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
    "LeakyReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
}


class Layer(nn.Module):
    """One ``DenseLayer`` as a module: (T, in) -> (T, out)."""

    def __init__(self, layer: DenseLayer) -> None:
        super().__init__()
        self.linear = _linear(layer.weight, layer.bias)
        self.residual = _linear(layer.residual, None) if layer.residual is not None else None
        self.activation_name, self.use_residual = layer.activation, layer.use_residual
        self.activation = _ACTIVATIONS[layer.activation.rpartition(".")[2]]()

    def forward(self, x: Tensor) -> Tensor:
        """Project each row: (T, in) -> (T, out)."""
        out: Tensor = self.activation(self.linear(x))
        if self.use_residual:
            out = out + (x if self.residual is None else self.residual(x))
        return out

    def record(self) -> DenseLayer:
        """Return the layer as it is now, to be saved."""
        residual = None if self.residual is None else self.residual.weight
        return DenseLayer(self.linear.weight, self.linear.bias, self.activation_name, self.use_residual, residual)


def projection(layers: Sequence[DenseLayer], width: int) -> nn.Sequential:
    """Stack layers on rows of ``width`` numbers. Raises: ModelError if one does not take what the one before gives."""
    for number, layer in enumerate(layers, 1):
        if layer.weight.shape[1] != width:
            raise ModelError(
                f"projection layer {number} takes rows of {layer.weight.shape[1]}, but is given rows of {width}"
            )
        width = layer.weight.shape[0]
    return nn.Sequential(*(Layer(layer) for layer in layers))


def read_layer(folder: Path, config: Mapping[str, Any], default_activation: str) -> DenseLayer:
    """Read a Dense module's folder. Raises: ModelError naming what is missing, misshapen or not supported."""
    activation = str(config.get("activation_function", default_activation))
    if not activation.startswith("torch.nn.") or activation.rpartition(".")[2] not in _ACTIVATIONS:
        raise ModelError(
            f"{folder}: activation {activation} is not supported, expected one of {', '.join(_ACTIVATIONS)}"
        )
    sizes = config.get("out_features"), config.get("in_features")
    use_residual = bool(config.get("use_residual", False))
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": sizes}
    if config.get("bias", True):
        shapes["linear.bias"] = sizes[:1]
    if use_residual and sizes[0] != sizes[1]:
        shapes["residual.weight"] = sizes
    tensors = read_tensors(folder)
    for name, shape in shapes.items():
        came = tuple(tensors[name].shape) if name in tensors else "missing"
        if came != shape:
            raise ModelError(f"{folder}: {name} is {came}, expected shape {shape} from its config.json")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise ModelError(f"{folder}: a tensor {unknown[0]} that its config.json does not provide for")
    return DenseLayer(
        tensors["linear.weight"], tensors.get("linear.bias"), activation, use_residual, tensors.get("residual.weight")
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    linear.load_state_dict(state, assign=True)
    return linear
