"""The log of a run, a line a logged step, and its picture: what the loss and the learning rate were."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mbretrieve.errors import DataError, MissingExtraError

LOG, CURVES, PICTURE = "log.jsonl", "curves.json", "curves.png"
_SMOOTHED = 0.05  # the share of all points over which the loss is averaged, for the eye


COLUMNS = ("step", "tokens", "loss", "lr", "tokens_per_second")
"""What a line of the log says: a ``step`` from 1, the ``tokens`` that all processes have seen so far, that step's
``loss`` and ``lr``, and ``tokens_per_second`` since the line before, evaluations and checkpoints not counted."""


class Log:
    """A file of a run's folder with a record a line, cut back to the step from which the run goes on."""

    def __init__(self, folder: Path, after: int, name: str = LOG) -> None:
        self._path = folder / name
        lines = [line for line in read_log(self._path) if line["step"] <= after]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Add a line; it is in the file when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a file of records by step; none is an empty one, and a last line that was being written is left out.

    Raises: DataError with file and line if it is no log.
    """
    if not path.is_file():
        return []
    lines = []
    for number, row in enumerate(path.read_text("utf-8").split("\n")[:-1], 1):
        try:
            line = json.loads(row)
            line["step"] = int(line["step"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a line of a training log: {row[:60]!r}") from error
        lines.append(line)
    return lines


def write_curves(folder: Path, evaluations: str) -> None:
    """Write ``curves.json``, a list a quantity, and draw ``curves.png``: loss and learning rate by step.

    ``evaluations`` is the file of figures by step. Raises: MissingExtraError if there is no matplotlib; the JSON is
    then written all the same.
    """
    lines = read_log(folder / LOG)
    curves: dict[str, Any] = {name: [line[name] for line in lines] for name in COLUMNS}
    curves["evaluations"] = read_log(folder / evaluations)
    (folder / CURVES).write_text(json.dumps(curves) + "\n", "utf-8")
    if not lines:
        return
    try:
        module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "train", "drawing the curves of a run") from error
    # Of its own: pyplot would open windows and keep every figure.
    drawing = module.Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = drawing.subplots()
    axes.plot(curves["step"], curves["loss"], color="tab:blue", alpha=0.35, linewidth=0.8, label="loss of a step")
    width = max(1, round(_SMOOTHED * len(lines)))
    axes.plot(curves["step"], smoothed(curves["loss"], width), color="tab:blue", label=f"mean of {width} lines")
    rates = axes.twinx()
    rates.plot(curves["step"], curves["lr"], color="tab:orange", linewidth=1, label="learning rate")
    axes.set(xlabel="step", ylabel="loss")
    rates.set(ylabel="learning rate", ylim=(0, None))
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=3)
    drawing.savefig(folder / PICTURE, dpi=150)


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Average each value with those before it, ``width`` together, fewer at the start."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[end] - sums[max(0, end - width)]) / (end - max(0, end - width)) for end in range(1, len(sums))]
