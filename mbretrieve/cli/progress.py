"""Progress bars on standard error, where there is a person to see them."""

import sys
import time
from typing import TYPE_CHECKING

from mbretrieve.cli.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """One bar after another (``types.Progress``): what is done, how fast, how long it will take."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._began = 0.0
        self._tokens = 0

    def start(self, description: str, total: int | None) -> None:
        """Begin a bar of ``total`` steps; None for a number that is not known."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.finish()
        self._began, self._tokens = time.monotonic(), 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(printable(description), total=total, rate="")
        self._progress.start()

    def advance(self, steps: int, *, tokens: int = 0) -> None:
        """Move the bar by so many steps."""
        if self._progress is None or self._task is None:
            return
        self._tokens += tokens
        self._progress.advance(self._task, steps)
        seconds = max(time.monotonic() - self._began, 1e-3)
        rate = f"{self._progress.tasks[0].completed / seconds:,.1f}/s"
        if self._tokens:
            rate += f", {self._tokens / seconds:,.0f} tokens/s"
        self._progress.update(self._task, rate=rate)

    def finish(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def progress_bars() -> Bars | None:
    """Return bars where standard error is a terminal, else None: a log file has no use for them."""
    return Bars() if sys.stderr.isatty() else None
