"""Turns, and the largest batch that fits."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.bench.capacity import largest
from mbretrieve.bench.turns import take_turns


class Steps:
    """A progress that counts."""

    def __init__(self) -> None:
        self.done = 0

    def start(self, description: str, total: int | None) -> None: ...

    def advance(self, steps: int, *, tokens: int = 0) -> None:
        self.done += steps

    def finish(self) -> None: ...


def test_tasks_take_turns_until_they_have_had_enough() -> None:
    order: list[str] = []

    def task(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            time.sleep(seconds)

        return run

    steps = Steps()
    took = take_turns({"slow": task("slow", 0.05), "fast": task("fast", 0.0)}, 0.04, 3, steps)
    assert order == ["slow", "fast", "fast", "fast", "fast"], "the slow one is out of time, the fast one out of turns"
    assert {name: len(runs) for name, runs in took.items()} == {"slow": 1, "fast": 3}
    assert took["slow"][0] >= 0.05
    assert steps.done == 2 * 4


@pytest.mark.parametrize("most", [1, 5, 1 << 15])
@given(limit=st.integers(0, 1 << 16))
def test_the_largest_batch_is_near_the_limit(most: int, limit: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    found = largest(fits, most)
    real = min(limit, most)
    assert found <= real
    assert found >= 7 * real // 8
    assert max(tried) <= most
    assert len(tried) <= 20
