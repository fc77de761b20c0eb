"""StableAdamW is AdamW where nothing is clipped, the paper's formula everywhere, and no spike throws it off."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mbretrieve.errors import DataError
from mbretrieve.training.optim import StableAdamW, make_optimizer, parameter_groups, set_learning_rate

BETAS, EPS = (0.9, 0.98), 1e-6


def run(made: type, gradients: list[np.ndarray], **options: Any) -> list[np.ndarray]:
    """The parameter after each step, from ones."""
    parameter = nn.Parameter(torch.ones(gradients[0].shape, dtype=torch.float64))
    optimizer = made([parameter], **{"lr": 0.01, "betas": BETAS, "eps": EPS, **options})
    path = []
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return path


def paper(gradients: list[np.ndarray], lr: float, decay: float) -> list[np.ndarray]:
    """Algorithm 2 of the paper as it is written there: moments with betas that correct the bias themselves."""
    theta, v, u = np.ones_like(gradients[0]), 0.0, 0.0
    path = []
    for t, g in enumerate(gradients, 1):
        beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in BETAS)
        v = beta1 * v + (1 - beta1) * g
        u = beta2 * u + (1 - beta2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(u, EPS**2)))
        eta = lr / max(1.0, rms)
        theta = theta - eta * decay * theta - eta * v / (np.sqrt(u) + EPS)
        path.append(theta)
    return path


def gradients(seed: int, steps: int = 12, spike: float = 1.0, shrink: float = 1.0) -> list[np.ndarray]:
    drawn = np.random.default_rng(seed)
    sizes = [shrink**step for step in range(steps - 1)] + [spike * shrink ** (steps - 1)]
    return [drawn.normal(size=(5, 7)) * size for size in sizes]


def test_without_clipping_it_is_adamw() -> None:
    first = gradients(0)[0]
    falling = [first * 0.8**step for step in range(12)]  # each smaller than what the second moment foresaw
    ours = run(StableAdamW, falling, weight_decay=0.1)
    for mine, other in zip(ours, run(torch.optim.AdamW, falling, weight_decay=0.1), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


@given(st.integers(0, 1000), st.floats(1e-3, 1e6), st.floats(0.5, 2.0))
def test_every_step_is_the_papers(seed: int, spike: float, shrink: float) -> None:
    path = gradients(seed, spike=spike, shrink=shrink)
    for mine, other in zip(run(StableAdamW, path, weight_decay=0.3), paper(path, 0.01, 0.3), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-9)


@given(st.integers(0, 1000), st.floats(1, 1e8))
def test_no_spike_makes_a_step_larger_than_the_learning_rate(seed: int, spike: float) -> None:
    path = run(StableAdamW, gradients(seed, spike=spike))
    assert np.sqrt(np.mean((path[-1] - path[-2]) ** 2)) <= 0.01


def test_the_same_spike_throws_adamw_off() -> None:
    spiked = gradients(0, steps=200, spike=1e4)
    steps = {}
    for made in (torch.optim.AdamW, StableAdamW):
        path = run(made, spiked, betas=(0.9, 0.999), weight_decay=0.0)
        steps[made] = np.sqrt(np.mean((path[-1] - path[-2]) ** 2))
    assert steps[torch.optim.AdamW] > 0.012
    assert steps[StableAdamW] < 0.002


def test_its_state_is_tensors_alone_and_goes_on_where_it_was() -> None:
    path = gradients(1)
    whole = run(StableAdamW, path)
    parameter = nn.Parameter(torch.ones(5, 7, dtype=torch.float64))
    optimizer = StableAdamW([parameter], lr=0.01, betas=BETAS, eps=EPS)
    for step, gradient in enumerate(path):
        if step == 6:
            saved = optimizer.state_dict()
            assert all(isinstance(value, torch.Tensor) for state in saved["state"].values() for value in state.values())
            optimizer = StableAdamW([parameter], lr=0.5)
            optimizer.load_state_dict(saved)
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), whole[-1])


def test_a_parameter_without_a_gradient_stays_and_a_closure_is_called() -> None:
    moved, still = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([moved, still], lr=0.1, weight_decay=0.1)

    def closure() -> float:
        loss = moved.sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert torch.equal(still, torch.ones(3))
    assert (moved < 1).all()


@pytest.mark.parametrize("wrong", [{"betas": (1.0, 0.9)}, {"lr": -1.0}, {"eps": 0.0}, {"weight_decay": -0.1}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        StableAdamW([nn.Parameter(torch.ones(1))], **wrong)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.temperature = nn.Parameter(torch.tensor(0.05))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.decoder = nn.Linear(4, 11, bias=True)
        self.decoder.weight = self.embedding.weight


def test_only_matrices_decay_and_embeddings_have_their_own_rate() -> None:
    model = Tied()
    groups = {group["name"]: group for group in parameter_groups(model, lr=0.1, weight_decay=0.2, embedding_lr=0.4)}
    held = {name: [id(parameter) for parameter in group["params"]] for name, group in groups.items()}
    assert held == {
        "matrices": [id(model.layer.weight)],
        "embeddings": [id(model.embedding.weight)],
        "vectors": [
            id(p) for p in (model.temperature, model.layer.bias, model.norm.weight, model.norm.bias, model.decoder.bias)
        ],
    }
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "matrices": (0.1, 0.2),
        "embeddings": (0.4, 0.0),
        "vectors": (0.1, 0.0),
    }


@dataclass(frozen=True)
class Settings:
    name: str = "stableadamw"
    lr: float = 0.1
    embedding_lr: float | None = None
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.8, 0.9)
    eps: float = 1e-5


@pytest.mark.parametrize(("name", "made"), [("stableadamw", StableAdamW), ("adamw", torch.optim.AdamW)])
def test_a_configuration_names_its_optimizer(name: str, made: type) -> None:
    optimizer = make_optimizer(Tied(), Settings(name, embedding_lr=0.3))
    assert type(optimizer) is made
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-5 for group in optimizer.param_groups)
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.5)  # of the rate named, not of the last
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.15, 0.05]


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(DataError, match="'lion', expected one of adamw, stableadamw"):
        make_optimizer(Tied(), Settings("lion"))
