"""The rules of .gitignore, as git applies them: the last match wins, deeper files outrank shallower ones.

Written here and held against `git check-ignore` by a test, rather than taken from a general matcher: a walk tries every
name against every rule, and neighbours of one polarity can be joined into one regular expression and one set of names.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_MEMBER = re.compile(r"\[:(?P<class>[^\]]*):\]|(?P<low>\\.|[^\\])(?:-(?P<high>\\.|[^\\\]]))?", re.DOTALL)
_STARS = re.compile(r"\*+")
_WILD = frozenset("*?[\\")
_NOTHING = "(?!)"


def glob_to_regex(glob: str) -> str:
    """Translate a path glob to a regular expression for `fullmatch` (git's wildmatch.c with WM_PATHNAME).

    `*` and `?` stay within one path component; `**` between slashes spans any number of them, none included. An
    unclosed bracket or a trailing backslash matches nothing, as in git.
    """
    out: list[str] = []
    at = 0
    while at < len(glob):
        char = glob[at]
        if stars := _STARS.match(glob, at):
            alone = stars.end() - at > 1 and (at == 0 or glob[at - 1] == "/")
            at = stars.end()
            if alone and glob.startswith("/", at):
                out.append("(?:.*/)?")
                at += 1
            else:
                out.append(".*" if alone and (at == len(glob) or glob.startswith("\\/", at)) else "[^/]*")
        elif char == "[":
            regex, at = _bracket(glob, at + 1)
            out.append(regex)
        elif char == "\\":
            out.append(re.escape(glob[at + 1]) if at + 1 < len(glob) else _NOTHING)
            at += 2
        else:
            out.append("[^/]" if char == "?" else re.escape(char))
            at += 1
    return "".join(out)


def _bracket(glob: str, at: int) -> tuple[str, int]:
    """Translate the bracket expression whose inside begins at ``at``: its regular expression, and where it ends."""
    negated = glob.startswith(("!", "^"), at)
    at += negated
    members: list[str] = []
    while member := _MEMBER.match(glob, at):
        at = member.end()
        if member["class"] is not None:
            if member["class"] not in _CLASSES:
                break
            members.append(_CLASSES[member["class"]])
        else:
            low, high = member["low"][-1], (member["high"] or member["low"])[-1]
            members.append(re.escape(low) if high <= low else f"{re.escape(low)}-{re.escape(high)}")
        if glob.startswith("]", at):
            inside = "".join(members)
            return (f"[^/{inside}]" if negated else f"(?!/)[{inside}]"), at + 1
    return _NOTHING, len(glob)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One line of an ignore file: does it take back (`!`), is it for folders only (`/` at its end), for whole paths?"""

    glob: str
    negated: bool
    folders_only: bool
    anchored: bool


def _parse(line: str) -> _Pattern | None:
    line = line.rstrip("\n").removesuffix("\r")
    if not line or line.startswith("#"):
        return None
    # Spaces at the end do not count unless a backslash stands before them.
    line = re.sub(r"^((?:\\.|[^\\])*?) +$", r"\1", line)
    negated = line.startswith("!")
    line = line[negated:]
    folders_only = line.endswith("/")
    line = line.removesuffix("/")
    anchored = "/" in line
    return _Pattern(line.removeprefix("/") if anchored else line, negated, folders_only, anchored) if line else None


def _join(globs: Iterable[str]) -> re.Pattern[str] | None:
    parts = [f"(?:{glob_to_regex(glob)})" for glob in globs]
    return re.compile("|".join(parts), re.DOTALL) if parts else None


class _Group:
    """Neighbouring patterns of one polarity: their order among themselves does not matter, so they are joined."""

    def __init__(self, patterns: Sequence[_Pattern]) -> None:
        free = [pattern for pattern in patterns if not pattern.anchored]
        self.ignored = not patterns[0].negated
        self.names = frozenset(p.glob for p in free if not _WILD & set(p.glob))
        self.name = _join(p.glob for p in free if _WILD & set(p.glob))
        self.path = _join(p.glob for p in patterns if p.anchored)

    def matches(self, name: str, path: str) -> bool:
        return (
            name in self.names
            or (self.name is not None and self.name.fullmatch(name) is not None)
            or (self.path is not None and self.path.fullmatch(path) is not None)
        )


class Rules:
    """The rules of one ignore file, for paths relative to the folder that it stands in."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._patterns = [pattern for line in lines if (pattern := _parse(line))]
        # A folder is tried against all patterns, anything else against those not marked as folders only.
        self._files = self._groups([p for p in self._patterns if not p.folders_only])
        self._folders = self._groups(self._patterns)

    @staticmethod
    def _groups(patterns: list[_Pattern]) -> list[_Group]:
        groups = [_Group(list(run)) for _, run in groupby(patterns, key=lambda pattern: pattern.negated)]
        return groups[::-1]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def ignores(self, name: str, path: str, folder: bool) -> bool | None:
        """Tell whether the last rule that matches ignores the path or takes it back; None if no rule matches."""
        for group in self._folders if folder else self._files:
            if group.matches(name, path):
                return group.ignored
        return None

    def ignores_path(self, path: str) -> bool:
        """Tell whether a file is ignored, itself or by a folder above it: nothing comes back from an ignored folder."""
        parts = path.split("/")
        return any(
            self.ignores(parts[depth - 1], "/".join(parts[:depth]), folder=depth < len(parts))
            for depth in range(1, len(parts) + 1)
        )


class PathFilter:
    """What ``--include`` and ``--exclude`` let through: globs in .gitignore's syntax, relative to the root."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = Rules(include)
        self._exclude = Rules(exclude)

    def excludes(self, name: str, path: str, folder: bool) -> bool:
        """Tell whether a file or folder is itself excluded, given that no folder above it is."""
        return bool(self._exclude) and self._exclude.ignores(name, path, folder) is True

    def includes(self, path: str) -> bool:
        """Tell whether a file is among what ``include`` names; everything is if it names nothing."""
        return not self._include or self._include.ignores_path(path)

    def takes(self, path: str) -> bool:
        """Tell whether a file passes both lists."""
        return self.includes(path) and not (self._exclude and self._exclude.ignores_path(path))
