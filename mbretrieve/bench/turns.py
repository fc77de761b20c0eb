"""Fair timing: what is compared takes turns, so that a disturbance of the machine meets all of it."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from mbretrieve.types import Progress

Key = TypeVar("Key", bound=Hashable)


def take_turns(
    tasks: Mapping[Key, Callable[[], object]], seconds: float, most: int, progress: Progress | None = None
) -> dict[Key, list[float]]:
    """Time tasks in turn, round after round: the seconds of each one's runs, at least one, at most ``most``.

    A task is out once its runs have taken ``seconds``. The first run of one that has several is not counted: it is the
    one that finds caches cold. ``progress`` advances by ``most`` + 1 a task.
    """
    took: dict[Key, list[float]] = {name: [] for name in tasks}
    open_ = dict(tasks)
    while open_:
        for name, task in list(open_.items()):
            began = time.perf_counter()
            task()
            took[name].append(time.perf_counter() - began)
            over = len(took[name]) > most or sum(took[name]) >= seconds
            if over:
                del open_[name]
            if progress is not None:
                progress.advance(most + 2 - len(took[name]) if over else 1)
    return {name: runs[1:] or runs for name, runs in took.items()}
