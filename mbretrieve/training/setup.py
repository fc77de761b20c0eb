"""What a run needs before its first step: processes, data, model, loss, optimiser, and where an earlier run stopped."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mbretrieve.errors import MissingExtraError, ModelError
from mbretrieve.models.checkpoint import load
from mbretrieve.models.device import resolve_dtype
from mbretrieve.models.writing import beyond_pylate
from mbretrieve.training import state
from mbretrieve.training.config import TrainConfig
from mbretrieve.training.data import Batches
from mbretrieve.training.objective import Objective, Teacher
from mbretrieve.training.optim import make_optimizer
from mbretrieve.training.running import last_checkpoint, make_accelerator
from mbretrieve.training.state import Position
from mbretrieve.training.student import Student, starting_point

# What may be another when a run goes on: nothing that decides what a step does.
_PORTIONS = ("token_budget", "log_every", "save_every", "keep", "evaluate_every", "trackers")
FREE = frozenset({*(f"run.{name}" for name in _PORTIONS), "model.gradient_checkpointing", "evaluation", "card"})


@dataclass(slots=True)
class Run:
    """A run, ready for its next step. ``model`` is the student as accelerate wraps it."""

    config: TrainConfig
    output: Path
    accelerator: Any
    batches: Batches
    steps: int
    student: Student
    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    teacher: Teacher | None
    position: Position

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is learned."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def prepare(config: TrainConfig, output: Path, resume: bool, say: Callable[[str], None]) -> Run:
    """Set a run up, or bring it to where its last checkpoint was written.

    Raises: DataError if the output folder is not empty and nothing is to be resumed, or was made by another recipe;
    ModelError for a model or a checkpoint that does not fit; MissingExtraError.
    """
    found = last_checkpoint(config.to_dict(), output, resume, FREE)
    accelerator = make_accelerator(output, config.run.trackers)
    device, seed = accelerator.device, config.run.seed
    _set_seed(seed)
    batches = Batches(config.data, config.run.batch_size, seed, config.run.length_bucket)
    steps = batches.steps(config.run)
    student = make_student(config, device, found)
    if found is None and (words := unread(student)):
        say(words)
    teacher = None if config.loss.teacher is None else _SentenceTransformer(config.loss.teacher, device)
    objective = Objective(config, student, batches.teacher_dim if teacher is None else teacher.dim).to(device)
    model = accelerator.prepare(student.to(device).train())
    optimizer = make_optimizer(nn.ModuleList([student, objective]), config.optimizer)
    position = Position()
    if found is not None:
        position = state.restore(found, student, objective, optimizer)
        batches.restore(position.data)
        say(f"going on from {found} after {position.step} of {steps} steps")
    else:
        _set_seed(seed + accelerator.process_index)  # dropout differs between processes, the weights do not
    if config.run.trackers:
        accelerator.init_trackers("mbretrieve", config=_flat(config.to_dict()))
    return Run(config, output, accelerator, batches, steps, student, model, objective, optimizer, teacher, position)


def make_student(config: TrainConfig, device: torch.device, checkpoint: Path | None = None) -> Student:
    """Build the model of a recipe, or the same from a checkpoint of its training."""
    if checkpoint is None:
        saved, name = starting_point(config.model)
    else:
        saved, name = load(checkpoint), config.model.start
    return Student(
        saved,
        config.model.kind,
        name=name,
        dtype=resolve_dtype(config.model.dtype, device),
        checkpointing=config.model.gradient_checkpointing,
    )


def unread(student: Student) -> str | None:
    """Say which library will not load the model that is trained; None: all that read its kind will."""
    words = beyond_pylate(student.checkpoint()) if student.late else None
    return words and f"the trained model is for mbretrieve and sentence-transformers; {words}"


def _set_seed(seed: int) -> None:
    importlib.import_module("accelerate.utils").set_seed(seed)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Trackers take names and plain values."""
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in config.items()}


class _SentenceTransformer:
    """A teacher of text vectors, as sentence-transformers loads it."""

    def __init__(self, name: str, device: torch.device) -> None:
        try:
            module = importlib.import_module("sentence_transformers")
        except ModuleNotFoundError as error:
            raise MissingExtraError("sentence-transformers", "rerank", "loss.teacher") from error
        folder = Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not folder.is_dir():
            raise ModelError(f"loss.teacher: there is no folder {name}: name one, or a model of the Hugging Face Hub")
        where = str(folder) if folder.is_dir() else name
        try:
            self._model = module.SentenceTransformer(where, device=str(device), trust_remote_code=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"loss.teacher {name} cannot be loaded: {' '.join(str(error).split())}") from error
        self.dim: int = len(self._model.encode(["a"])[0])

    def encode(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self._model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return found.float().clone()  # out of inference mode
