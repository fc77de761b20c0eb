"""``mbretrieve compact``: bring an index into as few files as can be."""

from pathlib import Path

import click

from mbretrieve.cli.options import index_option, memory_option
from mbretrieve.cli.printable import printable
from mbretrieve.cli.progress import progress_bars
from mbretrieve.cli.sizes import human_size, memory_of
from mbretrieve.cli.target import require


@click.command("compact")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@index_option
@click.option("--retrain", is_flag=True, help="Train one codebook for all vectors, and pack them again by it.")
@memory_option
def command(path: Path | None, index: Path | None, retrain: bool, memory: str | None) -> None:
    """Bring an index into as few files as can be.

    The index is that of PATH (the current folder) or the one named. What deleted documents took is given back.
    """
    from mbretrieve.index import open_index

    size, bars = memory_of(memory), progress_bars()
    target = require(path, index)
    with open_index(target.index) as opened:
        before = opened.status()["bytes"]["total"]
        try:
            opened.compact(retrain=retrain, memory=size, progress=bars)
        finally:  # Ctrl-C too: a bar that is left there keeps the cursor hidden
            if bars is not None:
                bars.finish()
    with open_index(target.index) as opened:
        after = opened.status()["bytes"]["total"]
    click.echo(printable(f"{target.index}: {human_size(before)} before, {human_size(after)} now"))
