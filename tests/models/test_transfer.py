"""What goes to a device and back. No GPU is needed: ``meta`` is a device that computes nothing, and what CUDA would be
asked for is written down by tensors that say they are there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mbretrieve.models import attention, encoder, load_encoder, modernbert
from mbretrieve.models.attention import PackedBatch
from mbretrieve.models.transfer import OnTheWay, to_device
from mbretrieve.types import Kind
from tests.models import small

META = torch.device("meta")


class Leaving(TorchDispatchMode):
    """Write down the operations that make a tensor on ``meta`` of one on the CPU, other than in ``allowed``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.sent: list[tuple[torch.dtype, int]] = []
        self._allowed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not self._allowed and any(x.is_cpu for x in given) and any(x.is_meta for x in made):
            self.found.append(str(func))
        return out

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        yield
        self._allowed = False

    def to_device(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.sent.append((tensor.dtype, tensor.numel()))
        with self.allowed():
            return to_device(tensor, device)


@pytest.mark.parametrize("kind", ["colbert", "dense"])
@pytest.mark.parametrize("side", ["queries", "documents"])
def test_all_that_leaves_the_cpu_in_a_forward_is_sent_from_pinned_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, side: str
) -> None:
    model: Any = load_encoder(kind, small.pylate(tmp_path / "model"), device="cpu", dtype="float32")
    model.backbone.to(META)
    model.projection.to(META)
    frame = getattr(model, side)
    batch = frame.prepare(small.TEXTS)
    mode = Leaving()
    monkeypatch.setattr(encoder, "to_device", mode.to_device)
    monkeypatch.setattr(attention, "to_device", mode.to_device)
    monkeypatch.setattr(modernbert, "_matmul_dtype", lambda x: x.dtype)  # autocast does not know of meta
    with torch.inference_mode(), mode:
        out = model.project(batch, frame) if kind == "colbert" else model.pool(batch, frame)
    assert out.device == META
    assert mode.found == []
    tokens = sum(len(text.ids) for text in batch)
    expected = [(torch.int64, tokens), (torch.int32, len(batch) + 1)]
    if frame.attended(batch) is not None:
        expected.append((torch.bool, tokens))
    assert sorted(mode.sent, key=str) == sorted(expected, key=str), "the ids, where texts end, what is not attended"


def test_what_is_not_sent_so_is_found() -> None:
    with Leaving() as mode:
        torch.arange(3).to(META)
    assert len(mode.found) == 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_places_made_of_the_bounds_are_those_of_the_texts(lengths: list[int]) -> None:
    batch = PackedBatch(lengths, device=torch.device("cpu"), dtype=torch.float32)
    assert batch.bounds.tolist() == np.cumsum([0, *lengths]).tolist()
    assert batch.text_of.tolist() == [text for text, length in enumerate(lengths) for _ in range(length)]
    assert batch.positions.tolist() == [place for length in lengths for place in range(length)]
    assert (batch.bounds.dtype, batch.text_of.dtype, batch.positions.dtype) == (torch.int32, torch.int64, torch.int64)


class OnCuda(Tensor):
    """A tensor that says it is on a GPU, and writes down what is asked of it."""

    asked: list[Any]

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def of(cls, values: Any, asked: list[Any]) -> "OnCuda":
        made = torch.as_tensor(values).as_subclass(cls)
        made.asked = asked
        return made

    def pin_memory(self, *_: Any) -> Tensor:  # type: ignore[override]
        self.asked.append("pinned")
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        self.asked.append((args, kwargs))
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_:
            args[1].asked.append(("copy", kwargs))
            args = args[0], args[1].as_subclass(Tensor)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_to_a_gpu_it_is_copied_from_pinned_memory_and_nobody_waits() -> None:
    asked: list[Any] = []
    to_device(OnCuda.of([1, 2], asked), torch.device("cuda", 1))
    assert asked == ["pinned", ((torch.device("cuda", 1),), {"non_blocking": True})]
    asked.clear()
    to_device(OnCuda.of([1, 2], asked), torch.device("mps"))
    assert asked == [((torch.device("mps"),), {})], "other devices know no pinned memory"


def test_from_a_gpu_it_is_copied_into_pinned_memory_and_waited_for_when_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    class Event:
        def record(self, stream: Any) -> None:
            asked.append(("recorded", stream))

        def synchronize(self) -> None:
            asked.append("waited")

    empty = torch.empty

    def pinned(*args: Any, pin_memory: bool, **kwargs: Any) -> Tensor:
        asked.append(("room", pin_memory))
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    way = OnTheWay([OnCuda.of([[1.5, 2.5]], asked), OnCuda.of([3], asked)])
    copied = ("copy", {"non_blocking": True})
    before = [("room", True), ("room", True), copied, copied, ("recorded", "the stream of cpu")]
    assert asked == before, "the event is behind all copies"
    rows, count = way.arrays()
    assert asked == [*before, "waited"]
    assert (rows.tolist(), count.tolist()) == ([[1.5, 2.5]], [3])
    assert (rows.dtype, count.dtype) == (np.float32, np.int64)
