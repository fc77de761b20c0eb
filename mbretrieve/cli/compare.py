"""``mbretrieve eval compare``: is one result better than another, and on which queries?"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.printable import printable
from mbretrieve.errors import DataError, MbretrieveError

if TYPE_CHECKING:
    from mbretrieve.evaluation.report import TaskResult


@click.command("compare")
@click.argument("a", metavar="A.json", type=click.Path(path_type=Path))
@click.argument("b", metavar="B.json", type=click.Path(path_type=Path))
@click.option("--test", type=click.Choice(["bootstrap", "t-test"]), default="bootstrap", show_default=True)
@click.option("--worst", type=click.IntRange(min=0), default=10, show_default=True, help="How many losses to show.")
@click.option("--suite", metavar="FOLDER", help="Where the queries' texts are, if the suite was a folder.")
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="As for `mbretrieve eval`.")
def command(
    a: Path, b: Path, test: Literal["bootstrap", "t-test"], worst: int, suite: str | None, data_dir: Path | None
) -> None:
    """Compare two results of one task, query by query: B against A.

    Prints both means, the difference with its 95% interval and p-value, wins and losses, and the queries on which B
    loses most, with their texts.
    """
    from mbretrieve.evaluation import significance
    from mbretrieve.evaluation.report import read_result

    first, second = read_result(a), read_result(b)
    _check(first, second)
    found = significance.compare(first.per_query, second.per_query, test)
    texts = _texts(first, suite, data_dir) if worst and found.worst(1) else {}
    click.echo(f"{first.task}, {first.metric}")
    for line in significance.describe(found, (first.model, second.model), texts, worst):
        click.echo(printable(line))


def _check(a: "TaskResult", b: "TaskResult") -> None:
    """Refuse what cannot be compared. Raises: DataError."""
    for what, of_a, of_b in (
        ("tasks", a.task, b.task),
        ("splits", a.split or "its own", b.split or "its own"),
        ("headline metrics", a.metric, b.metric),
        ("data (by checksum)", _checksums(a), _checksums(b)),
    ):
        if of_a != of_b:
            raise DataError(f"the results are of different {what}, {of_a} and {of_b}: compare results of one task")


def _checksums(result: "TaskResult") -> str:
    return ", ".join(str(part.get("checksum")) for part in result.provenance.get("data", []))


def _texts(result: "TaskResult", suite: str | None, data_dir: Path | None) -> dict[str, str]:
    """Return the queries' texts, from the data if it is there: without them the comparison is still good."""
    from mbretrieve.evaluation import datasets, suites
    from mbretrieve.folder import cache_folder

    try:
        [task] = suites.get(suite or result.suite, (result.task,), result.split or None).tasks
        texts: dict[str, str] = {}
        for part in task.parts:
            prefix = f"{part.name}/" if len(task.parts) > 1 else ""
            queries = datasets.load(part, cache_folder() / "evaluation", data_dir).queries
            texts |= {prefix + query: text for query, text in queries.items()}
        return texts
    except MbretrieveError as error:
        say(f"without the queries' texts ({error}); name their folder with --suite or --data-dir")
        return {}
