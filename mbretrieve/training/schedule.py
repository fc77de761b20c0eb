"""Schedules as pure functions of (step, steps): nothing to save, nothing to restore, the same curve after a resume."""

import math
from collections.abc import Callable
from typing import Protocol

from mbretrieve.errors import DataError


class Schedule(Protocol):
    """What is read of a configuration's [schedule]; a length below 1 is a fraction of all steps, else it is steps."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102
    @property
    def decay(self) -> float: ...  # noqa: D102


def one_minus_sqrt(progress: float) -> float:
    """Fall fast, then slowly: ``1 - sqrt(p)``, the decay of Hägele et al. 2024 (https://arxiv.org/abs/2405.18392)."""
    return 1 - math.sqrt(progress)


def linear(progress: float) -> float:
    """Fall evenly: ``1 - p``."""
    return 1 - progress


def cosine(progress: float) -> float:
    """Fall as half a wave: ``(1 + cos(pi p)) / 2`` (Loshchilov and Hutter, https://arxiv.org/abs/1608.03983)."""
    return (1 + math.cos(math.pi * progress)) / 2


# A schedule's fall, and whether it falls over ``decay`` steps at the end (a trapezoid) or over all after the warm-up.
SCHEDULES: dict[str, tuple[Callable[[float], float], bool]] = {
    "trapezoid": (one_minus_sqrt, True),
    "trapezoid-linear": (linear, True),
    "linear": (linear, False),
    "cosine": (cosine, False),
    "constant": (lambda _: 1.0, False),
}


def learning_rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return what the learning rate is multiplied by in step ``step`` (from 0) of ``steps``: from 0 to 1.

    Warm-up climbs evenly to 1, which its last step reaches; no step of it is at 0, where nothing would be learned. The
    fall starts at 1 and would reach 0 in the step after the last. Where the two overlap, the lesser counts.
    Raises: DataError if the schedule's name is unknown, or a length is negative.
    """
    if schedule.name not in SCHEDULES:
        raise DataError(f"schedule.name is {schedule.name!r}, expected one of {', '.join(SCHEDULES)}")
    fall, at_end = SCHEDULES[schedule.name]
    warmup = length_in_steps(schedule.warmup, steps, "schedule.warmup")
    start = max(0, steps - length_in_steps(schedule.decay, steps, "schedule.decay")) if at_end else min(warmup, steps)
    risen = (step + 1) / warmup if step < warmup else 1.0
    fallen = fall(min(1.0, (step - start) / (steps - start))) if start <= step and start < steps else 1.0
    return min(risen, fallen)


def batch_size_at(step: int, steps: int, *, first: int, full: int, warmup: float, multiple: int = 1) -> int:
    """Return the batch size of a step: from ``first`` evenly to ``full`` over ``warmup``, in multiples of ``multiple``.

    Small batches at first learn more from each token, as long as the gradient is large against its noise (McCandlish et
    al. 2018, https://arxiv.org/abs/1812.06162). ``warmup`` is a fraction of ``steps`` if below 1, else steps.
    Raises: ValueError if not ``multiple <= first <= full``, or one is no multiple.
    """
    if not multiple <= first <= full or first % multiple or full % multiple:
        raise ValueError(f"batch sizes {first} to {full}: expected rising multiples of {multiple}")
    length = length_in_steps(warmup, steps, "batch size warm-up")
    if step >= length:
        return full
    return first + (full - first) * step // length // multiple * multiple


def length_in_steps(length: float, steps: int, name: str = "length") -> int:
    """Return a length in steps: below 1 it is a fraction of ``steps``, rounded. Raises: DataError if it is negative."""
    if length < 0:
        raise DataError(f"{name} is {length:g}, expected a fraction of the steps below 1, or a number of steps")
    return round(length * steps) if length < 1 else round(length)
