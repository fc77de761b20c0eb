"""What every run of training needs around its loop: a folder of its own, processes, signals."""

import importlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from mbretrieve.errors import DataError, MissingExtraError, ModelError
from mbretrieve.training import state

CHECKPOINTS, RECIPE = "checkpoints", "recipe.toml"
_LONGEST_WAIT = timedelta(hours=6)  # of the other processes while one evaluates or reads the texts


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: after so many of its steps, stopped by a signal or not, with its last evaluation."""

    step: int
    steps: int
    tokens: int
    stopped: int | None
    metrics: Mapping[str, float]


def last_checkpoint(config: Mapping[str, Any], output: Path, resume: bool, free: frozenset[str]) -> Path | None:
    """Return the checkpoint from which the run of a recipe goes on in ``output``, or None where it begins.

    ``free`` names the settings and tables that may differ from the recipe that the folder was made by.
    Raises: DataError if the folder is not empty and nothing is to be resumed, or holds another recipe's run.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file, expected a folder for the model")
    filled = output.is_dir() and any(output.iterdir())
    if not resume:
        if filled:
            raise DataError(f"{output} is not empty: go on with what it holds by --resume, or name another --output")
        return None
    there = list(state.checkpoints(output / CHECKPOINTS).values())
    if not there:
        if filled and not (output / RECIPE).is_file():
            raise DataError(f"{output} holds no run that could go on: name another --output, or leave --resume out")
        return None
    found = state.read_record(there[-1])["config"]
    if not isinstance(found, dict):
        raise ModelError(f"{there[-1]} does not say which recipe it is of")
    state.check_same(found, config, free)
    return there[-1]


def make_accelerator(output: Path, trackers: Sequence[str] = ()) -> Any:
    """Return accelerate's Accelerator for this process. Raises: MissingExtraError; DataError for unknown trackers."""
    try:
        accelerate = importlib.import_module("accelerate")
    except ModuleNotFoundError as error:
        raise MissingExtraError("accelerate", "train", "training") from error
    handlers = [
        # ModernBERT has no buffers to keep alike.
        accelerate.DistributedDataParallelKwargs(broadcast_buffers=False),
        accelerate.InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
    ]
    try:
        return accelerate.Accelerator(
            log_with=list(trackers) or None, project_dir=str(output), kwargs_handlers=handlers
        )
    except (ValueError, ImportError) as error:
        raise DataError(f"accelerate refuses this run: {' '.join(str(error).split())}") from error


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second one is not waited for."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if received:
            raise KeyboardInterrupt
        received.append(number)

    ours = threading.current_thread() is threading.main_thread()  # no other thread may say what a signal does
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT) if ours}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
