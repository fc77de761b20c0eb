"""Kernels in C++ that a machine's own compiler builds, once, into its user's cache folder.

Where there is no compiler or no such folder, or MBRETRIEVE_COMPILE is 0, there is no kernel, and whoever wanted one
does without.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
COMPILERS = ("c++", "g++", "clang++")
MANY = 32  # times that a process has wanted a kernel which is taken to be there to stay
_ALWAYS = ("-std=c++17", "-shared", "-fPIC", "-pthread")
_SHARED = "team.h"  # what sources may include


class Compiled:
    """A source file of a package, and what it becomes here."""

    def __init__(
        self,
        package: str,
        name: str,
        options: Sequence[str],
        functions: Mapping[str, Sequence[Any]],
        *,
        suits: Callable[[], bool] = lambda: True,
        starts: Callable[[ctypes.CDLL], bool] | None = None,
    ) -> None:
        """``functions``: the types of what each takes; none returns anything. ``suits``: whether this machine can run
        it; ``starts``: whether it did, once loaded."""
        self._package, self._name, self._options, self._functions = package, name, (*_ALWAYS, *options), functions
        self._suits, self._starts = suits, starts
        self._wanted = 0
        self.load, self.build, self.place = cache(self._load), cache(self._build), cache(self._place)

    def get(self, *, build: bool = False) -> ctypes.CDLL | None:
        """Return the kernel if it has been built; ``build`` it, if not, in case that can be done."""
        library = self.load()
        return self.load() if library is None and build and self.build() else library

    def wanted(self) -> ctypes.CDLL | None:
        """Return the kernel if it has been built; where it is asked for again and again, let it be built meanwhile."""
        if (library := self.load()) is None:
            self._wanted += 1
            if self._wanted == MANY:
                Thread(target=self.build, daemon=True).start()
        return library

    def forget(self) -> None:
        """Look again for what is there: another folder, another compiler."""
        for known in (self.load, self.build, self.place):
            known.cache_clear()

    def can_run(self) -> bool:
        """Whether this machine can run it, and may compile."""
        return os.environ.get("MBRETRIEVE_COMPILE") != "0" and os.name == "posix" and self._suits()

    def _load(self) -> ctypes.CDLL | None:
        try:
            path = self.place() if self.can_run() else None
            if path is None:
                return None
            owner = path.stat()
            if owner.st_uid != os.getuid() or owner.st_mode & 0o022:  # others could have put code of theirs there
                return None
            library = ctypes.CDLL(str(path))
            for name, arguments in self._functions.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
            return library if self._starts is None or self._starts(library) else None
        except (OSError, AttributeError):
            return None

    def _place(self) -> Path | None:
        """Return where the kernel is kept, under a name of its own for each source and kind of machine."""
        try:
            cache_folder = Path(
                os.environ.get("MBRETRIEVE_CACHE")
                or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbretrieve"
            )
        except RuntimeError:  # a user without a home
            return None
        digest = blake2b(self._source() + " ".join([*self._options, _machine()]).encode(), digest_size=8).hexdigest()
        return cache_folder / "kernels" / f"{self._name}-{digest}.so"

    def _source(self) -> bytes:
        """Return the source, with what it includes of ours in its place: one file to compile, and to tell apart."""
        source, shared = files(self._package) / f"{self._name}.cpp", files("mbretrieve") / _SHARED
        return source.read_bytes().replace(f'#include "{_SHARED}"'.encode(), shared.read_bytes())

    def _build(self) -> bool:
        """Compile, unless that was done; False, without a word, where it cannot be or has been in vain."""
        compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
        try:
            path = self.place()
            if path is None or compiler is None or not self.can_run() or path.exists():
                return False
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                source, made = Path(folder) / f"{self._name}.cpp", Path(folder) / f"{self._name}.so"
                source.write_bytes(self._source())
                command = [compiler, *self._options, "-o", str(made), str(source)]
                subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603
                made.chmod(0o700)
                with made.open("rb") as file:
                    os.fsync(file.fileno())  # a file cut short by a power failure would stay
                made.replace(path)
        except (OSError, subprocess.SubprocessError):
            return False
        self.load.cache_clear()
        return True


@cache
def _machine() -> str:
    """Return what this machine's processor is and can do, as far as it says: a folder may be shared between several."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            said = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        said = ""
    return f"{platform.system()} {platform.machine()} {said}"
