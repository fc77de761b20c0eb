"""The rules of .gitignore, as git applies them: the last match wins, deeper files outrank shallower ones.

What a glob means is pathspec's to say. The order is ours, as a walk asks name by name on its way down, and git lets
nothing back from an ignored folder; and so is the way past what pathspec reads otherwise than git (`_translate`).
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

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
_MEMBER = r"\[:[^\]]*:\]|(?:\\.|[^\\])(?:-(?:\\.|[^\\\]]))?"
_BRACKET = rf"\[(?P<negated>[!^])?(?P<members>(?>{_MEMBER})(?:(?!\])(?>{_MEMBER}))*)\]"
_TOKEN = re.compile(rf"{_BRACKET}|(?P<unclosed>\[)|\\?(?P<space>\s)\Z|\\(?P<escaped>.)|(?P<stars>\*{{3,}})")
_GAP = "\0"  # in a glob: here is something for us to translate; no path has one
_LONGEST = 4096  # characters of a line; no path is longer, and what parses it takes the square of its length
_NOTHING = re.compile("(?!)")


def _bracket(token: re.Match[str]) -> str:
    """Translate a bracket expression, which never takes a slash. Raises: ValueError for a class that there is not."""
    inside = ""
    for member in re.findall(_MEMBER, token["members"]):
        if ends := re.fullmatch(r"\\?(.)(?:-\\?(.))?", member):
            low, high = ends[1], ends[2] or ends[1]
            inside += re.escape(low) if high <= low else f"{re.escape(low)}-{re.escape(high)}"
        elif member[2:-2] in _CLASSES:
            inside += _CLASSES[member[2:-2]]
        else:
            raise ValueError(f"{member} in a bracket expression")
    return f"[^/{inside}]" if token["negated"] else f"(?!/)[{inside}]"


def _translate(glob: str) -> re.Pattern[str]:
    r"""Translate a glob, relative to the ignore file's folder, to what a path is searched for.

    pathspec (1.1) differs from git in these, which it does not get to see: brackets (it ends them at an escaped `]`,
    knows no classes, lets a negated one take a slash and fails at `[z-a]`), white space at the end other than one
    escaped space, `***` for `**`, and `\/`. A glob that is wrong matches nothing, as in git.
    """
    gaps: list[str] = []

    def respell(token: re.Match[str]) -> str:
        match token.lastgroup:
            case "stars":
                return "**"
            case "escaped":
                return "/" if token["escaped"] == "/" else token[0]
            case "space":
                gaps.append(re.escape(token["space"]))
            case "unclosed":
                raise ValueError("a bracket that is not closed")
            case _:  # a bracket expression that is
                gaps.append(_bracket(token))
        return _GAP

    if _GAP in glob:
        return _NOTHING
    try:
        regex, _ = GitIgnoreSpecPattern.pattern_to_regex("/" + _TOKEN.sub(respell, glob))
    except ValueError:
        return _NOTHING
    return re.compile(re.sub(_GAP, lambda _: gaps.pop(0), regex)) if regex else _NOTHING


class _Pattern(NamedTuple):
    """One line of an ignore file: does it ignore or take back (`!`), is it for folders only, for names or for paths?"""

    regex: re.Pattern[str]
    ignores: bool
    folders_only: bool
    anchored: bool

    @classmethod
    def parse(cls, line: str) -> "_Pattern | None":
        line = line.rstrip("\n").removesuffix("\r")
        if line.startswith("#"):
            return None
        if len(line) > _LONGEST:
            return cls(_NOTHING, ignores=True, folders_only=False, anchored=False)
        # Spaces at the end do not count unless a backslash stands before them.
        line = re.sub(r"^((?:\\.|[^\\])*?) +$", r"\1", line)
        negated = line.startswith("!")
        glob = line[negated:].removesuffix("/")
        if not glob:
            return None
        return cls(_translate(glob.removeprefix("/")), not negated, line.endswith("/"), anchored="/" in glob)

    def matches(self, name: str, path: str) -> bool:
        found = self.regex.search(path if self.anchored else name)
        # pathspec's only group takes the slash after a folder: then it is one above the path that matches.
        return found is not None and found.lastindex is None


class Rules:
    """The rules of one ignore file, for paths relative to the folder that it stands in."""

    def __init__(self, lines: Iterable[str]) -> None:
        patterns = [pattern for line in lines if (pattern := _Pattern.parse(line))]
        self._for_folders = patterns[::-1]
        self._for_files = [pattern for pattern in self._for_folders if not pattern.folders_only]

    def __bool__(self) -> bool:
        return bool(self._for_folders)

    def ignores(self, name: str, path: str, folder: bool) -> bool | None:
        """Tell whether the last rule that matches ignores the path or takes it back; None if no rule matches."""
        # To pathspec's `$` and `.` a line ends at a line feed; `\v` is all else that a line feed is to a glob.
        name, path = name.replace("\n", "\v"), path.replace("\n", "\v")
        for pattern in self._for_folders if folder else self._for_files:
            if pattern.matches(name, path):
                return pattern.ignores
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
