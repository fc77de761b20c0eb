"""Checkpoints: a model folder with what training needs to go on beside it, safetensors and JSON, written whole or not.

``DIR/checkpoints/step-00000100/`` loads as a model. Beside the model's files: ``training.safetensors`` (optimiser, what
the loss learns, random number generators) and ``training.json`` (step, data position, configuration, names and shapes).
"""

import json
import os
import random
import shutil
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mbretrieve.errors import DataError, ModelError
from mbretrieve.models.card import TrainingFacts

FORMAT = 1
TENSORS, RECORD = "training.safetensors", "training.json"
_FOLDER, _PARTIAL = "step-", ".partial-"


@dataclass(slots=True)
class Position:
    """How far a run is: steps done, tokens seen by all processes, where the data stands, and the best evaluation."""

    step: int = 0
    tokens: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    best_step: int | None = None


class Model(Protocol):
    """What is trained: parameters with names, and a way to write a folder that loads as a model."""

    def save(self, folder: Path, facts: TrainingFacts) -> None:
        """Write the model with a card that says the ``facts``."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the optimiser moves."""


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the whole checkpoints of a folder by step, in order."""
    found = {int(path.name[len(_FOLDER) :]): path for path in folder.glob(f"{_FOLDER}*") if (path / RECORD).is_file()}
    return dict(sorted(found.items()))


def last_good(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder whose weights are all finite."""
    for path in reversed(checkpoints(folder).values()):
        weights = [part for part in path.rglob("*.safetensors") if part.name != TENSORS]
        if all(bool(tensor.isfinite().all()) for part in weights for tensor in load_file(part).values()):
            return path
    return None


