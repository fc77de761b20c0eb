"""What keeps a GPU from waiting: its next input is made in a thread, and copies overlap with what it computes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Item = TypeVar("Item")
_END: Any = object()


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, each made in a thread while the one before it is in use; errors come where the item would have."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting = thread.submit(next, items, _END)
        while (item := waiting.result()) is not _END:
            waiting = thread.submit(next, items, _END)
            yield item


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; to a CUDA one from pinned memory, so that nobody waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class OnTheWay:
    """Tensors on their way to the CPU: a CUDA device copies them into pinned memory while it is told what is next."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._arrived: torch.cuda.Event | None = None
        if not all(tensor.is_cuda for tensor in tensors):
            self._tensors = [tensor.cpu() for tensor in tensors]
            return
        self._tensors = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for here, there in zip(self._tensors, tensors, strict=True):
            here.copy_(there, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def arrays(self) -> list[NDArray[Any]]:
        """Return them, once they are here. They are pinned, so that what is kept of them is to be copied."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._tensors]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory ended: not every allocator of torch's has a class of its own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "MPS backend out of memory"))
