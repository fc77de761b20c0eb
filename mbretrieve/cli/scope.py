"""Between the names that an index knows files by and the paths that a user types and reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mbretrieve.index import AnyIndex
    from mbretrieve.types import Hit


def locate(name: str, roots: Mapping[str, Path]) -> tuple[Path, str] | None:
    """Return where the file of this name lies, and its name below its root; None if it is under no root."""
    # The longest prefix that fits is the file's: the bare names of a first root have the empty one.
    for prefix in sorted(roots, key=len, reverse=True):
        if name.startswith(prefix):
            root, below = roots[prefix], name.removeprefix(prefix)
            return (root if root.name == below and root.is_file() else root / below), below
    return None


def path_of(index: "AnyIndex") -> "Callable[[Hit], str | None]":
    """Return what gives a hit's path: relative to the current folder where it lies in it, else absolute."""
    from mbretrieve.folder import roots_of

    roots, here = roots_of(index), Path.cwd()

    def path(hit: "Hit") -> str | None:
        name = hit.metadata.get("path")
        if not isinstance(name, str):
            return None
        found = locate(name, roots)
        if found is None:
            return name
        return str(found[0].relative_to(here)) if found[0].is_relative_to(here) else str(found[0])

    return path


def ids_of_files(
    index: "AnyIndex", within: Path | None, include: Sequence[str], exclude: Sequence[str]
) -> set[str] | None:
    """Return the ids of the documents whose files lie in ``within`` and pass the globs; None means all documents."""
    if within is None and not include and not exclude:
        return None
    from mbretrieve.corpus.ignore import PathFilter
    from mbretrieve.folder import roots_of

    roots, globs = roots_of(index), PathFilter(include, exclude)

    def fits(name: str) -> bool:
        found = locate(name, roots)
        if found is None:
            return within is None and globs.takes(name)
        return globs.takes(found[1]) and (within is None or found[0].is_relative_to(within))

    return {id for name in index.sources() if fits(name) for id in index.source_ids(name)}
