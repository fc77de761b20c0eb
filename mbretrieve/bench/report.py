"""The figures of ``bench index`` as a table and as a picture."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mbretrieve.bench.index import DEEP, K, Knob, Point, Report, knobs
from mbretrieve.evaluation.report import figure
from mbretrieve.index import Effort

TRUTHS = {"stored": "the vectors in the index", "model": "the model's own vectors"}


def write(path: Path, report: Report) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(report.as_json(), indent=1) + "\n", "utf-8")


def print_table(report: Report, console: Console) -> None:
    """Print a line a setting; the default is marked."""
    status = report.status
    console.print(
        f"{status['tokens']:,} tokens of {status['documents']:,} documents, {status['bytes_per_token']} bytes per token"
    )
    console.print(
        f"{report.queries} queries; exact search over {TRUTHS[report.truth]}: p50 {report.exact_p50_ms:.1f} ms"
    )
    caption = (
        f"effort: probes/tokens/rescore. recall@{DEEP} and the p50 beside it: k={DEEP}, at an effort as much further "
        f"as the default then goes; all else: k={K}."
    )
    table = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    measured = ("recall@10", "p50 ms", "p95 ms", "queries/s", "1 thread")
    for name in ("", f"effort, k={K}", *measured, f"effort, k={DEEP}", "recall@100", "p50 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in report.points:
        table.add_row(
            "default" if point == report.default else "",
            _spelled(point.effort),
            f"{point.recall_10:.4f}",
            f"{point.p50_ms:.1f}",
            f"{point.p95_ms:.1f}",
            f"{point.qps:.1f}",
            f"{point.qps_one_thread:.1f}",
            _spelled(point.deep),
            f"{point.recall_100:.4f}",
            f"{point.deep_p50_ms:.1f}",
        )
    console.print(table)
    if (build := report.build) is not None:
        unit = "vectors" if status["kind"] == "dense" else "tokens"
        console.print(
            f"build: {build['tokens_per_second']:,} {unit}/s on one thread, "
            f"{build['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak: {build['what']}"
        )
    else:
        console.print(f"build: not measured: {report.not_built}")


def _spelled(effort: Effort) -> str:
    return f"{effort.probes}/{effort.tokens}/{effort.rescore}"


def plot(path: Path, report: Report) -> None:
    """Draw recall@10 against p50: a curve for each knob that is turned.

    Raises: MissingExtraError.
    """
    drawing, axes = figure(6.5, 4.5)
    for knob in knobs(report.status):
        axes.plot(*zip(*_turned(report, knob), strict=True), marker="o", label=f"over {knob.name}", alpha=0.8)
    axes.scatter(report.default.p50_ms, report.default.recall_10, s=160, facecolors="none", edgecolors="black")
    axes.annotate("default", (report.default.p50_ms, report.default.recall_10), (0, -18), textcoords="offset points")
    axes.axvline(report.exact_p50_ms, linestyle="--", color="grey", label="exact search")
    axes.set(xlabel="median latency of a query, ms", xscale="log")
    axes.set_ylabel(f"recall@10, exact search over {TRUTHS[report.truth]}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=4)
    drawing.savefig(path, dpi=150)


def _turned(report: Report, knob: Knob) -> list[tuple[float, float]]:
    """Return p50 and recall of the points that differ from the default in nothing but a knob."""
    fixed = {"probes", "tokens", "rescore"} - set(knob.parts)

    def at(point: Point) -> bool:
        return all(getattr(point.effort, part) == getattr(report.default.effort, part) for part in fixed)

    return [(point.p50_ms, point.recall_10) for point in report.points if at(point)]
