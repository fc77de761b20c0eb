"""Documentation comments: taken off the functions that they describe, and cut to what a person might ask for."""

import ast
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

_MOST_QUERY, _MOST_DOC = 240, 500  # characters


class Documented(NamedTuple):
    """A definition without its documentation, and that documentation as plain text."""

    doc: str
    code: str


class _Marks(NamedTuple):
    """What a line of documentation begins with, and a block of it."""

    line: str | None
    block: str | None


_SLASHES, _STARS, _HASHES = _Marks("//", None), _Marks(None, "/**"), _Marks("#", None)
MARKS = {
    "go": _SLASHES,
    "rust": _Marks("///", "/**"),
    "csharp": _Marks("///", "/**"),
    "c": _Marks(None, "/*"),
    "cpp": _Marks("//", "/*"),
    "ruby": _HASHES,
    "bash": _HASHES,
    **dict.fromkeys(("java", "javascript", "typescript", "tsx", "php"), _STARS),
}

# Where the description ends and lists of parameters, examples or sections begin.
_END = re.compile(
    r"^\s*(?:[@\\](?!brief\b|summary\b|desc)[a-zA-Z]|:(?:param|returns?|rtype|type|raises)\b|>>> |\.\. |#+ "
    r"|```|[-=~]{3,}"
    r"|(?:args|arguments|parameters|params|returns?|raises|yields|examples?|notes?|usage|attributes|call-seq)\s*:"
    r"|(?:Parameters|Returns|Raises|Yields|Examples?|Notes|Attributes)\s*$)",
    re.MULTILINE | re.IGNORECASE,
)
# Markup -> what of it is read.
_MARKUP = (
    (re.compile(r"^\s*[@\\](?:brief|summary|desc(?:ription)?)\b:?", re.MULTILINE), ""),
    (re.compile(r"\{@\w+\s+(?:[^}|]*\|)?([^}]*)\}"), r"\1"),
    (re.compile(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`"), r"\1"),
    (re.compile(r"!?\[`?([^\]`]+)`?\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>\n]{0,80}>"), " "),
    (re.compile(r"`+"), ""),
    (re.compile(r"[ \t]+([.,;:!?])"), r"\1"),
)
_SENTENCE = re.compile(r"(.{15,}?[.!?])(?:\s+[A-Z(]|\s*$)")
_NO_DESCRIPTION = re.compile(
    r"copyright|licen[cs]e|todo|fixme|xxx|deprecated|auto-?generated|inheritdoc|\{@|noqa|eslint|nolint|^test|^see |://"
    r"|non-javadoc|^override|^@",
    re.IGNORECASE,
)


def documented(text: str, language: str) -> Documented | None:
    """Part a function or class from its documentation; None if it has none, or is not to be told from it."""
    if language == "python":
        return _docstring(text)
    return _above(text.splitlines(), MARKS[language]) if language in MARKS else None


def first_paragraph(doc: str) -> str:
    """Return the first paragraph of documentation as one line of plain text, without markup and lists behind it."""
    for pattern, replacement in _MARKUP:
        doc = pattern.sub(replacement, doc)
    if end := _END.search(doc):
        doc = doc[: end.start()]
    paragraphs = re.split(r"\n\s*\n", doc.strip(), maxsplit=1)
    return " ".join(paragraphs[0].split())[:_MOST_DOC]


def question(paragraph: str, name: str) -> str | None:
    """Return the first sentence, without the name of what it describes; None if nobody could ask for it."""
    sentence = _SENTENCE.match(paragraph)
    query = (sentence[1] if sentence else paragraph)[:_MOST_QUERY]
    # "Open opens the file", "open() - opens it": but "Open the file" begins with a verb.
    own = re.escape(name.rpartition(".")[2])
    query = re.sub(rf"^{own}(?:\(\))?(?:\s*[-:]+\s+|\s+(?:is|are)\s+|\s+(?=[a-z]+s\b))", "", query)
    letters = sum(char.isalpha() or char == " " for char in query)
    is_words = len(query) >= 14 and len(query.split()) >= 3 and letters >= 0.75 * len(query)
    is_ascii = sum(char.isascii() for char in query) >= 0.9 * len(query)
    return query if is_words and is_ascii and not _NO_DESCRIPTION.search(query[:80]) else None


def _docstring(text: str) -> Documented | None:
    code = textwrap.dedent(text)
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # of a class, the first lines alone
        return None
    definition = body[-1] if body else None  # imports may stand above it
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    doc, first = ast.get_docstring(definition), definition.body[0]
    if not doc or (len(definition.body) == 1 and not isinstance(definition, ast.ClassDef)):
        return None
    lines = code.split("\n")
    start = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
    return Documented(doc, "\n".join([*lines[start - 1 : first.lineno - 1], *lines[first.end_lineno :]]).strip("\n"))


def _above(lines: Sequence[str], marks: _Marks) -> Documented | None:
    """Take off the comment right above a definition; another one further up is of something else."""
    doc: list[str] = []
    at = 0
    while at < len(lines):
        stop = _comment_end(lines, at, marks)
        if stop == at:
            if lines[at].strip():
                break
            doc, stop = [], at + 1
        else:
            doc = [_bare(line, marks) for line in lines[at:stop]]
        at = stop
    code = textwrap.dedent("\n".join(lines[at:])).strip("\n").rstrip()
    return Documented("\n".join(doc).strip(), code) if "".join(doc).strip() and code else None


def _comment_end(lines: Sequence[str], start: int, marks: _Marks) -> int:
    """Return the line behind the comment that begins at a line; that line itself if none does."""
    line = lines[start].lstrip()
    if marks.block and line.startswith(marks.block):
        ends = (at for at in range(start, len(lines)) if "*/" in lines[at])
        end = next(ends, None)
        return start if end is None or lines[end].split("*/", 1)[1].strip() else end + 1
    at = start
    while marks.line and at < len(lines) and lines[at].lstrip().startswith(marks.line):
        at += 1
    return at


def _bare(line: str, marks: _Marks) -> str:
    line = line.strip()
    if marks.line and line.startswith(marks.line):
        return line.lstrip(marks.line[0] + "!").removeprefix(" ")
    return re.sub(r"^/\*+!?|\*+/$|^\*+(?!/)", "", line).removeprefix(" ").removesuffix("*/")
