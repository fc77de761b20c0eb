"""Source code to units: functions, methods, class headers, and blocks of what stands between them.

Tree-sitter says where the definitions are; every line that no definition claims goes to a block, so that a file that
does not parse loses nothing but structure.
"""

import re
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mbretrieve.corpus.languages import Language, ScopeKind, grammar
from mbretrieve.corpus.lines import Unit, pieces

if TYPE_CHECKING:
    import tree_sitter

# What parsing may cost: source code takes a second for ten megabytes or so; what takes far longer is hostile.
PARSE_SECONDS = 1.0
PARSE_BYTES_A_SECOND = 500_000
PARSE_BYTES = 8 << 20
_READ = 1 << 12
_OPEN_ANGLES = 2000  # in one statement
_DEEPEST = 100  # nesting below which no definition is looked for
_SIGNATURE = 160  # characters of a class's signature in its methods' context
_LONG = 1000  # characters over which a function is seen in windows that may not show its signature
_NAME = 80  # characters of a name
_FEW = 3  # lines that are no unit of their own
_FUNCTIONS = ("function", "method")
_OWNER = re.compile(r"(\w+)\s*(?:\[[^\]]*\])?\s*\)?\s*$")
_TYPE_ARGUMENTS = re.compile(r"\s*<[^<>]*>")
# Lines that only close what stands above them.
_CLOSING = re.compile(r"\s*(?:[\W_]*|[\])};,]+\s*(?://|/\*|#).*|(?:end|fi|done|esac|#\s*endif\b.*)\W*)\s*", re.DOTALL)
# A line that opens what stands below it.
_OPENING = re.compile(r".*[{(\[:]\s*|\s*#\s*(?:if|ifdef|ifndef|elif|else)\b.*\s*", re.DOTALL)


@dataclass(slots=True)
class _Span:
    """The lines of a definition, or of the whole file: a function or method, or a scope with spans inside."""

    start: int
    end: int
    kind: ScopeKind | str
    name: str = ""
    signature: str = ""
    inner: list["_Span"] = field(default_factory=list)


def split_code(text: str, lines: Sequence[str], language: Language) -> list[Unit]:
    """Cut source code into units: every line is in exactly one, in order.

    A definition's unit begins with the comments, decorators and attributes right above it. A class's header reaches to
    its first method. Functions inside functions stay where they are. What lies between is cut into readable blocks.
    """
    source = text.replace("\0", " ").encode()  # a grammar takes a null byte for the end of the file
    root = _Span(0, len(lines), "module")
    finder = _Finder(source, language)
    tree = _parse(source, language)
    finder.visit(tree.root_node, root, None, 0)
    return _Filler(lines, finder.leading, root).units()


def _parse(source: bytes, language: Language) -> "tree_sitter.Tree":
    """Parse as much as the limits of size and time allow: beyond them the file ends for the grammar.

    Not with tree-sitter's progress callback: in releases before 0.26.1 using it ends the process.
    """
    import tree_sitter

    # A comparison or a type argument? A grammar keeps both in mind for each `<`: 5,000 of them take C#'s 1.8 gigabytes.
    statements = re.split(rb"[;{}]", source)
    too_deep = any(part.count(b"<") - part.count(b">") > _OPEN_ANGLES for part in statements)
    start = time.thread_time()  # not the clock: other processes' work is not this file's fault

    def read(offset: int, _: object) -> bytes:
        seconds = time.thread_time() - start
        if too_deep or offset > PARSE_BYTES or seconds > PARSE_SECONDS + offset / PARSE_BYTES_A_SECOND:
            return b""
        return source[offset : offset + _READ]

    return tree_sitter.Parser(grammar(language)).parse(read)


