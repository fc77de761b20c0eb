"""The command line: one file a command, and heavy imports inside the functions, so that ``--help`` is instant."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Any

import click

from mbretrieve.cli.app import app
from mbretrieve.cli.printable import printable
from mbretrieve.cores import hold_to_quota
from mbretrieve.errors import MbretrieveError, MbretrieveWarning

__all__ = ["main"]

INTERRUPTED = 130
"""128 + SIGINT, what a shell gives a command that Ctrl-C ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 1 after an error that a user can mend, 2 after a usage error.

    Any other exception is a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an old console's encoding lacks characters: escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    # Before torch is imported. Threads that spin while they wait for each other lose a core's whole time slice whenever
    # another program has the core: beside one busy program a core, encoding runs many times faster if they sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    hold_to_quota()
    # oneDNN keeps as many kernels, by default 1024, of up to a MiB each: training has new shapes with every step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say(warnings.showwarning)
            status = app.main(arguments, prog_name="mbretrieve", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is caught
    except MbretrieveError as error:
        click.echo(f"mbretrieve: {printable(str(error))}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("mbretrieve: interrupted; what was committed is kept, run the same command to go on", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # `mbretrieve search ... | head`: leave without a word; the interpreter's own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


def _say(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Return what shows warnings: our own as one line, others as usual."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, MbretrieveWarning):
            click.echo(f"mbretrieve: {printable(str(message))}", err=True)
        else:
            usual(message, category, *place, **more)

    return show
