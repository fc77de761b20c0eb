"""The curves: where they rise, stay and fall, for any number of steps."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.errors import DataError
from mbretrieve.training.schedule import SCHEDULES, batch_size_at, learning_rate_factor, length_in_steps


@dataclass(frozen=True)
class Schedule:
    name: str = "trapezoid"
    warmup: float = 0.0
    decay: float = 0.0


def curve(schedule: Schedule, steps: int) -> list[float]:
    return [learning_rate_factor(schedule, step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (Schedule("trapezoid-linear", 2, 4), 10, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule("trapezoid-linear", 0.2, 0.4), 10, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule("trapezoid", 0, 4), 6, [1, 1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5]),
        (Schedule("trapezoid", 4, 0), 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        (Schedule("linear", 2), 6, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule("cosine", 0), 4, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        (Schedule("constant", 2), 4, [0.5, 1, 1, 1]),
        (Schedule("trapezoid-linear", 4, 4), 4, [0.25, 0.5, 0.5, 0.25]),  # both at once: the lesser
        (Schedule("linear", 8), 4, [0.125, 0.25, 0.375, 0.5]),  # a run that ends before its warm-up
    ],
)
def test_curves(schedule: Schedule, steps: int, expected: list[float]) -> None:
    assert curve(schedule, steps) == pytest.approx(expected)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 60), st.floats(0, 60), st.integers(1, 50))
def test_every_factor_is_above_zero_and_at_most_one_and_the_curve_rises_then_falls(
    name: str, warmup: float, decay: float, steps: int
) -> None:
    factors = curve(Schedule(name, warmup, decay), steps)
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@given(st.floats(0, 0.45), st.floats(0, 0.45), st.integers(1, 300))
def test_a_trapezoid_is_at_one_between_warm_up_and_decay(warmup: float, decay: float, steps: int) -> None:
    factors = curve(Schedule("trapezoid", warmup, decay), steps)
    assert set(factors[length_in_steps(warmup, steps) : steps - length_in_steps(decay, steps)]) <= {1.0}


def test_all_falls_are_over_after_the_last_step() -> None:
    for name in sorted(SCHEDULES.keys() - {"constant"}):
        assert learning_rate_factor(Schedule(name, 0, 5), 20, 20) == pytest.approx(0)


def test_an_unknown_schedule_or_a_negative_length_is_named() -> None:
    with pytest.raises(DataError, match=r"schedule.name is 'wsd', expected one of trapezoid, "):
        learning_rate_factor(Schedule("wsd"), 0, 1)
    with pytest.raises(DataError, match=r"schedule.warmup is -1, expected a fraction"):
        learning_rate_factor(Schedule(warmup=-1), 0, 1)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 40), st.floats(0, 60), st.integers(1, 60))
def test_batches_grow_from_first_to_full_in_multiples(
    multiple: int, first: int, more: int, warmup: float, steps: int
) -> None:
    sizes = {"first": multiple * first, "full": multiple * (first + more)}
    grown = [batch_size_at(s, steps, **sizes, warmup=warmup, multiple=multiple) for s in range(steps + 70)]
    assert grown == sorted(grown)
    assert all(size % multiple == 0 for size in grown)
    assert grown[0] == sizes["first"] or length_in_steps(warmup, steps) == 0
    assert set(grown[length_in_steps(warmup, steps) :]) == {sizes["full"]}


def test_batches_climb_evenly() -> None:
    assert [batch_size_at(s, 8, first=4, full=12, warmup=0.5, multiple=2) for s in range(6)] == [4, 6, 8, 10, 12, 12]


def test_batch_sizes_that_no_ranks_can_share_are_refused() -> None:
    with pytest.raises(ValueError, match="rising multiples of 4"):
        batch_size_at(0, 1, first=4, full=10, warmup=0, multiple=4)
