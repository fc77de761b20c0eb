"""``mbretrieve bench``: measure, here, what the user has."""

from pathlib import Path
from typing import Literal

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.progress import progress_bars
from mbretrieve.cli.tables import console
from mbretrieve.cli.target import require
from mbretrieve.errors import DataError, MissingExtraError

TABLE_COLUMNS = 120  # of a table that goes into a file


@click.group("bench")
def command() -> None:
    """Measure what an index costs and what it loses."""


@command.command("index")
@click.option("--index", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The index folder.")
@click.option(
    "--queries",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='Queries: an object with "text" or "query" a line, as BEIR has them.',
)
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="OUT", help="Where to write the figures.")
@click.option(
    "--exact-from",
    type=click.Choice(["stored", "model"]),
    default="stored",
    show_default=True,
    help="What recall is against: every document by its stored vectors, or encoded again by the model.",
)
def index(index: Path, queries: Path, output: Path | None, exact_from: Literal["stored", "model"]) -> None:
    """Measure recall, latency and queries a second of an index, for settings around the default.

    --json writes {"tokens", "documents", "bytes_per_token", "exact": {"p50_ms"}, "settings": [{"probes", "tokens",
    "rescore", "recall@10", "recall@100", "p50_ms", "p95_ms", "qps"}], "default": one of them, "build", ...} and draws
    recall@10 against p50 in a PNG beside it. Queries are encoded before anything is timed; p50 and p95 are of one
    query at a time, qps of as many callers as there are cores. "build" is a copy of the index, packed again.
    """

    from mbretrieve.bench import report
    from mbretrieve.bench.index import measure_index, read_queries

    texts = read_queries(queries)
    if output is not None and not output.parent.is_dir():
        raise DataError(f"{output.parent} is no folder: name a file in one that exists")
    measured = measure_index(require(None, index).index, texts, exact_from, progress_bars())
    report.print_table(measured, console(TABLE_COLUMNS))
    if output is None:
        return
    report.write(output, measured)
    try:
        report.plot(output.with_suffix(".png"), measured)
    except MissingExtraError as error:
        say(str(error))
