"""The small records of this room: what to walk, what was found, what was left out and why."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mbretrieve.errors import MbretrieveError

Granularity = Literal["document", "section"]
EXAMPLES = 3  # names kept for each reason: enough to recognise what was left out


class SkipFile(MbretrieveError):  # noqa: N818 - it steers the run past one file; nobody need mend anything
    """One file that gives no documents: ``reason`` is a category to count by, ``detail`` what this file did."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class WalkOptions:
    """What to take from a folder.

    ``include`` and ``exclude`` are globs in .gitignore's syntax, relative to the root. ``hidden`` takes names that
    begin with a dot, ``secrets`` takes key files and ``.env``. ``max_bytes`` limits every file; None means each
    format's own limit (``leave_out.byte_limit``). ``unit`` is how text that is not code is cut: by file or section.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False
    secrets: bool = False
    max_bytes: int | None = None
    unit: Granularity = "section"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Granularity):
            raise ValueError(f"unit is {self.unit!r}, expected one of {get_args(Granularity)}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}, expected at least 1")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read: ``place`` opens it, ``name`` is its POSIX path below the root (valid Unicode); size in bytes."""

    place: str | Path
    name: str
    size: int
    mtime_ns: int

    @property
    def path(self) -> Path:
        """Where it is. Made when asked for: a walk that finds some thousand files unchanged asks for none."""
        return Path(self.place)


@dataclass(slots=True)
class Skipped:
    """What was left out, counted by reason, with the first few names of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one file or folder that was left out."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(name)

    @property
    def total(self) -> int:
        """How many files and folders were left out."""
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line a reason, the most frequent first: ``12 binary: a.png, b.so, c.bin, ...``."""
        by_count = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [f"{count} {reason}: {self._examples(reason)}" for reason, count in by_count]

    def _examples(self, reason: str) -> str:
        names = [printable(name) for name in self.examples[reason]]
        return ", ".join(names + ["..."] * (self.counts[reason] > len(names)))


def unicode_name(name: str | Path) -> str:
    """Return a file name as valid Unicode, which a database can hold: bytes that are not UTF-8 become ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """Return a name fit for one line of a terminal: line breaks, escapes and direction marks are written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
