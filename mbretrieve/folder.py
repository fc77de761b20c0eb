"""An index of folders, kept up to date: which files are new, changed or gone, and what of them must be encoded again.

A file is first compared by size and time, then by a hash of its content, and its units by a hash of their text and
context: only what really changed is encoded.
"""

import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mbretrieve.corpus.records import SkipFile, Skipped, SourceFile, WalkOptions
from mbretrieve.corpus.walk import walk
from mbretrieve.errors import DataError
from mbretrieve.index import AnyIndex
from mbretrieve.index.store import MEMORY
from mbretrieve.retriever import AddReport, Retriever, Session
from mbretrieve.types import Progress

ROOTS = "roots"  # the settings kept in the index's catalogue
OPTIONS = "walk"


@dataclass(slots=True)
class Changes:
    """How the files under an index's roots differ from what it holds, by size and time alone."""

    new: list[SourceFile] = field(default_factory=list)
    changed: list[SourceFile] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def count(self) -> int:
        """How many files are to be looked at again."""
        return len(self.new) + len(self.changed) + len(self.gone)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What bringing an index up to date did: files, then documents, then what was left out and why."""

    new: int
    changed: int
    gone: int
    unchanged: int
    documents: AddReport
    removed: int
    skipped: Skipped
    seconds: float

    @property
    def files(self) -> int:
        """How many files the index now covers."""
        return self.new + self.changed + self.unchanged


def cache_folder() -> Path:
    """Return where indexes without a place of their own are kept: MBRETRIEVE_CACHE, or the user's cache folder.

    Raises: DataError for a user, of a container say, who has neither.
    """
    if chosen := os.environ.get("MBRETRIEVE_CACHE"):
        return Path(chosen)
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "mbretrieve"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mbretrieve"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbretrieve"
    except RuntimeError:
        raise DataError(
            "this user has no home folder to keep indexes in: set MBRETRIEVE_CACHE, or name a place with --index"
        ) from None


def default_index(root: Path) -> Path:
    """Return where the index of ``root`` lives when nobody names a place: a folder people can tell by its name."""
    root = root.resolve()
    digest = blake2b(os.fsencode(root), digest_size=6).hexdigest()
    return cache_folder() / f"{root.name or 'root'}-{digest}"


def find_index(path: Path) -> tuple[Path, Path] | None:
    """Return (index folder, root) of the nearest indexed parent of ``path``, itself included, or None."""
    path = path.resolve()
    for root in (path, *path.parents):
        if (index := default_index(root)).is_dir():
            return index, root
    return None


def roots_of(index: AnyIndex) -> dict[str, Path]:
    """Return the folders that an index covers, by the prefix their files' names have in it ("" for a single root)."""
    return {prefix: Path(root) for prefix, root in index.settings.get(ROOTS, {}).items()}


def options_of(index: AnyIndex) -> WalkOptions:
    """Return what the index takes from its folders, as it was last said."""
    stored: dict[str, Any] = dict(index.settings.get(OPTIONS, {}))
    for globs in ("include", "exclude"):
        stored[globs] = tuple(stored.get(globs, ()))
    return WalkOptions(**stored)


def changes(index: AnyIndex, roots: dict[str, Path] | None = None, options: WalkOptions | None = None) -> Changes:
    """Compare the files under the index's roots with what it holds, by size and time; no file is opened.

    Raises: DataError if a root is not there any more.
    """
    roots = roots_of(index) if roots is None else roots
    options = options or options_of(index)
    known = index.sources()
    found = Changes()
    for prefix, root in roots.items():
        if not root.exists():
            raise DataError(f"{root}, which the index covers, is not there: restore it, or index its new place")
        for plain in walk(root, options, found.skipped):
            file = replace(plain, name=prefix + plain.name) if prefix else plain
            state = known.pop(file.name, None)
            if state is None:
                found.new.append(file)
            elif _same(state, file, options):
                found.unchanged += 1
                if reason := state.get("skipped"):
                    found.skipped.add(reason, file.name)
            else:
                found.changed.append(file)
    found.gone = list(known)
    return found


