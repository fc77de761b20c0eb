"""Helpers of the reliability tests: a small index to harm, and child processes that die, or may not write."""

import contextlib
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from mbretrieve.index import Entry, MultiVectorIndex
from tests.index.packed import tiny

NOBODY = 65534


def entry(i: int, value: float, source: str | None = None) -> Entry:
    text = f"document {i} says parse_arguments {value:g}"
    vectors = [np.full((3, 4), value, np.float32), np.full((2, 4), value + 1, np.float32)]
    spans = [(0, 10), (5, len(text))]
    return Entry(f"d{i}", vectors, spans, text, f"file{i}.py", {"n": i, "lang": "en"}, source, f"h{i}-{value:g}")


def make(path: Path, documents: int = 6) -> None:
    """An index of two segments, with a source, some settings and a deleted document."""
    with MultiVectorIndex.create(path, 4, {"name": "m"}) as index:
        with index.writer() as writer:
            writer.add([entry(i, i) for i in range(documents)])
        with index.writer() as writer:
            writer.add([entry(i, i, "s.py") for i in range(documents, 2 * documents)])
            writer.set_source("s.py", {"size": 1})
            writer.set_settings({"a": [1]})
            writer.delete(["d1"])


def make_packed(path: Path, documents: int = 6) -> None:
    """What ``make`` makes, with more vectors: packed segments of several codebooks, and a raw one."""
    with pytest.MonkeyPatch.context() as patch, MultiVectorIndex.create(path, 4, {"name": "m"}) as index:
        tiny(patch)
        for shift in range(4):
            with index.writer() as writer:
                first, last = shift * documents // 2, (shift + 1) * documents // 2
                writer.add([packed_entry(i, i, "s.py" if shift > 1 else None) for i in range(first, last)])
        with index.writer() as writer:
            writer.add([entry(100, 1.5)])
            writer.set_source("s.py", {"size": 1})
            writer.set_settings({"a": [1]})
            writer.delete(["d1"])
        status = index.status()
        assert 0 < status["packed_tokens"] < status["tokens"]


def packed_entry(i: int, value: float, source: str | None = None, tokens: int = 30) -> Entry:
    """A document of two windows of ``tokens`` vectors each, drawn for ``value``."""
    random = np.random.default_rng(int(value))
    plain = entry(i, value, source)
    vectors = [(random.standard_normal((tokens, 4)) + window).astype(np.float32) for window in (i % 3, 2)]
    return replace(plain, vectors=vectors)


def flip(file: Path, at: int) -> None:
    """Change a byte of a file."""
    content = bytearray(file.read_bytes())
    content[at] ^= 0x55
    file.write_bytes(content)


def forget_parity(path: Path) -> None:
    """Take the parity of an index's files away, so that no file can be restored by it."""
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database, database:
        assert database.execute("UPDATE files SET parity = x''").rowcount


QUERIES = [np.eye(4), -np.ones((1, 4))]
READS: dict[str, Callable[[Any], Any]] = {
    "documents": lambda index: list(index.scan()),
    "some documents": lambda index: index.documents([f"d{i}" for i in range(8)]),
    "semantic": lambda index: index.search(QUERIES, 100),
    "lexical": lambda index: index.lexical(["parse", "document 3 py"], 100),
    "filtered": lambda index: index.search(QUERIES, 3, where={"n": {"gte": 2}}),
    "filtered by two": lambda index: index.search(QUERIES, 5, where={"n": [2, 4, 5], "lang": {"glob": "e*"}}),
    "filtered, lexical": lambda index: index.lexical(["arguments"], 4, where={"n": {"lt": 5}}),
    "of some ids": lambda index: index.search(QUERIES, 5, ids=["d2", "d3", "d4"]),
    "sources": lambda index: index.sources(),
    "settings": lambda index: index.settings,
    "identity": lambda index: index.identity,
}
"""All that can be read from an index of four dimensions."""


def everything(index: Any) -> Any:
    """All that can be read from an index, to be compared."""
    return {name: read(index) for name, read in READS.items()}


def in_child(work: Callable[[], None], *, user: int | None = None) -> int:
    """Run ``work`` in a forked child; returns its exit status, negative for the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if user is not None and os.getuid() == 0:
                os.setgid(user)
                os.setuid(user)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


EFFECTS = {
    *("open", "write", "flush", "fsync", "pwrite", "ftruncate", "rename", "unlink", "mkdir", "rmdir"),
    *("execute", "executemany", "executescript"),
}
"""The functions of C code by which something outlives a process."""


def dying_at(step: int, work: Callable[[], None], *, effects: bool = False) -> Callable[[], None]:
    """Make ``work`` kill its process, with nothing cleaned up, before the step-th call that index/ makes of C code:
    every write, sync, rename, removal and SQL statement is one; ``effects``: these are all."""

    def run() -> None:
        seen = 0

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal seen
            if event != "c_call":
                return
            if arg.__name__ in EFFECTS if effects else f"{os.sep}index{os.sep}" in frame.f_code.co_filename:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(profile)
        work()
        sys.setprofile(None)
        print(f"{seen} steps")

    return run
