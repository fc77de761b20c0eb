"""Which files of a folder are read: git-aware, in one order on every file system, each one left out accounted for."""

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mbretrieve.corpus import leave_out
from mbretrieve.corpus.ignore import PathFilter, Rules
from mbretrieve.corpus.records import Skipped, SourceFile, WalkOptions, printable, unicode_name
from mbretrieve.errors import DataError

IGNORE_FILE = ".mbretrieveignore"
_READ_ALREADY = "symbolic link to what is read already"
_RULES_LIMIT = 1 << 20  # an ignore file of more than this is no list of rules


def walk(root: Path, options: WalkOptions, skipped: Skipped) -> Iterator[SourceFile]:
    """Find the files below ``root`` that are worth reading, by name, folder by folder; symbolic links come last.

    ``root`` may be a file: naming it is asking for it, so that only its size and its content are judged. Ignore files
    count from the top of the git repository that holds the root (unless they ignore the root itself: naming it is
    asking), `.mbretrieveignore` outranks `.gitignore`, and its `!` also takes back what is hidden or vendored.
    Nothing but ignore files is opened. What is left out is added to ``skipped``, a folder as one.
    Raises: DataError if ``root`` is not there or is neither a folder nor a file.
    """
    root = Path(root)
    try:
        status = root.stat()
    except OSError as error:
        raise DataError(
            f"{printable(str(root))} cannot be read ({error.strerror}): name a folder or a file that is there"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        return _Walk(root, options, skipped).files()
    if stat.S_ISREG(status.st_mode):
        return _only(root, status, options, skipped)
    raise DataError(f"{printable(str(root))} is neither a folder nor a regular file: name one of these")


def _only(path: Path, status: os.stat_result, options: WalkOptions, skipped: Skipped) -> Iterator[SourceFile]:
    name = unicode_name(path.name)
    if reason := _size_reason(name, status.st_size, options):
        skipped.add(reason, name)
    else:
        yield SourceFile(path, name, status.st_size, status.st_mtime_ns)


def _size_reason(name: str, size: int, options: WalkOptions) -> str | None:
    limit = leave_out.byte_limit(name, options.max_bytes)
    if limit is not None and size > limit:
        return f"over the size limit of {limit / leave_out.MIB:.4g} MiB"
    return None if size else "empty"


@dataclass(frozen=True, slots=True)
class _Level:
    """One ignore file in force: its rules, and the folder they are relative to, with a slash at its end."""

    base: str
    rules: Rules


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to scan: where it is, what its files' names begin with, and the rules in force, the deepest last.

    Places are strings: a ``Path`` for each of some thousand files would take a third of a walk's time.
    """

    path: str
    prefix: str
    own: tuple[_Level, ...] = ()
    git: tuple[_Level, ...] = ()


@dataclass(frozen=True, slots=True)
class _Link:
    """A symbolic link, kept until everything real is known."""

    path: Path
    name: str
    folder: _Folder


def _ignored(levels: tuple[_Level, ...], name: str, path: str, folder: bool) -> bool | None:
    for level in reversed(levels):
        answer = level.rules.ignores(name, path[len(level.base) :], folder)
        if answer is not None:
            return answer
    return None


def _read_rules(path: Path) -> Rules:
    """Read an ignore file; one that cannot be read, or is no regular file, has no rules (git says the same)."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return Rules(())
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            return Rules(file.read(_RULES_LIMIT).split("\n"))
    except OSError:
        return Rules(())


def _git_top(root: Path) -> Path | None:
    return next((folder for folder in (root, *root.parents) if os.path.lexists(folder / ".git")), None)


def _info_exclude(top: Path) -> Path:
    """Return where a repository's private ignore file is; a worktree's `.git` is a file that points to it."""
    git = top / ".git"
    try:
        if git.is_file():
            git = top / git.read_text("utf-8").removeprefix("gitdir:").strip()
        common = git / "commondir"
        if common.is_file():
            git = git / common.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return top / ".git" / "info" / "exclude"
    return git / "info" / "exclude"


class _Walk:
    """One walk: what it has seen, and the links still to follow."""

    def __init__(self, root: Path, options: WalkOptions, skipped: Skipped) -> None:
        self.root = root.resolve()
        self.options = options
        self.skipped = skipped
        self.filter = PathFilter(options.include, options.exclude)
        self.seen: set[tuple[int, int]] = set()
        self.links: list[_Link] = []
        self.above = ""
        self.following = False

    def files(self) -> Iterator[SourceFile]:
        yield from self._tree(self._start())
        self.following = True
        followed = 0
        while followed < len(self.links):  # a folder that a link leads to may hold more links
            yield from self._follow(self.links[followed])
            followed += 1

    def _start(self) -> _Folder:
        """Return the root with the rules that reach it from above: those of the repository that it is a part of."""
        top = _git_top(self.root)
        if top is None:
            return _Folder(str(self.root), "")
        parts = self.root.relative_to(top).parts
        own: list[_Level] = []
        git = [_Level("", _read_rules(_info_exclude(top)))]
        for depth, part in enumerate(parts):
            base = "".join(f"{part}/" for part in parts[:depth])
            folder = top.joinpath(*parts[:depth])
            own.append(_Level(base, _read_rules(folder / IGNORE_FILE)))
            git.append(_Level(base, _read_rules(folder / ".gitignore")))
            if _ignored((*git, *own), part, base + part, folder=True):
                return _Folder(str(self.root), "")
        self.above = "".join(f"{part}/" for part in parts)
        return _Folder(str(self.root), "", tuple(own), tuple(git))

    def _tree(self, top: _Folder) -> Iterator[SourceFile]:
        """Walk a folder with a stack of our own: folders may be nested deeper than Python calls."""
        stack = [self._scan(top)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif isinstance(found, _Folder):
                stack.append(self._scan(found))
            else:
                yield found

    def _scan(self, folder: _Folder) -> Iterator[SourceFile | _Folder]:
        try:
            status = os.stat(folder.path)  # noqa: PTH116 - see _Folder
            with os.scandir(folder.path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            self.skipped.add("unreadable", folder.prefix or ".")
            return
        if (status.st_dev, status.st_ino) in self.seen:  # two links lead here, or a mount holds itself
            self.skipped.add(_READ_ALREADY, folder.prefix)
            return
        self.seen.add((status.st_dev, status.st_ino))
        siblings = {entry.name for entry in entries}
        folder = self._with_rules(folder, siblings)
        for entry in entries:
            name = folder.prefix + unicode_name(entry.name)
            try:
                found = self._entry(entry, name, folder, siblings)
            except OSError:
                self.skipped.add("unreadable", name)
                continue
            if found is not None:
                yield found

    def _with_rules(self, folder: _Folder, siblings: Collection[str]) -> _Folder:
        own, git = folder.own, folder.git
        base = self.above + folder.prefix
        if ".git" in siblings and folder.prefix:
            git = ()  # a repository inside this one: the outer one's rules end here, as they do for git
        if ".gitignore" in siblings and (rules := _read_rules(Path(folder.path, ".gitignore"))):
            git = (*git, _Level(base, rules))
        if IGNORE_FILE in siblings and (rules := _read_rules(Path(folder.path, IGNORE_FILE))):
            own = (*own, _Level(base, rules))
        return replace(folder, own=own, git=git)

    def _entry(
        self, entry: os.DirEntry[str], name: str, folder: _Folder, siblings: Collection[str]
    ) -> SourceFile | _Folder | None:
        if leave_out.is_internal(entry.name):
            return None
        is_link = entry.is_symlink()
        is_folder = not is_link and entry.is_dir(follow_symlinks=False)
        if reason := self._reason(entry.name, name, is_folder, folder, siblings):
            self.skipped.add(reason, name + "/" if is_folder else name)
        elif is_link:
            self.links.append(_Link(Path(entry.path), name, folder))
        elif is_folder:
            return replace(folder, path=entry.path, prefix=f"{name}/")
        else:
            return self._file(entry.path, name, entry.stat(follow_symlinks=False))
        return None

    def _reason(self, entry: str, name: str, is_folder: bool, folder: _Folder, siblings: Collection[str]) -> str | None:
        """Return why an entry is left out for its name, or None."""
        path = self.above + name
        if self.filter.excludes(entry, name, is_folder):
            return "excluded"
        own = _ignored(folder.own, entry, path, is_folder)
        if own or (own is None and _ignored(folder.git, entry, path, is_folder)):
            return "ignored by git" if own is None else f"ignored by {IGNORE_FILE}"
        if not is_folder and not self.options.secrets and leave_out.is_secret(entry):
            return "key or environment file"
        # What `!` takes back by name, nothing here leaves out.
        if own is None and (reason := self._built_in_reason(entry, is_folder, folder, siblings)):
            return reason
        return "not included" if not is_folder and not self.filter.includes(name) else None

    def _built_in_reason(self, entry: str, is_folder: bool, folder: _Folder, siblings: Collection[str]) -> str | None:
        asked_for = self.options.hidden or (self.options.secrets and not is_folder and leave_out.is_secret(entry))
        if entry.startswith(".") and not asked_for:
            return "hidden"
        if not is_folder:
            return leave_out.file_reason(entry)
        return leave_out.folder_reason(entry, siblings, lambda name: os.path.lexists(f"{folder.path}/{entry}/{name}"))

    def _file(self, path: str, name: str, status: os.stat_result) -> SourceFile | None:
        identity = (status.st_dev, status.st_ino)
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block the reader or never end
            reason: str | None = "not a regular file"
        elif self.following and identity in self.seen:  # two names of one file that are no links are two files
            reason = _READ_ALREADY
        else:
            reason = _size_reason(name, status.st_size, self.options)
        self.seen.add(identity)
        if reason is None:
            return SourceFile(path, name, status.st_size, status.st_mtime_ns)
        self.skipped.add(reason, name)
        return None

    def _follow(self, link: _Link) -> Iterator[SourceFile]:
        reason = self._link_reason(link)
        if reason:
            self.skipped.add(reason, link.name)
            return
        status = link.path.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from self._tree(replace(link.folder, path=str(link.path), prefix=f"{link.name}/"))
        elif file := self._file(str(link.path), link.name, status):
            yield file

    def _link_reason(self, link: _Link) -> str | None:
        try:
            target = link.path.resolve(strict=True)
            status = target.stat()
        except FileNotFoundError:
            return "broken symbolic link"
        except (OSError, RuntimeError):  # pathlib's word for a link to itself is RuntimeError, before Python 3.13
            return "symbolic link that loops"
        if link.path.parent.resolve().is_relative_to(target):
            return "symbolic link that loops"
        if not target.is_relative_to(self.root):
            return "symbolic link that leaves the root"
        if (status.st_dev, status.st_ino) in self.seen:
            return _READ_ALREADY
        if not self.options.secrets and leave_out.is_secret(target.name):
            return "key or environment file"
        if any(leave_out.is_internal(part) for part in target.relative_to(self.root).parts):
            return "hidden"
        return None
