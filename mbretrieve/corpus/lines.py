"""Lines and runs of lines: the law of this room is that every line of a file belongs to exactly one unit, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mbretrieve.types import Metadata

# A piece that a person reads at a glance and a model of 192 tokens covers in a few windows.
MOST_LINES = 60
MOST_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Unit:
    """A run of lines ``start <= line < end``, counted from 0: what it is, its qualified name or "", its context."""

    start: int
    end: int
    kind: str
    name: str = ""
    context: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """What becomes a Document: a unit's lines, or a text taken out of a file that is not lines of text itself.

    ``start_line`` and ``end_line`` count from 1, both included; where there are no lines in the file to count, they
    count those of the text taken out. ``extra`` is further metadata.
    """

    text: str
    start_line: int
    end_line: int
    unit: str
    name: str = ""
    context: str = ""
    extra: Metadata = field(default_factory=dict)


def passage(lines: Sequence[str], unit: Unit) -> Passage:
    """Return a unit with its text, the exact lines."""
    text = "".join(lines[unit.start : unit.end])
    return Passage(text, unit.start + 1, unit.end, unit.kind, unit.name, unit.context)


def split_lines(text: str) -> list[str]:
    """Cut a text after each line feed, which stays with its line: form feeds and U+2028 end no line in an editor."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def pieces(lines: Sequence[str], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut the lines ``start <= line < end`` into runs of a readable size, at blank lines or outer indentation.

    No run is over MOST_LINES, and none over MOST_CHARS unless it is a single line.
    """
    while start < end:
        stop = _furthest(lines, start, end)
        if stop < end:
            # The later half is searched for the best place, the last one among equals.
            places = range(stop, start + (stop - start) // 2, -1)
            stop = min(places, key=lambda line: _cut_cost(lines, line), default=stop)
        yield start, stop
        start = stop


def _furthest(lines: Sequence[str], start: int, end: int) -> int:
    chars = 0
    for line in range(start, min(end, start + MOST_LINES)):
        chars += len(lines[line])
        if chars > MOST_CHARS and line > start:
            return line
    return min(end, start + MOST_LINES)


def _cut_cost(lines: Sequence[str], line: int) -> int:
    """What it costs to begin a piece at a line: nothing after a blank one, else its indentation."""
    text = lines[line]
    if not text.strip():
        return 1000
    return 0 if not lines[line - 1].strip() else 1 + min(len(text) - len(text.lstrip()), 900)
