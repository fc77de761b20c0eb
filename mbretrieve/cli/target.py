"""Which index a command means."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mbretrieve.errors import DataError


@dataclass(frozen=True, slots=True)
class Target:
    """An index folder; whether ``--index`` named it; the file or folder that the answer is limited to (None: all)."""

    index: Path
    named: bool
    within: Path | None


def existing(path: Path) -> Path:
    """Return the path as it is. Raises: DataError if nothing is there."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; name one that exists")
    return path


def command_that_indexes(roots: Sequence[Path], index: Path | None) -> str:
    """Return the command that makes an index or brings it up to date, ready to paste."""
    named = [] if index is None else ["--index", str(index)]
    return shlex.join(["mbretrieve", "index", *named, *map(str, roots)])


def find(path: Path | None, index: Path | None) -> Target | None:
    """Return the index named, or that of ``path`` (the current folder) or the nearest parent; None if there is none.

    Raises: DataError if ``path`` is not there.
    """
    from mbretrieve.folder import find_index

    here = existing(path or Path()).resolve()
    if index is not None:
        return Target(index, True, None if path is None else here) if index.exists() else None
    found = find_index(here)
    return found and Target(found[0], False, None if found[1] == here else here)


def require(path: Path | None, index: Path | None) -> Target:
    """Like ``find``. Raises: DataError, naming the command that makes the index, if there is none."""
    found = find(path, index)
    if found is None:
        raise no_index(path, index)
    return found


def no_index(path: Path | None, index: Path | None) -> DataError:
    """Return the error that says so and names the command that makes the index."""
    place = path or Path()
    what = f"{place} has no index, nor has a folder above it" if index is None else f"there is no index at {index}"
    return DataError(f"{what}: make one with `{command_that_indexes([place], index)}`")
