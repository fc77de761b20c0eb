"""What must hold of a packed index when processes die, disks fill and others write, as of a raw one."""

import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.errors import IndexBusyError
from mbretrieve.index import MultiVectorIndex, Writer, open_index
from tests.index.faults import NOBODY, dying_at, everything, in_child, make_packed, packed_entry
from tests.index.packed import ALL, tiny
from tests.index.test_reliability import path, state

__all__ = ["path"]  # the fixture

Commit = Callable[[Writer], object]


@pytest.fixture(autouse=True)
def thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)


def adds(first: int, last: int, value: int) -> Commit:
    return lambda writer: writer.add([packed_entry(i, i + value, "t.py", tokens=5) for i in range(first, last)])


def replaces(writer: Writer) -> None:
    """Every kind of change in one commit, with enough new vectors to be packed."""
    writer.delete_source("s.py")
    writer.add([packed_entry(i, 200 + i, "t.py", tokens=12) for i in range(2, 6)])
    writer.set_source("t.py", {"size": 2})
    writer.add_same("copy", "h0-0", packed_entry(0, 0).text, "file0.py", {"n": 9})
    writer.delete(["d0"])


def empty(path: Path) -> None:
    MultiVectorIndex.create(path, 4).close()


# What is there before, and the commits during which the process dies.
WORK: dict[str, tuple[Callable[[Path], None], Sequence[Commit]]] = {
    "build": (empty, [adds(0, 3, 0), adds(3, 8, 0), adds(8, 12, 50)]),
    "update": (make_packed, [replaces, adds(2, 3, 70)]),
    "compact": (make_packed, [lambda writer: writer.delete(["d3", "d7"]), lambda writer: writer.compact()]),
    "retrain": (make_packed, [lambda writer: writer.compact(retrain=True)]),
}


def run(path: Path, commits: Sequence[Commit]) -> None:
    with open_index(path) as index, index.writer() as writer:
        for commit in commits:
            commit(writer)
            writer.commit()


def count_steps(work: Callable[[], None]) -> int:
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text: steps.append(int(text.split()[0])))
        dying_at(0, work, effects=True)()
    return steps[0]


def kill(path: Path, name: str, most: int, counted: Callable[[str], None]) -> None:
    make, commits = WORK[name]
    origin = path.with_name("origin")
    make(origin)
    states = [state(origin)]
    for done in range(1, len(commits) + 1):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(origin, path)
        run(path, commits[:done])
        states.append(state(path))
    shutil.rmtree(path)
    shutil.copytree(origin, path)
    steps = count_steps(lambda: run(path, commits))
    tried = np.unique(np.linspace(1, steps, min(most, steps)).astype(int)).tolist()
    reached = 0
    for step in tried:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(origin, path)
        assert in_child(dying_at(step, lambda: run(path, commits), effects=True)) == -signal.SIGKILL
        found = state(path)
        assert found in states[reached:], f"step {step}: a commit was lost, or half of one is there"
        reached = states.index(found)
        with open_index(path) as index:
            index.add(["more"], [np.eye(4)])
            assert index.verify() == []
            for folder, count in (
                ("segments", index.status()["segments"]),
                ("codebooks", len(index.status()["lists"])),
            ):
                there = path / folder
                assert len(list(there.iterdir() if there.exists() else [])) == count, "leftovers were not swept"
    assert reached == len(commits)
    counted(f"killed at {len(tried):,} of {steps:,} steps")


def test_a_reader_keeps_its_generation_though_its_segments_are_dropped(path: Path) -> None:
    make_packed(path)
    with open_index(path) as reader, open_index(path) as writer:
        query = np.eye(4)
        named = reader.score([query], [["d2", "d3"]])  # maps everything, and looks up no list
        with open_index(path) as other:
            before = everything(other)
        writer.compact(retrain=True)
        assert everything(reader) == before
        assert reader.score([query], [["d2", "d3"]]) == named
        assert reader.refresh()
        assert everything(reader)["documents"] == before["documents"]


@pytest.mark.parametrize("name", WORK)
def test_killed_at_some_steps_it_holds_the_last_commit_or_the_one_before(
    path: Path, name: str, counted: Callable[[str], None]
) -> None:
    kill(path, name, 12, counted)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_killed_at_every_step_it_holds_the_last_commit_or_the_one_before(
    path: Path, name: str, counted: Callable[[str], None]
) -> None:
    kill(path, name, 1 << 30, counted)


