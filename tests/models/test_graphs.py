"""A layer's halves as graphs: when they are made, and that they give the same: on a CPU, which else has none."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mbretrieve.errors import MbretrieveWarning
from mbretrieve.models import graphs
from mbretrieve.models.graphs import Graphs
from mbretrieve.models.modernbert import Layer, ModernBert

from .oracle import expected, got, ours, texts, theirs

BATCHES = [[1, 70, 33, 2, 257, 64, 64], [5, 7, 300, 80], [1], [64, 64]]


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graph from another test, and none that failed there."""
    monkeypatch.delenv("MBRETRIEVE_COMPILE", raising=False)
    monkeypatch.setattr(graphs, "_failed", [])
    compiled = graphs._compiled
    compiled.cache_clear()
    torch._dynamo.reset()
    yield
    compiled.cache_clear()
    torch._dynamo.reset()


def on_a_cpu(model: ModernBert, backend: str | Callable[..., Any] = "eager", long_job: int | None = 0) -> ModernBert:
    model.graphs.devices, model.graphs.backend, model.graphs.long_job = frozenset({"cpu"}), backend, long_job
    return model


class Counted:
    """A compiler that leaves a graph as it is, and counts graphs and the tokens that each run of one has."""

    def __init__(self) -> None:
        self.graphs = 0
        self.sizes: set[int] = set()

    def __call__(self, module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*inputs: Any) -> Any:
            self.sizes.update(
                x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim >= 2 and x.shape[0] % 64 == 0
            )
            return module(*inputs)

        return run


CONFIGS: list[dict[str, Any]] = [
    {"num_hidden_layers": 6},
    {"num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    {"num_hidden_layers": 3, "hidden_activation": "gelu_new", "num_attention_heads": 1},
]


@pytest.mark.parametrize("config", CONFIGS)
@torch.inference_mode()
def test_graphs_give_the_same_of_batches_that_are_filled_up(config: dict[str, Any]) -> None:
    oracle = theirs(**config)
    model, counted = ours(oracle), Counted()
    batches = [texts(lengths, seed) for seed, lengths in enumerate(BATCHES)]
    wanted = [got(model, ids) for ids in batches]
    on_a_cpu(model, counted)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MbretrieveWarning)  # a graph that breaks, or that serves one size only, fails
        found = [got(model, ids) for ids in batches]
    for ids, ours_, before in zip(batches, found, wanted, strict=True):
        torch.testing.assert_close(ours_, before, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours_, expected(oracle, ids), atol=1e-5, rtol=0)
    assert counted.graphs == 3, "for what is before attention in the first layer and in others, and what is behind it"
    assert {512, 448, 64, 128} <= counted.sizes


@torch.inference_mode()
def test_tokens_that_nobody_attends_to_stay_so_in_graphs() -> None:
    oracle = theirs()
    ids = texts([32, 32, 300, 7])
    attended = [torch.rand(len(text), generator=torch.Generator().manual_seed(1)) < 0.7 for text in ids]
    found = got(on_a_cpu(ours(oracle)), ids, attended)
    torch.testing.assert_close(found, expected(oracle, ids, attended), atol=1e-5, rtol=0)
    assert not graphs._failed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_streams_go_through_graphs(dtype: torch.dtype) -> None:
    oracle, ids = theirs(), texts(BATCHES[0])
    found = got(on_a_cpu(ours(oracle).to(dtype)), ids)
    assert torch.cosine_similarity(found.float(), expected(oracle, ids), dim=-1).min() >= 0.999
    assert not graphs._failed


def test_only_a_long_job_on_cuda_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def noted(function: Any, backend: Any) -> Any:
        made.append(function)
        return function

    monkeypatch.setattr(graphs, "_compiled", noted)
    model, ids = ours(theirs(num_hidden_layers=2)), texts([100, 100])
    assert model.graphs.devices == {"cuda"}
    assert model.graphs.long_job == graphs.LONG_JOB >= 1 << 24
    with torch.inference_mode():
        assert not Graphs().serve(torch.empty(graphs.LONG_JOB + 1, device="meta"))
        model.graphs.long_job = 0
        got(model, ids)
        assert not made, "not on a CPU"
        on_a_cpu(model, long_job=400)
        for _ in range(2):
            got(model, ids)
        assert not made, "400 tokens are not more than 400"
        got(model, ids)
        assert made == [Layer._before, Layer._after] * 2
        made.clear()
        monkeypatch.setenv("MBRETRIEVE_COMPILE", "0")
        got(model, ids)
        monkeypatch.delenv("MBRETRIEVE_COMPILE")
        model.graphs.long_job = None
        got(model, ids)
        got(on_a_cpu(model).train(), ids)
    got(model.eval(), ids)
    assert not made, "neither where it is switched off, nor in training, nor with gradients"


def test_tokens_of_training_are_no_part_of_the_job() -> None:
    model, ids = on_a_cpu(ours(theirs(num_hidden_layers=1)), long_job=150), texts([100])
    for _ in range(3):
        got(model, ids)
    with torch.inference_mode():
        assert not model.graphs.serve(ids[0])
        assert model.graphs.serve(ids[0])


@torch.inference_mode()
def test_where_compiling_fails_layers_go_on_and_that_is_said_once() -> None:
    tried = []

    def broken(*_: Any) -> Any:
        tried.append(1)
        raise RuntimeError("no ptxas\nand more")

    oracle, ids = theirs(), texts(BATCHES[0])
    model = on_a_cpu(ours(oracle), broken)
    with pytest.warns(MbretrieveWarning, match=r"compiled here \(RuntimeError: no ptxas\): going on") as said:
        found = [got(model, ids) for _ in range(2)]
    assert (len(said), len(tried)) == (1, 1)
    for states in found:
        torch.testing.assert_close(states, expected(oracle, ids), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_memory_that_ends_within_a_graph_is_for_who_asked() -> None:
    def full(*_: Any) -> Callable[..., Any]:
        def run(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        return run

    with pytest.raises(torch.OutOfMemoryError):
        got(on_a_cpu(ours(theirs()), full), texts([70]))
    assert not graphs._failed


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_what_inductor_makes_of_them_gives_the_same(dtype: torch.dtype) -> None:
    oracle = theirs()
    model = on_a_cpu(ours(oracle).to(dtype), "inductor")
    for seed, lengths in enumerate(BATCHES):
        ids = texts(lengths, seed)
        found, want = got(model, ids).float(), expected(oracle, ids)
        if dtype == torch.float32:
            torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
        assert torch.cosine_similarity(found, want, dim=-1).min() >= 0.999
    assert not graphs._failed
