"""What every run of training needs around its loop: a folder of its own, processes, signals."""

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mbretrieve.errors import DataError, MissingExtraError, ModelError
from mbretrieve.training import state

CHECKPOINTS, RECIPE = "checkpoints", "recipe.toml"
_LONGEST_WAIT = timedelta(hours=6)  # of the other processes while one evaluates or reads the texts
_WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and those of MPIs


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
    """Return accelerate's Accelerator for this process.

    Raises: MissingExtraError; DataError for unknown trackers, and for several processes that form no group.
    """
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
        # Of trackers that it does not find accelerate only warns, and the run would be tracked by nobody.
        known = {str(tracker) for tracker in importlib.import_module("accelerate.utils").LoggerType}
        found = {str(tracker) for tracker in importlib.import_module("accelerate.tracking").get_available_trackers()}
        if lacking := [name for name in trackers if name in known - {"all"} and name not in found]:
            raise DataError(f"run.trackers names {lacking[0]}, which is not installed: install it, or leave it out")
        # Without a GPU accelerate forms a group only if it is told that the processors are meant.
        accelerator = accelerate.Accelerator(
            cpu=_started() > 1 and not torch.cuda.is_available(),
            log_with=list(trackers) or None,
            project_dir=str(output),
            kwargs_handlers=handlers,
        )
    except (ValueError, ImportError) as error:
        raise DataError(f"accelerate refuses this run: {' '.join(str(error).split())}") from error
    if accelerator.num_processes < _started():  # each would train alone, into the same folder
        raise DataError(
            f"{_started()} processes were started and form no group: start them by "
            f"torchrun --nproc-per-node {_started()} -m mbretrieve"
        )
    return accelerator


def _started() -> int:
    """Return how many processes a launcher says that it has started."""
    told = (os.environ.get(name, "") for name in _WORLD)
    return max(int(number) if number.isdecimal() else 1 for number in told)


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


class TokenBudget:
    """How many tokens go through the model at once: the recipe's, halved where memory ends."""

    def __init__(self, tokens: int, ranks: int, say: Callable[[str], None]) -> None:
        self.tokens = tokens
        self._ranks, self._say = ranks, say
        self._fitted = 0

    def fitted(self, tokens: int) -> None:
        """Note that a micro-batch of so many tokens fitted."""
        self._fitted = max(self._fitted, tokens)

    def shrink(self, tokens: int, texts: int, lower: str) -> None:
        """Halve it after a micro-batch of so many ``tokens`` in so many ``texts`` did not fit; the step is taken again.

        ``lower`` names the setting that shortens a text. Raises: ModelError, saying what fitted, if halving cannot
        help: for one text, or where another process would go on with a step that this one takes again.
        """
        fitted = f"{self._fitted} fitted" if self._fitted else "none has fitted yet"
        ended = f"memory ended on a micro-batch of {tokens} tokens ({fitted})"
        if texts <= 1:
            raise ModelError(
                f"{ended}, which cannot be cut: lower {lower}, or set model.gradient_checkpointing=true"
            ) from None
        if self._ranks > 1:
            raise ModelError(
                f"{ended}: set run.token_budget={tokens // 2}; the loss is the same up to rounding"
            ) from None
        self.tokens = max(1, tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._say(f"{ended}: going on with run.token_budget={self.tokens}, which changes the loss by rounding at most")
