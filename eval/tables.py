"""Regenerate the tables of results in README.md from eval/results, or check that they are fresh.

    python eval/tables.py [--check] [--results eval/results] [README.md ...]

A table stands between two comments, the first of which says what is in it; MODEL is a folder of results:

    <!-- table: SUITE MODEL [MODEL ...] -->
    <!-- end of table -->
"""

import argparse
import re
import sys
from pathlib import Path

from mbretrieve.errors import DataError, MbretrieveError
from mbretrieve.evaluation import suites
from mbretrieve.evaluation.report import TaskResult, read_result

ROOT = Path(__file__).parent.parent
TABLE = re.compile(r"(<!-- table: (?P<what>[^\n]+?) -->\n)(?P<rows>.*?)(<!-- end of table -->)", re.DOTALL)


def render(results: Path, suite: str, models: list[str]) -> str:
    """One table: a line a task, a column a model, and the means over the tasks that every model has."""
    columns = [load(results / model / suite) for model in models]
    if suite in suites.names():
        tasks = [task.name for task in suites.get(suite).tasks]
    else:
        tasks = sorted(set().union(*columns))
    lines = [["task", "metric", *models], ["---"] * (len(models) + 2)]
    for task in tasks:
        scores = [column[task].score if task in column else None for column in columns]
        metric = next((column[task].metric for column in columns if task in column), None)
        if metric:
            lines.append([task, metric, *("" if score is None else f"{score:.3f}" for score in scores)])
    shared = [task for task in tasks if all(task in column for column in columns)]
    if len(shared) > 1:
        means = [sum(column[task].score for task in shared) / len(shared) for column in columns]
        lines.append([f"mean of {len(shared)} of {len(tasks)} tasks", "", *(f"{mean:.3f}" for mean in means)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load(folder: Path) -> dict[str, TaskResult]:
    """The results in a folder, by task."""
    found = [read_result(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise DataError(f"no results in {folder}: run mbretrieve eval with --output {folder.parent.parent}")
    return {result.task: result for result in found}


def fresh(text: str, results: Path) -> str:
    """A document with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        suite, *models = match["what"].split()
        if not models:
            raise DataError(
                f"the comment <!-- table: {match['what']} --> names no model: expected SUITE MODEL [MODEL ...]"
            )
        return f"{match[1]}{render(results, suite, models)}{match[4]}"

    return TABLE.sub(table, text)


def main() -> int:
    """Write the tables, or with ``--check`` only compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    parser.add_argument("--results", type=Path, default=ROOT / "eval" / "results")
    parser.add_argument("files", type=Path, nargs="*", default=[ROOT / "README.md"])
    arguments = parser.parse_args()
    stale = []
    try:
        for path in arguments.files:
            text = path.read_text("utf-8")
            if (new := fresh(text, arguments.results)) == text:
                continue
            stale.append(path.name)
            if not arguments.check:
                path.write_text(new, "utf-8")
    except MbretrieveError as error:
        print(error, file=sys.stderr)
        return 1
    if stale and arguments.check:
        print(f"stale tables in {', '.join(stale)}: run python eval/tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
