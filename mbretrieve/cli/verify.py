"""``mbretrieve verify``: is an index sound?"""

from pathlib import Path

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.options import index_option
from mbretrieve.cli.printable import printable
from mbretrieve.cli.target import require


@click.command("verify")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@index_option
@click.pass_context
def command(context: click.Context, path: Path | None, index: Path | None) -> None:
    """Recompute every hash and count of an index.

    The index is that of PATH (the current folder) or the one named.

    Prints a line for each problem and exits 1 if there is any; `mbretrieve repair` is then the next step.
    """
    from mbretrieve.index import open_index

    target = require(path, index)
    with open_index(target.index) as opened:
        problems = opened.verify()
        documents = opened.status()["documents"]
    for problem in problems:
        click.echo(printable(problem))
    if problems:
        say("`mbretrieve repair` mends what can be mended")
        context.exit(1)
    click.echo(printable(f"{target.index}: {documents:,} documents, all sound"))
