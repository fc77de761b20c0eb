"""Where tables are printed."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(wide: int) -> "Console":
    """Return a console as wide as the terminal; in a file ``wide`` columns, so that no figure is cut off."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=wide)