class _Finder:
    """Finds the definitions of one parsed file."""

    def __init__(self, source: bytes, language: Language) -> None:
        self.source = source
        self.language = language
        self.leading: set[int] = set()

    def visit(self, parent: "tree_sitter.Node", scope: _Span, start: int | None, depth: int) -> None:
        """Add the definitions below ``parent`` to ``scope``; ``start`` is the first line of a wrapper around them."""
        is_scope = parent.type in self.language.scopes
        for node in parent.named_children:
            first, end = node.start_point.row, _end(node)
            kind = node.type
            if kind in self.language.leading:
                if self._begins_line(node):
                    self.leading.update(range(first, end))
                continue
            begin = first if start is None else start
            named = self._definition(node, kind, first, end)
            if named is not None:
                span = _Span(self._with_leading(begin), end, named[0], named[1], self._signature(node))
                if span.kind not in _FUNCTIONS:
                    self.visit(node, span, None, depth + 1)
                if span.kind not in ("impl", "module") or span.inner:  # else it is a block like any other
                    scope.inner.append(span)
            elif depth < _DEEPEST and (end - first > 1 or is_scope or kind in self.language.wrappers):
                self.visit(node, scope, begin if kind in self.language.wrappers else None, depth + 1)

    def _definition(self, node: "tree_sitter.Node", kind: str, first: int, end: int) -> tuple[str, str] | None:
        """Return what a node defines, as (kind, name); None if it is no definition that makes a unit."""
        language = self.language
        defines = kind in language.bodiless or node.child_by_field_name("body") is not None
        if kind in language.functions:
            name = self._name(node)
            return ("method" if "." in name else "function", name) if defines else None
        if kind in language.scopes:
            # One line that declares a type is better read with its neighbours.
            return (language.scopes[kind], self._name(node)) if defines and end - first > 1 else None
        if assigned := language.assigned.get(kind):
            value, target = node.child_by_field_name(assigned.value), node.child_by_field_name(assigned.name)
            if value is None or target is None:
                return None
            name = self._text(target).strip("\"'`")[:_NAME]
            if self._holds_function(value):
                return "function", name
            if value.type in language.object_values and end - first > 1:
                return "class" if value.child_by_field_name("body") is not None else "module", name
        return None

    def _holds_function(self, value: "tree_sitter.Node") -> bool:
        """Tell whether a value is a function, or a call that is given one, as `memo(() => ...)` is."""
        if value.type == "call_expression" and (arguments := value.child_by_field_name("arguments")) is not None:
            return any(argument.type in self.language.function_values for argument in arguments.named_children)
        return value.type in self.language.function_values

    def _name(self, node: "tree_sitter.Node") -> str:
        receiver = node.child_by_field_name("receiver")  # Go: func (s *Server) Start()
        owner = _OWNER.search(self._text(receiver)) if receiver is not None else None
        if node.child_by_field_name("declarator") is not None:
            text = self._text(_declared(node))
        else:
            fields = (node.child_by_field_name(key) for key in ("name", "operator", "type"))
            text = next((self._text(found) for found in fields if found is not None), "")
        while "<" in text and "operator" not in text and (plain := _TYPE_ARGUMENTS.sub("", text)) != text:
            text = plain
        text = text.replace("::", ".")[:_NAME]
        return f"{owner[1]}.{text}" if owner else text

    def _signature(self, node: "tree_sitter.Node") -> str:
        """Return what stands before the body, in one line, from the line of the name on: annotations are left out."""
        body, name = node.child_by_field_name("body"), node.child_by_field_name("name")
        start = max(node.start_byte, self.source.rfind(b"\n", 0, name.start_byte) + 1 if name is not None else 0)
        end = min(body.start_byte if body is not None else node.end_byte, start + 4 * _SIGNATURE)
        text = self.source[start:end].decode("utf-8", "ignore")
        if node.type in self.language.bodiless or body is None:
            text = text.partition("\n")[0]
        return " ".join(text.split())[:_SIGNATURE].rstrip(" {:=")

    def _text(self, node: "tree_sitter.Node") -> str:
        return " ".join(self.source[node.start_byte : node.end_byte].decode("utf-8", "replace").split())

    def _begins_line(self, node: "tree_sitter.Node") -> bool:
        line = self.source.rfind(b"\n", 0, node.start_byte) + 1
        return not self.source[line : node.start_byte].strip()

    def _with_leading(self, line: int) -> int:
        while line - 1 in self.leading:
            line -= 1
        return line


def _end(node: "tree_sitter.Node") -> int:
    """Return the line after a node's last; a node that ends with a line feed does not reach into the next line."""
    end = node.end_point
    return end.row if end.column == 0 and end.row > node.start_point.row else end.row + 1


