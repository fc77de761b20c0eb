"""The figures of ``bench index`` as a table and as a picture."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbretrieve.bench.index import Point, Report
from mbretrieve.evaluation.report import figure

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
    table = Table()
    names = ("", "probes", "tokens", "rescore", "recall@10", "recall@100", "p50 ms", "p95 ms", "queries/s", "1 thread")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for point in report.points:
        effort = point.effort
        table.add_row(
            "default" if point == report.default else "",
            *map(str, (effort.probes, effort.tokens, effort.rescore)),
            f"{point.recall_10:.4f}",
            f"{point.recall_100:.4f}",
            f"{point.p50_ms:.1f}",
            f"{point.p95_ms:.1f}",
            f"{point.qps:.1f}",
            f"{point.qps_one_thread:.1f}",
        )
    console.print(table)
    if report.build is not None:
        build = report.build
        console.print(
            f"packed again: {build['tokens_per_second']:,} tokens/s on one thread, "
            f"{build['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak"
        )


def plot(path: Path, report: Report) -> None:
    """Draw recall@10 against p50: a curve over the probes, and the other settings beside it.

    Raises: MissingExtraError.
    """
    drawing, axes = figure(6.5, 4.5)
    default = report.default.effort
    for name, places in {
        "probes": _varied(report, tokens=default.tokens, rescore=default.rescore),
        "tokens": _varied(report, probes=default.probes, rescore=default.rescore),
        "rescore": _varied(report, probes=default.probes, tokens=default.tokens),
    }.items():
        axes.plot(*zip(*places, strict=True), marker="o", label=f"over {name}", alpha=0.8)
    axes.scatter(report.default.p50_ms, report.default.recall_10, s=160, facecolors="none", edgecolors="black")
    axes.annotate("default", (report.default.p50_ms, report.default.recall_10), (0, -18), textcoords="offset points")
    axes.axvline(report.exact_p50_ms, linestyle="--", color="grey", label="exact search")
    axes.set(xlabel="median latency of a query, ms", xscale="log")
    axes.set_ylabel(f"recall@10, exact search over {TRUTHS[report.truth]}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=4)
    drawing.savefig(path, dpi=150)


def _varied(report: Report, **fixed: int) -> list[tuple[float, float]]:
    """Return p50 and recall of the points at which some parts of the setting are as they are named."""

    def at(point: Point) -> bool:
        return all(getattr(point.effort, name) == value for name, value in fixed.items())

    return [(point.p50_ms, point.recall_10) for point in report.points if at(point)]
