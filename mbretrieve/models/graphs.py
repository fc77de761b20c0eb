"""The halves of a layer as compiled graphs, around its attention: for long jobs on CUDA, where it saves launches.

Both halves are functions of single tokens, so that a graph holds for any number of them, and layers of one build share
it: a model needs three. Attention stays the varlen kernel that it is. Nothing here imports the compiler before a job
is long, and where it fails, layers go on as they are written.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mbretrieve.errors import MbretrieveWarning
from mbretrieve.models.transfer import out_of_memory

if TYPE_CHECKING:
    from mbretrieve.models.modernbert import Layer

LONG_JOB = 32 * 1024 * 1024
"""Tokens that a model encodes in this process before its layers are compiled: half a minute's work of a ModernBERT-base
on the fastest GPUs, and several minutes' on others, where compiling takes some ten seconds."""

Half = Callable[..., tuple[Tensor, ...]]


class Graphs:
    """What a model knows of its job. ``long_job``: tokens after which layers are compiled; None is never.

    MBRETRIEVE_COMPILE=0 in the environment is never, too, as it is for the kernels of CPUs.
    """

    def __init__(self) -> None:
        self.long_job: int | None = LONG_JOB
        self.devices = frozenset({"cuda"})
        self.backend: str | Callable[..., Any] = "inductor"
        self._tokens = 0

    def serve(self, x: Tensor) -> bool:
        """Count the tokens of a forward without gradients, (T, ...); whether its layers are to be taken as graphs."""
        if x.device.type not in self.devices or torch.is_grad_enabled():
            return False
        self._tokens += len(x)
        return (
            self.long_job is not None
            and self._tokens > self.long_job
            and os.environ.get("MBRETRIEVE_COMPILE") != "0"
            and not _failed
        )

    def half(self, function: Half, layer: "Layer") -> Half:
        """Return a layer's half, given as its class has it, as a function of streams."""

        def run(*streams: Tensor) -> tuple[Tensor, ...]:
            if _failed:
                return function(layer, *streams)
            try:
                return _run(_compiled(function, self.backend), layer, *streams)
            except Exception as error:  # of the compiler's many, or what the half itself says: then it says it again
                cause = getattr(error, "inner_exception", error)  # as the compiler wraps what its parts say
                if out_of_memory(cause):
                    raise cause from None
                _do_without(cause)
            return function(layer, *streams)

        return run


def _run(graph: Any, layer: "Layer", *streams: Tensor) -> tuple[Tensor, ...]:
    for stream in streams:
        # Else the first batch's number of tokens would be taken for the only one.
        torch._dynamo.mark_dynamic(stream, 0)
    out: tuple[Tensor, ...] = graph(layer, *streams)
    return out


@cache
def _compiled(function: Half, backend: str | Callable[..., Any]) -> Any:
    """Return the graph of a function, made when it is first called; a graph in pieces would save nothing."""
    return torch.compile(function, backend=backend, fullgraph=True)


_failed: list[str] = []  # what kept a graph from being made: no other is tried


def _do_without(error: Exception) -> None:
    said = (str(error).strip().splitlines() or [""])[0]
    if not _failed:
        warnings.warn(
            f"layers cannot be compiled here ({type(error).__name__}: {said}): going on without, as fast as so far; "
            "MBRETRIEVE_COMPILE=0 keeps it from being tried",
            MbretrieveWarning,
            stacklevel=2,
        )
    _failed.append(said)