def sync(
    retriever: Retriever,
    roots: Sequence[Path] = (),
    options: WalkOptions | None = None,
    *,
    found: Changes | None = None,
    progress: Progress | None = None,
    memory: int = MEMORY,
) -> SyncReport:
    """Bring an index up to date with its folders, those it has and ``roots``; roots and options are remembered.

    ``found``: what ``changes`` just said, so that the folders are not walked twice. ``memory``: bytes to work in,
    about, beside the model. Killed half way, the next run goes on.
    Raises: DataError if a root is not there; IndexBusyError if another process writes.
    """
    start = time.monotonic()
    with retriever.writing(progress, memory=memory) as session:
        covered = _with_roots(roots_of(retriever.index), roots)
        options = options or options_of(retriever.index)
        session.set_settings({ROOTS: {k: str(v) for k, v in covered.items()}, OPTIONS: asdict(options)})
        session.commit()  # a first run that is killed early is then known for what it is, and gone on with
        found = found or changes(retriever.index, covered, options)
        if progress is not None:
            progress.start("indexing", len(found.new) + len(found.changed))
        for name in found.gone:
            session.delete_source(name)
        known = retriever.index.sources()
        files = [*found.changed, *found.new]
        # An index learns how to pack its vectors from the first of them, which are to be like those that follow.
        random.Random(0).shuffle(files)  # noqa: S311 - no secret is made of it
        size, read = sum(file.size for file in files), 0
        for file in files:
            read += file.size
            session.share = read / max(size, 1)
            _read(session, file, known.get(file.name), options, found.skipped)
        session.flush()
        if progress is not None:
            progress.finish()
    return SyncReport(
        new=len(found.new),
        changed=len(found.changed),
        gone=len(found.gone),
        unchanged=found.unchanged,
        documents=session.report,
        removed=session.removed,
        skipped=found.skipped,
        seconds=time.monotonic() - start,
    )


def _same(state: dict[str, Any], file: SourceFile, options: WalkOptions) -> bool:
    # A repaired index has forgotten the state of files that it lost documents of.
    return (state.get("size"), state.get("mtime_ns"), state.get("unit")) == (file.size, file.mtime_ns, options.unit)


def _with_roots(covered: dict[str, Path], roots: Sequence[Path]) -> dict[str, Path]:
    """Add roots to those an index covers. A single root's files have bare names; several are told apart by a prefix."""
    result = dict(covered)
    new = [root for root in dict.fromkeys(path.resolve() for path in roots) if root not in result.values()]
    for root in new:
        if not result and len(new) == 1:
            return {"": root}
        name, number = root.name or "root", 1
        while f"{name}/" in result:
            number += 1
            name = f"{root.name or 'root'}-{number}"
        result[f"{name}/"] = root
    return result


def _read(
    session: Session, file: SourceFile, state: dict[str, Any] | None, options: WalkOptions, skipped: Skipped
) -> None:
    """Bring one file's documents up to date; a file that cannot be used keeps none, and is counted."""
    # Here, not above: a search that finds all files unchanged reads none.
    from mbretrieve.corpus.decode import content_hash
    from mbretrieve.corpus.read import read_documents

    stand: dict[str, Any] = {"size": file.size, "mtime_ns": file.mtime_ns, "unit": options.unit}
    seen: set[str] = set()
    try:
        stand["hash"] = content_hash(file)
        if state is not None and (state.get("hash"), state.get("unit")) == (stand["hash"], options.unit):
            if reason := state.get("skipped"):
                skipped.add(reason, file.name)
            session.finish_source(file.name, state | stand, None)
            return
        for document in read_documents(file, options, skipped):
            if document.id in seen:
                skipped.add("duplicate id", document.id)
                continue
            session.add(document, file.name)
            seen.add(document.id)
    except SkipFile as error:
        skipped.add(error.reason, file.name)
        stand["skipped"] = error.reason
    session.finish_source(file.name, stand, seen)
