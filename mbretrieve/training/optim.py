"""The optimisers by name, and which parameters get which learning rate and weight decay."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from mbretrieve.errors import DataError


class StableAdamW(Optimizer):
    """AdamW whose step shrinks where the second moment lags behind the gradient.

    With ``m`` and ``v`` AdamW's bias-corrected moments, a tensor's step is
    ``lr / max(1, rms) * (m / (sqrt(v) + eps) + weight_decay * parameter)``, ``rms = sqrt(mean(g^2 / max(v, eps^2)))``:
    Adafactor's update clipping in AdamW (Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, algorithm 2). A
    gradient that ``v`` foresaw has an rms of about 1 and takes AdamW's step; a spike does not throw the weights off,
    and its direction is kept, so that clipping the gradient's norm is not needed beside it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}, expected two from 0 to below 1")
        if lr < 0 or eps <= 0 or weight_decay < 0:
            raise ValueError(f"lr {lr}, eps {eps}, weight_decay {weight_decay}: expected none negative, eps above 0")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step on every parameter that has a gradient; ``closure`` is called first, as torch's do."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)  # a tensor, as all of the state: safetensors holds nothing else
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2), eps = int(state["step"]), group["betas"], group["eps"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        moment = second / (1 - beta2**step)
        rms = (gradient.square() / moment.clamp(min=eps**2)).mean().sqrt()
        rate = group["lr"] / rms.clamp(min=1.0)  # a tensor: reading it would make the host wait for the device
        if group["weight_decay"]:
            parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(rate / (1 - beta1**step) * first / moment.sqrt_().add_(eps))


class OptimizerSettings(Protocol):
    """What ``make_optimizer`` reads of a configuration; ``embedding_lr`` None is ``lr``."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def embedding_lr(self) -> float | None: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def betas(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def eps(self) -> float: ...  # noqa: D102


OPTIMIZERS: dict[str, type[AdamW] | type[StableAdamW]] = {"adamw": AdamW, "stableadamw": StableAdamW}


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Make the optimiser that a configuration names, over ``parameter_groups(model)``.

    Raises: DataError if there is no optimiser of that name.
    """
    if settings.name not in OPTIMIZERS:
        raise DataError(f"optimizer.name is {settings.name!r}, expected one of {', '.join(OPTIMIZERS)}")
    groups = parameter_groups(
        model, lr=settings.lr, weight_decay=settings.weight_decay, embedding_lr=settings.embedding_lr
    )
    return OPTIMIZERS[settings.name](groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, embedding_lr: float | None = None
) -> list[dict[str, Any]]:
    """Part a model's trainable parameters into matrices, embeddings, and vectors (norms, biases, scalars).

    Only matrices decay: a norm's scale has no reason to shrink, and an embedding would shrink in each step in which its
    token does not occur. Embeddings learn at ``embedding_lr``. Each group holds its rate as ``initial_lr`` too, which
    ``set_learning_rate`` multiplies. A tied parameter counts once, as an embedding. Groups without parameters are left
    out.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parts: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = "embeddings" if id(parameter) in embedded else "matrices" if parameter.ndim > 1 else "vectors"
            parts[kind].append(parameter)
    rates = {"embeddings": lr if embedding_lr is None else embedding_lr}
    decays = {"matrices": weight_decay}
    return [
        {
            "params": parameters,
            "name": kind,
            "lr": rates.get(kind, lr),
            "initial_lr": rates.get(kind, lr),
            "weight_decay": decays.get(kind, 0.0),
        }
        for kind, parameters in parts.items()
        if parameters
    ]


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's rate to its ``initial_lr`` times ``factor``, which a schedule gives for each step."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