def answers(index: Any) -> Iterator[Any]:
    asked = [np.eye(4), np.full((3, 4), -0.5)]
    yield index.search(asked, 5)
    yield index.search(asked, 1000, effort=ALL)
    yield index.search(asked, 3, where={"n": {"lt": 6}})


def reading(path: Path, seconds: float, counted: Callable[[str], None]) -> None:
    """Four readers search while another process updates and compacts; its commits are made again after, one by one, and
    every answer must be that of its generation searched alone."""
    make_packed(path)
    rounds, origin, stop = (path.with_name(name) for name in ("rounds", "origin", "stop"))
    shutil.copytree(path, origin)
    until = time.monotonic() + seconds

    def write() -> None:
        for number in range(10_000):
            if time.monotonic() > until:
                break
            update(path, number)
            rounds.write_text(str(number + 1))
        stop.touch()

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            write()
            status = 0
        finally:
            os._exit(status)
    seen: list[tuple[int, Any]] = []
    problems: list[BaseException] = []

    def read() -> None:
        try:
            with open_index(path) as index:
                while not stop.exists():
                    index.refresh()
                    # In this order: the first search may find its generation's files gone, and go to the newest.
                    seen.extend((index.generation, found) for found in answers(index))
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert problems == []
    alone: dict[int, list[Any]] = {}

    def answer(path: Path) -> None:
        with open_index(path) as index:
            alone[index.generation] = list(answers(index))

    answer(origin)
    for number in range(int(rounds.read_text())):
        update(origin, number, answer)
    assert len({generation for generation, _ in seen}) > 5, "the readers saw hardly any commit"
    assert all(found in alone[generation] for generation, found in seen)
    counted(f"{len(seen):,} answers of {len({generation for generation, _ in seen}):,} generations of {len(alone):,}")


def update(path: Path, number: int, after: Callable[[Path], None] = lambda path: None) -> None:
    """Three commits: some documents replaced, some dropped, all compacted or packed anew."""
    with open_index(path) as index:
        with index.writer() as writer:
            writer.add([packed_entry(i % 12, 300 + i, tokens=5) for i in range(4 * number, 4 * number + 4)])
        after(path)
        index.delete([f"d{(5 * number) % 12}"])
        after(path)
        if number % 3 == 0:
            index.compact(retrain=number % 2 == 0)
            after(path)


def test_every_answer_is_of_one_generation_while_a_writer_updates_and_compacts(
    path: Path, counted: Callable[[str], None]
) -> None:
    reading(path, 2, counted)


@pytest.mark.slow
def test_every_answer_is_of_one_generation_for_a_minute(path: Path, counted: Callable[[str], None]) -> None:
    reading(path, 60, counted)


LIMITS = [5_000, 50_000, 130_000, 160_000, 250_000]
WRITES: dict[str, Callable[[Any], None]] = {
    "add": lambda index: index.add(
        [f"x{i}" for i in range(60)], list(np.random.default_rng(0).standard_normal((60, 200, 4)))
    ),
    "retrain": lambda index: index.compact(retrain=True),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_leaves_the_last_commit_or_all_of_this_one(path: Path, name: str) -> None:
    origin, refused = path.with_name("origin"), path.with_name("refused")
    make_packed(origin)
    before = state(origin)
    shutil.copytree(origin, path)
    with open_index(path) as index:
        WRITES[name](index)
    done = state(path)

    def write(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with open_index(path) as index, pytest.raises(IndexBusyError, match="what was committed is safe") as caught:
            WRITES[name](index)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        refused.write_text(str(caught.value))

    left = set()
    for limit in LIMITS:
        shutil.rmtree(path)
        shutil.copytree(origin, path)
        refused.unlink(missing_ok=True)
        in_child(lambda limit=limit: write(limit))  # type: ignore[misc]
        found = state(path)
        assert found in (before, done)
        assert refused.exists() or found == done
        left.add("refused" if found == before else "done")
        with open_index(path) as index:
            index.compact()
            index.add(["more"], [np.eye(4)])
            assert index.verify() == []
    assert "refused" in left


def test_a_read_only_packed_index_is_searched_and_not_written(path: Path) -> None:
    make_packed(path)
    before = state(path)
    path.chmod(0o555)

    def read() -> None:
        assert state(path) == before
        with open_index(path) as index:
            for write in (index.compact, lambda: index.delete(["d0"])):
                with pytest.raises(IndexBusyError, match="cannot be written"):
                    write()

    assert in_child(read, user=NOBODY) == 0
    path.chmod(0o755)
