"""``mbretrieve repair``: mend a damaged index."""

from pathlib import Path

import click

from mbretrieve.cli.options import index_option, memory_option
from mbretrieve.cli.printable import printable
from mbretrieve.cli.sizes import memory_of
from mbretrieve.cli.target import require


@click.command("repair")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@index_option
@memory_option
def command(path: Path | None, index: Path | None, memory: str | None) -> None:
    """Mend a damaged index.

    The index is that of PATH (the current folder) or the one named.

    What follows from the rest is made again. Documents whose text or vectors are damaged are dropped and named;
    `mbretrieve index` then reads their files again. Prints a line for each thing done.
    """
    from mbretrieve.index import open_index

    size = memory_of(memory)
    target = require(path, index)
    with open_index(target.index) as opened:
        done = opened.repair(size)
        documents = len(opened)
    for line in done:
        click.echo(printable(line))
    click.echo(printable(f"{target.index}: {documents:,} documents, {'repaired' if done else 'nothing to repair'}"))
