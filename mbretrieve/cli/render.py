"""How hits are printed: for a person, for a pipe, for a program."""

import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mbretrieve.cli.printable import printable
from mbretrieve.cli.snippet import Line, lines_of, snippet

if TYPE_CHECKING:
    from rich.text import Text

    from mbretrieve.types import Hit

COLOURED = 100_000
"""Characters of a unit that are parsed for colours; longer text is shown without."""

PathOf = Callable[["Hit"], str | None]


def print_json(hits: "Sequence[Hit]", path_of: PathOf) -> None:
    """Print the documented list: ASCII only, so that it is valid in every encoding and harmless on a terminal."""
    records = [
        {
            "id": hit.id,
            "score": hit.score,
            "path": path_of(hit),
            "start_line": hit.metadata.get("start_line"),
            "end_line": hit.metadata.get("end_line"),
            "text": hit.text,
            "metadata": dict(hit.metadata),
        }
        for hit in hits
    ]
    click.echo(json.dumps(records, indent=2))


def print_paths(hits: "Sequence[Hit]", path_of: PathOf, k: int) -> None:
    """Print the first ``k`` files, each once, in the order of its best hit."""
    for path in list(dict.fromkeys(path_of(hit) or hit.id for hit in hits))[:k]:
        click.echo(printable(path))


def print_hits(hits: "Sequence[Hit]", best: Sequence[Collection[int]], context: int | None, path_of: PathOf) -> None:
    """Print path, lines, score and unit of each hit, then its lines: the best are marked with ``>``."""
    show = _coloured if sys.stdout.isatty() else _plain
    pairs = zip(hits, best, strict=True)
    show([(hit, _title(hit, path_of(hit)), snippet(hit, lines, context)) for hit, lines in pairs])


def _title(hit: "Hit", path: str | None) -> tuple[str, str]:
    start, end = hit.metadata.get("start_line"), hit.metadata.get("end_line")
    where = printable(hit.id if path is None else path)
    if start is not None:
        where += f":{start}-{end}"
    unit = " ".join(str(hit.metadata[key]) for key in ("unit", "name") if hit.metadata.get(key))
    return where, f"{hit.score:.3f}  {printable(unit)}".rstrip()


Shown = Sequence[tuple["Hit", tuple[str, str], list[list[Line]]]]


def _plain(shown: Shown) -> None:
    for position, (_, (where, rest), pieces) in enumerate(shown):
        click.echo(("\n" if position else "") + f"{where}  {rest}")
        for number, piece in enumerate(pieces):
            if number:
                click.echo("  ...")
            for line in piece:
                click.echo(f"{_gutter(line)}{line.text}".rstrip())


def _gutter(line: Line) -> str:
    return f"{'>' if line.best else ' '} {'' if line.number is None else line.number:>5}  "


def _coloured(shown: Shown) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for position, (hit, (where, rest), pieces) in enumerate(shown):
        if position:
            console.print()
        console.print(Text.assemble((where, "bold magenta"), "  ", (rest, "cyan")))
        colours = _syntax(hit)
        for number, piece in enumerate(pieces):
            if number:
                console.print(Text("  ...", "dim"))
            for line in piece:
                text = colours[line.index][: len(line.text)] if colours else line.text
                console.print(Text.assemble((_gutter(line), "bold green" if line.best else "dim"), text))


def _syntax(hit: "Hit") -> "list[Text] | None":
    """Colour a unit's lines by the language of its file; None where it is too long."""
    from rich.syntax import Syntax

    lines = lines_of(hit)
    code = "\n".join(lines)
    if len(code) > COLOURED:
        return None
    lexer = Syntax.guess_lexer(Path(str(hit.metadata.get("path", ""))).name)
    syntax = Syntax("", lexer, theme="ansi_dark", background_color="default")
    coloured = list(syntax.highlight(code).split("\n", allow_blank=True))[: len(lines)]
    # A lexer may drop or add blank lines at the ends: colours of the wrong line are worse than none.
    return coloured if [line.plain for line in coloured] == lines else None
