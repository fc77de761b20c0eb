"""The layers between the backbone and the vectors: a stack, as sentence-transformers and PyLate save it."""

from collections.abc import Sequence

from torch import Tensor, nn

from mbretrieve.errors import ModelError
from mbretrieve.models.dense_module import ACTIVATIONS
from mbretrieve.models.packing import filling
from mbretrieve.models.settings import DenseLayer

_ACTIVATIONS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in ACTIVATIONS}


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


class Projection(nn.Sequential):
    """A stack of layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Project each row: (T, in) -> (T, out)."""
        rows = len(x)
        if more := filling(x):
            x = nn.functional.pad(x, (0, 0, 0, more))
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return out[:rows]


def projection(layers: Sequence[DenseLayer], width: int) -> Projection:
    """Stack layers on rows of ``width`` numbers. Raises: ModelError if one does not take what the one before gives."""
    for number, layer in enumerate(layers, 1):
        if layer.weight.shape[1] != width:
            raise ModelError(
                f"projection layer {number} takes rows of {layer.weight.shape[1]}, but is given rows of {width}"
            )
        width = layer.weight.shape[0]
    return Projection(*(Layer(layer) for layer in layers))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    linear.load_state_dict(state, assign=True)
    return linear