def _declared(node: "tree_sitter.Node") -> "tree_sitter.Node":
    """Follow C's declarators, of pointers, references and functions, to the name that they declare."""
    while True:
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type == "reference_declarator":
            inner = node.named_children[-1]
        if inner is None:
            return node
        node = inner


class _Filler:
    """Turns spans into units. A unit begins where the last one ended, so that no line can be lost or taken twice."""

    def __init__(self, lines: Sequence[str], leading: Set[int], root: _Span) -> None:
        self.lines = lines
        self.leading = leading
        self.root = root
        self.found: list[Unit] = []

    def units(self) -> list[Unit]:
        """Return the units of a whole file."""
        self._scope(self.root, ())
        self._join_previous(len(self.lines), self.root, ())
        return self.found

    def _scope(self, span: _Span, above: tuple[_Span, ...]) -> None:
        scopes = (*above, span) if span.name else above
        line = span.start
        for inner in span.inner:
            start, end = max(line, inner.start), min(span.end, inner.end)
            if start >= end:
                continue  # several definitions on one line are one unit
            self._gap(line, start, span, scopes, is_last=False)
            if inner.kind in _FUNCTIONS:
                self._function(replace(inner, start=start, end=end), span, scopes)
            else:
                self._scope(replace(inner, start=start, end=end), scopes)
            line = end
        self._gap(line, span.end, span, scopes, is_last=True)

    def _gap(self, start: int, end: int, span: _Span, scopes: tuple[_Span, ...], is_last: bool) -> None:
        """Place the lines between two definitions: with the one above, the one below, or in blocks of their own."""
        is_head = start == span.start
        while start < end and self.found and not self.lines[start].strip():
            start += 1
            self._join_previous(start, span, scopes)
        written = [line for line in range(start, end) if self.lines[line].strip()]
        few = len(written) <= _FEW
        bare_head = is_head and len(written) <= (1 if span is self.root else _FEW)
        if is_head and span.kind == "class":
            self._blocks(end, "class", scopes)
        elif all(_CLOSING.fullmatch(self.lines[line]) for line in written):
            if self.found:
                self._join_previous(end, span, scopes)
        elif not is_last and (bare_head or (few and self._leads(written))):
            return  # the head of a namespace, an `if` or a heading over what follows: lines of the next unit
        elif few and not is_head and span.kind == "class":
            self._join_previous(end, span, scopes)
        else:
            self._blocks(end, "block", scopes)

    def _leads(self, written: Sequence[int]) -> bool:
        return self.leading >= set(written) or _OPENING.fullmatch(self.lines[written[-1]]) is not None

    def _join_previous(self, end: int, span: _Span, scopes: tuple[_Span, ...]) -> None:
        if self._done < end:
            if self.found:
                self.found[-1] = replace(self.found[-1], end=end)
            else:
                self._blocks(end, "class" if span.kind == "class" else "block", scopes)

    @property
    def _done(self) -> int:
        return self.found[-1].end if self.found else 0

    def _blocks(self, end: int, kind: str, scopes: tuple[_Span, ...]) -> None:
        context = _context(scopes[:-1] if kind == "class" else scopes)
        for start, stop in list(pieces(self.lines, self._done, end)):
            self.found.append(Unit(start, stop, kind, _qualified(scopes), context))

    def _function(self, span: _Span, scope: _Span, scopes: tuple[_Span, ...]) -> None:
        chars = sum(len(line) for line in self.lines[span.start : span.end])
        context = _context((*scopes, span) if chars > _LONG else scopes)
        kind = "method" if scope.kind in ("class", "impl") else span.kind
        self.found.append(Unit(self._done, span.end, kind, _qualified((*scopes, span)), context))


def _qualified(scopes: Sequence[_Span]) -> str:
    return ".".join(scope.name for scope in scopes if scope.name)


def _context(scopes: Sequence[_Span]) -> str:
    """Return the names around a unit, and the signature of the innermost: what its own lines do not say."""
    outer = _qualified(scopes[:-1])
    return f"{outer}\n{scopes[-1].signature}".strip() if scopes else ""
