"""What runs of training and of pre-training say and return alike."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.printable import printable

if TYPE_CHECKING:
    from mbretrieve.training.running import Outcome


def speaks() -> bool:
    """Whether this process is the one that speaks, of several."""
    return os.environ.get("RANK", "0") == "0"


def show_recipe(toml: str) -> None:
    """Print the whole configuration of a run."""
    for line in toml.splitlines():
        click.echo(printable(line))


def ended(outcome: "Outcome", output: Path, what: str) -> int:
    """Say how a run ended, and return the exit status: 0, or 128 and the number of the signal that stopped it."""
    if outcome.stopped is not None:
        name = signal.Signals(outcome.stopped).name
        if speaks():
            say(f"{name}: stopped after {outcome.step} of {outcome.steps} steps, checkpoint written; --resume goes on")
        return 128 + outcome.stopped
    if speaks():
        say(f"{output} is the {what}, after {outcome.steps} steps of {outcome.tokens:,} tokens")
    return 0
