"""GradCache: the gradient of a loss over a whole batch, in the memory of one micro-batch (Gao et al. 2021,
https://arxiv.org/abs/2101.06983)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Encoded = TypeVar("Encoded", Tensor, tuple[Tensor, ...])
"""What becomes of a micro-batch: one tensor, or several (a pooled head's and a token head's)."""


def cached_backward(
    encode: Callable[[int], Encoded],
    count: int,
    loss: Callable[[list[Encoded]], Tensor],
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Add the gradient of ``loss([encode(0), ..., encode(count - 1)])`` to the parameters; return the loss, detached.

    The micro-batches are encoded without a graph; the loss gives its gradient on what came out; then each is encoded
    again, with a graph, and its part of that gradient sent back through it. Kept at any time: the graph of one
    micro-batch, and all representations with their gradient. Random numbers repeat, so that both passes drop the same;
    whatever else ``encode`` depends on must not change in between. A single micro-batch is encoded once.

    Queries and documents are micro-batches like any others: ``loss`` knows which is which by its place. Parameters that
    ``loss`` uses itself, a temperature for one, get their gradient too. ``no_sync`` is entered around every micro-batch
    but the last, whose backward is the one that DistributedDataParallel is to synchronise.
    Raises: ValueError if ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least one micro-batch")
    if count == 1:
        whole = loss([encode(0)])
        torch.autograd.backward(whole)
        return whole.detach()
    found: list[Encoded] = []
    randomness: list[_Randomness] = []
    with torch.no_grad():
        for place in range(count):
            randomness.append(_Randomness())
            found.append(_leaves(encode(place)))
    # Under autocast the weights' low-precision copies made above have no graph: used again, they would get no gradient.
    torch.clear_autocast_cache()
    value = loss(found)
    torch.autograd.backward(value)
    for place, state in enumerate(randomness):
        with nullcontext() if place == count - 1 else no_sync(), state.repeated():
            _send_back(encode(place), found[place])
    return value.detach()


def _leaves(encoded: Encoded) -> Encoded:
    """Make of each floating tensor a leaf whose gradient is kept."""
    if isinstance(encoded, Tensor):
        return encoded.detach().requires_grad_(encoded.is_floating_point())
    return tuple(part.detach().requires_grad_(part.is_floating_point()) for part in encoded)


def _send_back(again: Encoded, found: Encoded) -> None:
    """Send the gradient kept on ``found`` through the graph of ``again``, and let it go."""
    parts = [again] if isinstance(again, Tensor) else list(again)
    leaves = [found] if isinstance(found, Tensor) else list(found)
    pairs = [(part, leaf.grad) for part, leaf in zip(parts, leaves, strict=True) if part.requires_grad]
    # A part that the loss does not use has no gradient, but DDP still waits for its parameters.
    grads = [torch.zeros_like(part) if grad is None else grad for part, grad in pairs]
    torch.autograd.backward([part for part, _ in pairs], grads)
    for leaf in leaves:
        leaf.grad = None


class _Randomness:
    """The state of torch's generators, the CPU's and the current GPU's, as it was when this was made."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Draw inside the numbers that were drawn after this was made; outside nothing has changed."""
        devices = [] if self._gpu is None else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._gpu is not None:
                torch.cuda.set_rng_state(self._gpu)
            yield
