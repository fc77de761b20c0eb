"""What the machine can do at most: how fast it multiplies matrices of a model's shapes."""

from collections.abc import Callable, Sequence

import torch

from mbretrieve.bench.flops import Shape, matrices
from mbretrieve.models.amx import Rows
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.int8 import Int8Linear

PEAKS: dict[tuple[str, str], float] = {
    (name, dtype): 989e3 for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3") for dtype in ("bfloat16", "float16")
}
"""GFLOP/s of dense matrix products that a maker promises, by what torch calls the device (of the SXM form: the others
have less) and dtype: NVIDIA H100 and H200 Tensor Core GPU datasheets."""
_LAYERS = 4  # so many layers' weights, so that they come from memory where a model's would


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def products(
    config: ModernBertConfig, tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[], None], int]:
    """Return a function that takes ``tokens`` rows through the matrices of some layers, and its operations."""
    layers = max(1, min(_LAYERS, config.num_hidden_layers))
    shapes = matrices(config)
    if dtype == torch.int8:
        return _products_of_bytes(shapes * layers, tokens), 2 * tokens * layers * sum(
            into * out for into, out in shapes
        )
    rows = {size: torch.randn(tokens, size, device=device).to(dtype) for size in {rows for rows, _ in shapes}}
    weights = [torch.randn(out, into, device=device).to(dtype) for _ in range(layers) for into, out in shapes]
    outs = {out: torch.empty(tokens, out, dtype=dtype, device=device) for _, out in shapes}

    def run() -> None:
        with torch.inference_mode():
            for weight in weights:
                torch.mm(rows[weight.shape[1]], weight.T, out=outs[weight.shape[0]])
        synchronize(device)

    return run, 2 * tokens * layers * sum(into * out for into, out in shapes)


def _products_of_bytes(shapes: Sequence[Shape], tokens: int) -> Callable[[], None]:
    """Return a function that takes rows of bytes through matrices (in, out) of bytes, by oneDNN, into bfloat16."""
    rows = {
        size: Rows(torch.randint(-127, 128, (tokens, size), dtype=torch.int8), torch.ones(tokens)) for size, _ in shapes
    }
    linears = [(rows[into], Int8Linear(torch.nn.Linear(into, out, bias=False))) for into, out in shapes]

    def run() -> None:
        with torch.inference_mode():
            for given, linear in linears:
                linear.product(given)

    return run
