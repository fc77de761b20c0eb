"""Text that people wrote for people, cut by its headings: Markdown, reStructuredText, plain text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mbretrieve.corpus.lines import Unit, pieces

_FRONT_MATTER = 200  # lines within which a front matter ends, or it is none
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<rest>.*)")
_ATX = re.compile(r" {0,3}(?P<marks>#{1,6})(?:[ \t]+(?P<title>.*?))??(?:[ \t]+#+)?[ \t]*")
_SETEXT = re.compile(r" {0,3}(?:(?P<first>=+)|-+)[ \t]*")
_NO_TITLE = re.compile(r"\s*$|\s{4,}|\s*(?:[-*+>|]\s|\d+[.)]\s|#{1,6}\s|\|)")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*")


@dataclass(frozen=True, slots=True)
class Heading:
    """A title: the line where its section begins, its level (1 is the highest), its text."""

    line: int
    level: int
    title: str


def split_markdown(lines: Sequence[str]) -> list[Unit]:
    """Cut Markdown at its headings, `#` and underlined ones; code fences and front matter hold none."""
    return list(_sections(lines, list(_markdown_headings(lines))))


def split_rst(lines: Sequence[str]) -> list[Unit]:
    """Cut reStructuredText at its titles; their styles rank in order of appearance."""
    return list(_sections(lines, list(_rst_headings(lines))))


def split_text(lines: Sequence[str]) -> list[Unit]:
    """Cut plain text into groups of paragraphs of a readable size."""
    return list(_sections(lines, []))


def split_lines_only(lines: Sequence[str]) -> list[Unit]:
    """Cut a text of unknown structure, a configuration or an unlisted language, into runs of lines of readable size."""
    return [Unit(start, end, "block") for start, end in pieces(lines, 0, len(lines))]


def trail(headings: Sequence[str]) -> str:
    """Write headings from the highest down as one line: ``Guide > Install``."""
    return " > ".join(heading for heading in headings if heading)


def _markdown_headings(lines: Sequence[str]) -> Iterator[Heading]:
    fence = ""
    start = _after_front_matter(lines)
    for number in range(start, len(lines)):
        line = lines[number].rstrip("\r\n")
        found = _FENCE.fullmatch(line)
        if fence:
            if found and found["fence"].startswith(fence) and not found["rest"].strip():
                fence = ""
        elif found and not (found["fence"][0] == "`" and "`" in found["rest"]):
            fence = found["fence"]
        elif atx := _ATX.fullmatch(line):
            yield Heading(number, len(atx["marks"]), (atx["title"] or "").strip())
        elif (setext := _SETEXT.fullmatch(line)) and number > start and not _NO_TITLE.match(lines[number - 1]):
            yield Heading(number - 1, 1 if setext["first"] else 2, lines[number - 1].strip())


def _after_front_matter(lines: Sequence[str]) -> int:
    """Return the line after a YAML front matter, whose end would read as a heading's underline; 0 if there is none."""
    if lines and lines[0].rstrip() == "---":
        for number in range(1, min(len(lines), _FRONT_MATTER)):
            if lines[number].rstrip() in ("---", "..."):
                return number + 1
    return 0


def _rst_headings(lines: Sequence[str]) -> Iterator[Heading]:
    styles: list[tuple[str, bool]] = []
    last = -1  # the underline of the last title: it is no overline of the next
    for number in range(1, len(lines)):
        title, under = lines[number - 1].rstrip(), lines[number].rstrip()
        if not title or not _ADORNMENT.fullmatch(under) or _ADORNMENT.fullmatch(title):
            continue
        above = lines[number - 2].rstrip() if number - 2 > last else ""
        over = above == under
        if (above and not over) or (title[0].isspace() and not over) or len(under) < min(len(title.strip()), 4):
            continue  # the end of a paragraph, or a table
        style = (under[0], over)
        if style not in styles:
            styles.append(style)
        yield Heading(number - 2 if over else number - 1, styles.index(style) + 1, title.strip())
        last = number


def _sections(lines: Sequence[str], headings: Sequence[Heading]) -> Iterator[Unit]:
    """Yield the sections between headings, long ones in pieces; a heading without text goes with the next section."""
    start, name, outer = 0, "", ""
    above: list[Heading] = []
    for number, heading in enumerate(headings):
        before = headings[number - 1] if number else Heading(0, 0, "")
        if heading.line > start and not _is_bare(lines, before, heading.line):
            yield from _section(lines, start, heading.line, name, outer)
            start = heading.line
        above = [*(outer for outer in above if outer.level < heading.level), heading]
        titles = [heading.title for heading in above]
        name, outer = trail(titles), trail(titles[:-1])
    yield from _section(lines, start, len(lines), name, outer)


def _is_bare(lines: Sequence[str], heading: Heading, end: int) -> bool:
    """Tell whether a section is its heading and nothing else."""
    written = (line.strip() for line in lines[heading.line : end])
    return all(not line or line.strip("# \t") == heading.title or _ADORNMENT.fullmatch(line) for line in written)


def _section(lines: Sequence[str], start: int, end: int, name: str, outer: str) -> Iterator[Unit]:
    for first, last in pieces(lines, start, end):
        # Only the first piece shows its heading.
        yield Unit(first, last, "section", name, outer if first == start else name)
