"""HTML to passages: the text that a reader would see, cut at its headings.

The standard library's parser, by events. beautifulsoup4 would build a tree from the same events and keep neither the
line of a text nor the order of the ends of elements among them, which are what is needed here.
"""

import re
from collections.abc import Sequence
from html.parser import HTMLParser

from mbretrieve.corpus.lines import Passage, pieces, split_lines
from mbretrieve.corpus.prose import trail
from mbretrieve.corpus.records import SkipFile

_UNSEEN = frozenset({"script", "style", "template", "svg", "noscript", "iframe", "object"})
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_INLINE = frozenset(
    ["a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "input", "ins",
     "kbd", "label", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
     "time", "tt", "u", "var", "wbr"]
)  # fmt: skip
_CELLS = frozenset({"td", "th"})


class _Section:
    """One section while it is read: its headings, its text so far, its first and last line in the file."""

    def __init__(self, headings: Sequence[str], line: int) -> None:
        self.headings = list(headings)
        self.parts: list[str] = []
        self.first = self.last = line

    def text(self) -> str:
        # One space before a line is what is left of the markup's indentation; several are from a <pre>.
        text = re.sub(r"(?<![^\S\n])[^\S\n]*\n(?: (?=\S))?", "\n", "".join(self.parts))
        return re.sub(r"\n{3,}", "\n\n", text).strip()


class _Reader(HTMLParser):
    """Collects sections from the parser's events."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.sections = [_Section((), 1)]
        self._unseen: list[str] = []
        self._headings: list[tuple[int, str]] = []
        self._in_title = False
        self._level = 0  # of the heading that is being read
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in _UNSEEN:
            if tag not in self._unseen:  # the first one's end ends all within it
                self._unseen.append(tag)
        elif tag == "title":
            self._in_title = True
        elif tag in _HEADINGS:
            self._close_heading()
            self._level = _HEADINGS[tag]
            self._headings = [above for above in self._headings if above[0] < self._level]
            self.sections.append(_Section([title for _, title in self._headings], self.getpos()[0]))
        elif tag == "pre":
            self._verbatim += 1
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        elif tag == "title":
            self._in_title = False
        elif tag in _HEADINGS:
            self._close_heading()
        elif tag == "pre":
            self._verbatim = max(self._verbatim - 1, 0)
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._unseen:
            section = self.sections[-1]
            section.parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))
            if data.strip():
                section.last = max(section.last, self.getpos()[0] + data.rstrip().count("\n"))

    def _break(self, tag: str) -> None:
        if tag not in _INLINE and not self._unseen and not self._in_title:
            self.sections[-1].parts.append("\t" if tag in _CELLS else "\n")

    def _close_heading(self) -> None:
        if self._level:
            section = self.sections[-1]
            title = " ".join(section.text().split())
            section.headings.append(title)
            self._headings.append((self._level, title))
            self._level = 0


def read_html(text: str) -> list[Passage]:
    """Return a page's sections; lines are those of the file, in which a section's text stands among its tags.

    A heading without text goes with the section after it. Raises: SkipFile if there is nothing to read in the page.
    """
    reader = _Reader()
    reader.feed(text)
    # Markup without an end takes the rest with it, as in a browser. Closing the parser, in a Python older than the fix
    # of CVE-2025-6069, would look for that end from each `<` again: time by the square of the length.
    if not reader.rawdata.startswith("<"):
        reader.close()
    page = " ".join(reader.title.split())
    passages: list[Passage] = []
    pending: list[str] = []
    first = 0
    for section in reader.sections:
        body = section.text()
        if not body:
            continue
        first = first or section.first
        pending.append(body)
        if section.headings and body == section.headings[-1] and section is not reader.sections[-1]:
            continue
        context = trail([page, *section.headings[:-1]])
        whole = split_lines("\n\n".join(pending))
        for start, end in pieces(whole, 0, len(whole)):
            passages.append(
                Passage(
                    "".join(whole[start:end]).strip(),
                    first,
                    section.last,
                    "section",
                    trail(section.headings),
                    context if start == 0 else trail([page, *section.headings]),
                )
            )
        pending, first = [], 0
    if not passages:
        raise SkipFile("no text", "an HTML page without words")
    return passages
