"""The command group: what ``mbretrieve --help`` lists."""

import click

from mbretrieve import __version__
from mbretrieve.cli import (
    bench,
    compact,
    delete,
    evaluate,
    index,
    mine,
    pretrain,
    repair,
    search,
    status,
    train,
    verify,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mbretrieve")
def app() -> None:
    """Find code and documents by meaning, offline.

    \b
        mbretrieve index .
        mbretrieve search "where is the config file read"
    """


COMMANDS = (index, search, status, delete, verify, repair, compact, evaluate, bench, mine, train, pretrain)
for module in COMMANDS:
    app.add_command(module.command)