def write(
    folder: Path,
    student: Model,
    objective: nn.Module,
    optimizer: Optimizer,
    position: Position,
    config: dict[str, Any],
    facts: TrainingFacts,
) -> Path:
    """Write a checkpoint into ``folder``; it is there under its name when all of it is on the disk, or not at all.

    ``facts`` is what the model's card says.
    Raises: ModelError if it cannot be written.
    """
    target = folder / f"{_FOLDER}{position.step:08d}"
    partial = folder / f"{_PARTIAL}{target.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        student.save(partial, facts)
        tensors, names = _optimizer_tensors(optimizer, _names(student, objective))
        tensors |= {f"objective.{name}": tensor.detach().cpu() for name, tensor in objective.state_dict().items()}
        tensors |= {f"random.{name}": tensor for name, tensor in _generators().items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
        shapes = {name: list(parameter.shape) for name, parameter in _parameters(student, objective).items()}
        record = {"format": FORMAT, "position": asdict(position), "config": config, "groups": names, "shapes": shapes}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            _sync(path)
        if target.exists():  # of a run that went on from an earlier step
            shutil.rmtree(target)
        partial.replace(target)
        _sync(folder)
    except OSError as error:
        raise ModelError(f"the checkpoint {target} cannot be written: {' '.join(str(error).split())}") from error
    return target


def read_record(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's JSON. Raises: ModelError if it is damaged or of another format."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != FORMAT:
            raise ModelError(f"{path} has format {record['format']}, expected {FORMAT}: it is of another version")
        Position(**record["position"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is not the record of a checkpoint ({' '.join(str(error).split())})") from error
    return dict(record)


def restore(folder: Path, student: Model, objective: nn.Module, optimizer: Optimizer) -> Position:
    """Bring optimiser, loss and random number generators to where a checkpoint was written, and return the position.

    The student must have been read from the same folder. Raises: ModelError naming what does not fit.
    """
    record = read_record(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{folder / TENSORS} cannot be read ({' '.join(str(error).split())})") from error
    shapes = {name: list(parameter.shape) for name, parameter in _parameters(student, objective).items()}
    _expect(folder, "parameter", record.get("shapes", {}), shapes)
    names = _names(student, objective)
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if record.get("groups") != groups:
        raise ModelError(f"{folder}: its optimiser has other groups of parameters than this recipe's")
    _restore_optimizer(folder, optimizer, [name for group in groups for name in group], tensors)
    held = {
        name.removeprefix("objective."): tensor for name, tensor in tensors.items() if name.startswith("objective.")
    }
    _expect(folder, "loss parameter", _shapes(held), _shapes(objective.state_dict()))
    objective.load_state_dict(held)
    _restore_generators(folder, {n.removeprefix("random."): t for n, t in tensors.items() if n.startswith("random.")})
    return Position(**record["position"])


def prune(folder: Path, keep: int, kept: Container[int]) -> None:
    """Delete all checkpoints but the last ``keep`` and those of the ``kept`` steps, and what was left half written."""
    there = checkpoints(folder)
    for step, path in list(there.items())[:-keep]:
        if step not in kept:
            shutil.rmtree(path)
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def check_same(found: Mapping[str, Any], asked: Mapping[str, Any], free: Container[str]) -> None:
    """Raise DataError naming the first setting in which two configurations differ.

    Settings whose name, or whose table's or list's name, is in ``free`` may differ.
    """
    before, now = _leaves(found), _leaves(asked)
    for name in sorted(before.keys() | now.keys()):
        parts = name.split(".")
        if any(".".join(parts[:size]) in free for size in range(1, len(parts) + 1)):
            continue
        if before.get(name) != now.get(name):
            raise DataError(
                f"{name} was {before.get(name)!r} in the run that is to go on and is {now.get(name)!r}: "
                "give the same recipe, or another --output"
            )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {name: value}
    return {leaf: item for key, part in pairs for leaf, item in _leaves(part, f"{name}.{key}" if name else key).items()}


def _parameters(student: Model, objective: nn.Module) -> dict[str, nn.Parameter]:
    parts: dict[str, Model | nn.Module] = {"model": student, "objective": objective}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def _names(student: Model, objective: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in _parameters(student, objective).items()}


def _optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> tuple[dict[str, Tensor], list[list[str]]]:
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{names[id(parameter)]}"] = torch.as_tensor(value).detach().cpu()
    return tensors, [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _restore_optimizer(folder: Path, optimizer: Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    places = {name: place for place, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        if not full.startswith("optimizer."):
            continue
        _, key, name = full.split(".", 2)
        if name not in places:
            raise ModelError(f"{folder}: its optimiser holds {name}, which this model does not have")
        shape = tuple(parameters[places[name]].shape)
        if tensor.ndim and tuple(tensor.shape) != shape:
            raise ModelError(f"{folder}: its optimiser's {key} of {name} is {tuple(tensor.shape)}, expected {shape}")
        state.setdefault(places[name], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generators() -> dict[str, Tensor]:
    """The states of Python's, numpy's and torch's generators, those of GPUs included, as tensors."""
    _, words, place, has_gauss, gauss = np.random.get_state(legacy=True)
    found = {
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_place": torch.tensor([int(place), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([float(gauss)], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _restore_generators(folder: Path, found: Mapping[str, Tensor]) -> None:
    lacking = {"python", "numpy", "numpy_place", "numpy_gauss", "torch"} - found.keys()
    if lacking:
        raise ModelError(f"{folder / TENSORS} lacks the generator {min(lacking)}")
    try:
        random.setstate((3, tuple(found["python"].tolist()), None))
        place, has_gauss = found["numpy_place"].tolist()
        words = found["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", words, place, has_gauss, float(found["numpy_gauss"])))
        torch.set_rng_state(found["torch"])
        if "cuda" in found and torch.cuda.is_available():
            torch.cuda.set_rng_state(found["cuda"])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{folder / TENSORS}: a generator's state does not fit ({error})") from error


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _expect(folder: Path, what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ModelError(
                f"{folder}: its {what} {name} has shape {found.get(name)}, expected {expected.get(name)} by this recipe"
            )


def _sync(path: Path) -> None:
    """Have a file, or a folder's entries, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
