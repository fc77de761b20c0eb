"""Which lines of a hit are shown: all of a short unit, the best lines and their neighbours of a long one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbretrieve.cli.printable import printable

if TYPE_CHECKING:
    from mbretrieve.types import Hit

WHOLE_UNIT = 20
"""A unit of at most so many lines is shown whole unless ``-n`` says otherwise."""
CONTEXT = 3
TAB = 4  # a tab after the line number would stop at a column of its own
LONGEST_LINE = 500
"""Characters of a line that are shown: a paragraph fits, a line of data does not fill the screen."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a hit: its number in the file if it has one, and whether it is among the best."""

    index: int
    number: int | None
    text: str
    best: bool


def runs(count: int, best: Collection[int], context: int | None) -> list[range]:
    """Return the runs of lines to show, out of ``count``: 0-based, in order, with a gap of at least two lines between.

    ``context`` lines are shown on each side of a best line; None shows a short unit whole. Without a best line the
    beginning stands in.
    """
    if context is None:
        if count <= WHOLE_UNIT:
            return [range(count)]
        context = CONTEXT
    around = sorted(line for line in best if 0 <= line < count) or [min(context, count - 1)]
    found: list[range] = []
    for line in around:
        start, stop = max(0, line - context), min(count, line + context + 1)
        # A gap of one line costs as much room as the line: show it instead.
        if found and start <= found[-1].stop + 1:
            found[-1] = range(found[-1].start, max(stop, found[-1].stop))
        else:
            found.append(range(start, stop))
    return found


def lines_of(hit: "Hit") -> list[str]:
    """Split a hit's text at its line feeds; what a terminal must not get is spelled out, a CRLF's return dropped."""
    return [printable(line.removesuffix("\r")).expandtabs(TAB) for line in hit.text.removesuffix("\n").split("\n")]


def snippet(hit: "Hit", best: Collection[int], context: int | None) -> list[list[Line]]:
    """Cut the lines to show out of a hit, run by run."""
    texts = lines_of(hit)
    first = first_line(hit, texts)
    while len(texts) > 1 and not texts[-1].strip():  # the lines between two units belong to the first
        texts.pop()
    return [
        [Line(i, None if first is None else first + i, shorten(texts[i]), i in best) for i in run]
        for run in runs(len(texts), best, context)
    ]


def first_line(hit: "Hit", texts: Sequence[str]) -> int | None:
    """Return the number of the hit's first line, or None where its text is not lines of the file (PDF, HTML, JSON)."""
    start, end = hit.metadata.get("start_line"), hit.metadata.get("end_line")
    if isinstance(start, int) and isinstance(end, int) and end - start + 1 == len(texts):
        return start
    return None


def shorten(line: str) -> str:
    """Cut a line at the longest that is shown."""
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " …"
