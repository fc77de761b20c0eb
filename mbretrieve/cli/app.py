"""The command group: what ``mbretrieve --help`` lists."""

from importlib import import_module

import click

from mbretrieve import __version__

# A command's name and its module, imported when it is run or listed: a search does not wait for the others.
COMMANDS = {
    "index": "index",
    "search": "search",
    "status": "status",
    "delete": "delete",
    "verify": "verify",
    "repair": "repair",
    "compact": "compact",
    "eval": "evaluate",
    "bench": "bench",
    "mine": "mine",
    "train": "train",
    "pretrain": "pretrain",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click asks
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"mbretrieve.cli.{COMMANDS[cmd_name]}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mbretrieve")
def app() -> None:
    """Find code and documents by meaning, offline.

    \b
        mbretrieve index .
        mbretrieve search "where is the config file read"
    """
