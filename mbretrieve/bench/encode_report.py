"""The figures of ``bench encode`` as a table and as a picture."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbretrieve.bench.encode import Report, Row, device_name
from mbretrieve.evaluation.report import figure


def write(path: Path, report: Report) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(report.as_json(), indent=1) + "\n", "utf-8")


def print_table(report: Report, console: Console) -> None:
    """Print a line an engine, work by work, and what the columns do not show."""
    console.print(f"{report.model}, on {device_name(report.device)}, {report.asked.batch_tokens:,} tokens at once")
    for dtype, rate in report.roofline.items():
        console.print(f"roofline, {dtype} matrix products of these shapes: {rate:,.0f} GFLOP/s")
    caption = f"times: how many times as fast as the line's engine {report.rows[0].label} is" if report.rows else None
    table = Table(caption=caption, caption_justify="left")
    for name in ("work", "engine"):
        table.add_column(name, no_wrap=True)
    known = any(row.peak is not None for row in report.rows)
    peak = ("of peak",) if known else ()
    for name in ("tokens/s", "documents/s", "of roofline", *peak, "times", "largest batch"):
        table.add_column(name, justify="right", no_wrap=True)
    for rows in by_work(report):
        for row in rows:
            table.add_row(
                row.work if row is rows[0] else "",
                row.label,
                f"{row.tokens_per_second:,.0f}",
                f"{row.documents / row.median:,.1f}",
                f"{row.share_of_roofline:.0%}",
                *(["-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"] if known else []),
                "" if row is rows[0] else f"{rows[0].tokens_per_second / row.tokens_per_second:.2f}",
                "-" if row.largest_batch is None else f"{row.largest_batch:,}",
                end_section=row is rows[-1],
            )
    console.print(table)
    for dtype, peak_rate in {row.dtype: row.peak for row in report.rows if row.peak is not None}.items():
        console.print(f"peak, {dtype}: {peak_rate / 1000:,.0f} TFLOP/s, as the maker has it")
    for size, engine, dtype, ratio in report.variable_to_fixed():
        console.print(f"{size} tokens, variable over fixed lengths: {engine} {dtype}: {ratio:.2f}x")
    for what, why in report.left_out.items():
        console.print(f"left out: {what}: {why}")


def by_work(report: Report) -> list[list[Row]]:
    """Return the rows of each work; mbretrieve's, as shipped, is the first of each."""
    works = dict.fromkeys(row.work for row in report.rows)
    return [[row for row in report.rows if row.work == work] for work in works]


SHADES = {"float32": 0.4, "int8": 0.7}
"""How much of an engine's colour the bars of a dtype have."""


def plot(path: Path, report: Report) -> None:
    """Draw tokens a second: a group of bars for each work, and over each bar the roofline in its dtype.

    Raises: MissingExtraError.
    """
    groups = by_work(report)
    labels = list(dict.fromkeys(row.label for row in report.rows))
    drawing, axes = figure(max(6.5, 1.6 * len(groups) + 2), 4.5)
    engines = list(dict.fromkeys(row.engine for row in report.rows))
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        shown = [(at, row) for at, rows in enumerate(groups) for row in rows if row.label == label]
        first = shown[0][1]
        color, alpha = f"C{engines.index(first.engine)}", SHADES.get(first.dtype, 1.0)
        places = [at + (number - (len(labels) - 1) / 2) * width for at, _ in shown]
        bars = axes.bar(
            places, [row.tokens_per_second for _, row in shown], width, label=label, color=color, alpha=alpha
        )
        axes.bar_label(bars, [f"{row.share_of_roofline:.0%}" for _, row in shown], fontsize=7)
        axes.hlines(
            [row.roofline_tokens_per_second for _, row in shown],
            [place - width / 2 for place in places],
            [place + width / 2 for place in places],
            colors="black",
            label="roofline" if number == len(labels) - 1 else None,
        )
    axes.set_xticks(range(len(groups)), [rows[0].work for rows in groups])
    axes.set_ylabel("tokens/s; on each bar its share of the roofline")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(f"{report.model}, on {device_name(report.device)}", fontsize="medium")
    drawing.legend(loc="outside lower center", ncols=3, fontsize="small")
    drawing.savefig(path, dpi=150)
