"""Results of tasks as files, tables and pictures, beside published numbers.

A task's result is one JSON file, a `TaskResult`. A suite's score is the mean of all its tasks' headline metrics; over
fewer tasks the mean is labelled with how many they are and never with the suite's name.
"""

import csv
import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mbretrieve.errors import DataError, MissingExtraError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one system did on one task.

    ``metrics`` are the means over queries or, where the task has ``parts``, over the parts' means, which those are;
    ``exact_metrics`` are the same for exact search, empty where not asked for. ``per_query`` is the headline
    ``metric`` by query id, "part/query" where there are parts. ``timing`` has seconds ``encode``, ``index`` and
    ``search``, ``tokens_per_second``, and ``p50_ms`` and ``p95_ms`` a query; ``index`` has ``bytes``, of
    vectors and codebooks, ``catalogue_bytes`` beside them, ``documents`` and ``recall@10`` against exact search.
    ``provenance`` tells what made the figures: versions, model, data, device. ``split`` was asked for in the place of
    the task's own, which is "".
    """

    task: str
    suite: str
    model: str
    metric: str
    metrics: dict[str, float]
    per_query: dict[str, float]
    exact_metrics: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    split: str = ""

    @property
    def score(self) -> float:
        """The headline metric."""
        return self.metrics[self.metric]


def write_result(path: Path, result: TaskResult) -> None:
    """Write a result as JSON, whole or not at all: a file that is there is a finished task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    fields = {"schema": SCHEMA} | dataclasses.asdict(result)
    partial.write_text(json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    partial.replace(path)


def read_result(path: Path) -> TaskResult:
    """Read a result. Raises: DataError for a file that is none, or of another schema version."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a result ({error}): expected a JSON file that eval wrote") from error
    if not isinstance(fields, dict) or "schema" not in fields:
        raise DataError(f"{path} is not a result: expected a JSON object with schema, task and metrics")
    if (schema := fields.pop("schema")) != SCHEMA:
        raise DataError(f"{path} has schema version {schema!r}, this program reads {SCHEMA}: run the task again")
    known = {f.name: f for f in dataclasses.fields(TaskResult)}
    missing = [name for name, f in known.items() if name not in fields and _required(f)]
    if missing or fields.keys() - known.keys():
        odd = [f"no {name}" for name in missing] + [
            f"an unknown {name}" for name in sorted(fields.keys() - known.keys())
        ]
        raise DataError(f"{path} is not a result of schema {SCHEMA}: it has {', '.join(odd)}; run the task again")
    if not _scored(fields):
        raise DataError(f"{path} has no number for its headline metric: run the task again")
    return TaskResult(**fields | {"notes": tuple(fields.get("notes", ()))})


def _required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _scored(fields: Mapping[str, Any]) -> bool:
    metrics, metric = fields["metrics"], fields["metric"]
    return isinstance(metrics, dict) and isinstance(metric, str) and isinstance(metrics.get(metric), int | float)


# Published numbers


@dataclass(frozen=True, slots=True)
class Published:
    """One published figure, on our metrics' scale of 0 to 1; ``task`` is a task's name, or a suite's for its mean."""

    model: str
    task: str
    metric: str
    value: float
    source: str
    table: str


def reference_folder() -> Path:
    """Where the published numbers lie: beside this file in an installed wheel, in eval/ in the source tree."""
    installed = Path(__file__).parent / "reference"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "eval" / "reference"


def read_published(folder: Path) -> list[Published]:
    """Read the reference tables (``*.csv``) of a folder; ``scale`` is what a perfect ``value`` would be, 1 or 100.

    Raises: DataError with file and line.
    """
    found = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    value = float(row["value"]) / float(row["scale"])
                    told = {name: row[name] for name in ("model", "task", "metric", "source", "table")}
                    found.append(Published(value=value, **told))
                except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                    columns = "model, task, metric, value, scale, source, table"
                    raise DataError(f"{path}:{number}: expected {columns}, value and scale as numbers") from error
    return found


# Tables


@dataclass(frozen=True, slots=True)
class Summary:
    """A suite's results in the suite's order, with what is to be said of the whole."""

    title: str
    results: list[TaskResult]
    missing: list[str]

    @property
    def label(self) -> str:
        """What the mean may be called."""
        done, whole = len(self.results), len(self.results) + len(self.missing)
        return f"{self.title} (mean of {whole})" if not self.missing else f"mean of {done} of {whole} tasks"

    @property
    def mean(self) -> float:
        """The mean of the headline metrics."""
        return sum(result.score for result in self.results) / len(self.results)


def summarise(title: str, tasks: Sequence[str], results: Sequence[TaskResult]) -> Summary:
    """Put results in the order of a suite's ``tasks`` and name those that have none.

    Raises: DataError where there is nothing to report, two results for one task, or results of different splits.
    """
    if len(splits := {result.split or "the tasks' own" for result in results}) > 1:
        raise DataError(f"results of different splits, {', '.join(sorted(splits))}: a report shows one of them")
    by_task: dict[str, TaskResult] = {}
    for result in results:
        if result.task in by_task:
            raise DataError(
                f"two results for task {result.task}: a report shows one system, give one folder of results"
            )
        by_task[result.task] = result
    done = [by_task[task] for task in tasks if task in by_task]
    if not done:
        raise DataError(f"no result for any task of {title}: run mbretrieve eval first")
    return Summary(title, done, [task for task in tasks if task not in by_task])


COLUMNS = ("task", "metric", "score", "exact", "gap", "recall@10", "docs", "MB", "encode s", "p50 ms", "p95 ms")


def rows(summary: Summary) -> list[list[str]]:
    """The table's lines, as text: one a task, its parts below it, and the mean."""
    lines = []
    for result in summary.results:
        exact = result.exact_metrics.get(result.metric)
        lines.append(
            [
                result.task,
                result.metric,
                _number(result.score, 4),
                _number(exact, 4),
                _number(None if exact is None else exact - result.score, 4),
                _number(result.index.get("recall@10"), 3),
                _number(result.index.get("documents"), 0),
                _number(result.index["bytes"] / 1e6 if "bytes" in result.index else None, 1),
                _number(result.timing.get("encode"), 1),
                _number(result.timing.get("p50_ms"), 1),
                _number(result.timing.get("p95_ms"), 1),
            ]
        )
        lines += [
            [f"  {part}", result.metric, _number(metrics.get(result.metric), 4), *[""] * (len(COLUMNS) - 3)]
            for part, metrics in result.parts.items()
        ]
    lines.append([summary.label, "", _number(summary.mean, 4), *[""] * (len(COLUMNS) - 3)])
    return lines


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def print_table(summary: Summary, console: Console) -> None:
    """Print a summary for the terminal, with what is missing and what the data's notes say."""
    table = Table(title=f"{summary.results[0].model}: {summary.title}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", no_wrap=column == "task")
    for line in rows(summary):
        table.add_row(*line)
    console.print(table)
    for note in notes(summary):
        console.print(note, markup=False, highlight=False)


def notes(summary: Summary) -> list[str]:
    """What a reader of the table must know: the tasks without a result, and what was odd about the data."""
    missing = [f"no result: {', '.join(summary.missing)}"] if summary.missing else []
    return missing + [f"{result.task}: {note}" for result in summary.results for note in result.notes]


def markdown(summary: Summary, published: Sequence[Published] = ()) -> str:
    """A summary as Markdown, and below it what others published for the same tasks and metrics."""
    lines = [_line(COLUMNS), _line("-" * 3 for _ in COLUMNS), *(_line(row) for row in rows(summary))]
    lines += ["", *(f"- {note}" for note in notes(summary))] if notes(summary) else []
    beside = _beside(summary, published)
    if beside:
        models = sorted({figure.model for figure in beside})
        figures = {(figure.model, figure.task): figure.value for figure in beside}
        lines += ["", _line(["task", summary.results[0].model, *models]), _line(["---"] * (len(models) + 2))]
        for (name, _), (label, score) in _comparable(summary).items():
            theirs = [_number(figures.get((model, name)), 3) for model in models]
            lines.append(_line([label, _number(score, 3), *theirs]))
        sources = sorted({f"{figure.source}, {figure.table}" for figure in beside})
        lines += ["", f"Published: {'; '.join(sources)}."]
    return "\n".join(lines) + "\n"


def _comparable(summary: Summary) -> dict[tuple[str, str], tuple[str, float]]:
    """What published figures may stand beside, (name, metric) -> (label, ours): tasks, and the suite if it is whole."""
    whole = {(result.task, result.metric): (result.task, result.score) for result in summary.results}
    first = summary.results[0]
    if not summary.missing and (first.suite, first.metric) not in whole:
        whole[first.suite, first.metric] = (summary.label, summary.mean)
    return whole


def _beside(summary: Summary, published: Sequence[Published]) -> list[Published]:
    if summary.results[0].split:  # published figures are of the tasks' own
        return []
    return [figure for figure in published if (figure.task, figure.metric) in _comparable(summary)]


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


# Pictures

_MARKERS = "os^D"  # of ten systems each, after which colours come again


def plot_trade_off(path: Path, results: Mapping[str, Sequence[TaskResult]], cost: str) -> None:
    """Draw quality against a cost, one point a system: ``cost`` is "latency" (p50, ms) or "size" (index, MB).

    A point is the mean over the tasks that every system has, so that no system is judged on easier ones. Raises:
    DataError if there is no such task with that cost; MissingExtraError.
    """
    label, read = _COSTS[cost]
    costs = {
        system: {result.task: (value, result.score) for result in of_system if (value := read(result)) is not None}
        for system, of_system in results.items()
    }
    shared = set.intersection(*(set(of_system) for of_system in costs.values())) if costs else set()
    if not shared:
        raise DataError(f"no task for which every system tells its {cost}: nothing to draw in {path}")
    drawing, axes = figure(6.5, 4.5)
    for place, (system, of_system) in enumerate(costs.items()):
        values, scores = zip(*(of_system[task] for task in sorted(shared)), strict=True)
        marker = _MARKERS[place // 10 % len(_MARKERS)]
        axes.scatter(sum(values) / len(shared), sum(scores) / len(shared), label=system, marker=marker)
    axes.set(xlabel=label, ylabel=f"headline metric, mean of {len(shared)} tasks", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    places = [value for of_system in costs.values() for value, _ in of_system.values()]
    # Within a decade there may be no power of ten to read; over several, the numbers between would run together.
    axes.xaxis.set_minor_formatter("{x:g}" if max(places) < 10 * min(places) else "")
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=2)
    drawing.savefig(path, dpi=150)


_COSTS: dict[str, tuple[str, Callable[[TaskResult], float | None]]] = {
    "latency": ("median latency of a query, ms", lambda result: result.timing.get("p50_ms")),
    "size": ("index, MB", lambda result: result.index["bytes"] / 1e6 if "bytes" in result.index else None),
}


def plot_tasks(path: Path, summary: Summary, published: Sequence[Published] = ()) -> None:
    """Draw a bar a task, beside the published figures for it. Raises: MissingExtraError."""
    tasks = [result.task for result in summary.results]
    bars = {summary.results[0].model: {result.task: result.score for result in summary.results}}
    for theirs in _beside(summary, published):
        bars.setdefault(f"{theirs.model} (published)", {})[theirs.task] = theirs.value
    drawing, axes = figure(max(6.5, 0.35 * len(tasks) * len(bars)), 4.5)
    width = 0.8 / len(bars)
    for place, (system, values) in enumerate(bars.items()):
        left = (place - (len(bars) - 1) / 2) * width
        heights = [values.get(task, math.nan) for task in tasks]
        axes.bar([left + number for number in range(len(tasks))], heights, width, label=system)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    whole = len(tasks) + len(summary.missing)
    axes.set(ylabel="headline metric", ylim=(0, 1), title=f"{summary.title}: {len(tasks)} of {whole} tasks")
    axes.grid(axis="y", alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=2)
    drawing.savefig(path, dpi=150)


def figure(width: float, height: float) -> tuple[Any, Any]:
    """Return a matplotlib figure of so many inches, and its axes. Raises: MissingExtraError."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "eval", "drawing reports") from error
    # Of its own: pyplot would open windows and keep every figure.
    drawing = module.Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots()
