"""What must hold when processes die, disks fill and others write: nothing committed is lost, and every failure is one
line of ours."""

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.errors import DataError, IndexBusyError, IndexFormatError
from mbretrieve.index import DenseIndex, MultiVectorIndex, merging, open_index
from mbretrieve.index.catalogue import FORMAT, put_meta
from tests.index.faults import NOBODY, dying_at, entry, everything, in_child, make, make_packed


@pytest.fixture
def path() -> Iterator[Path]:
    """A folder that other users may enter, and that need not outlive the machine."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    folder.chmod(0o755)
    yield folder / "index"
    shutil.rmtree(folder)


def change(path: Path) -> None:
    """One commit of every kind of change; segments merge in it."""
    with open_index(path) as index, index.writer() as writer:
        writer.delete_source("s.py")
        writer.add([entry(2, 20), entry(30, 30, "t.py")])
        writer.set_source("t.py", {"size": 2})
        writer.commit()
        writer.add_same("copy", "h3-3", entry(3, 3).text, "file3.py", {"n": 9})
        writer.delete(["d0"])


def count_steps(path: Path) -> int:
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text: steps.append(int(text.split()[0])))
        dying_at(0, lambda: change(path))()
    return steps[0]


def test_killed_at_any_step_it_holds_the_last_commit_or_the_one_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, counted: Callable[[str], None]
) -> None:
    monkeypatch.setattr(merging, "FAN", 2)
    origin, done = path.with_name("origin"), path.with_name("done")
    make(origin)
    states = [state(origin)]
    shutil.copytree(origin, done)
    with open_index(done) as index, index.writer() as writer:
        writer.delete_source("s.py")
        writer.add([entry(2, 20), entry(30, 30, "t.py")])
        writer.set_source("t.py", {"size": 2})
    states.append(state(done))
    shutil.rmtree(done)
    shutil.copytree(origin, done)
    steps = count_steps(done)
    states.append(state(done))
    reached = 0
    tried = sorted(random.Random(0).sample(range(1, steps + 1), min(steps, 150)))
    for step in tried:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(origin, path)
        assert in_child(dying_at(step, lambda: change(path))) == -signal.SIGKILL
        found = state(path)
        assert found in states
        assert states.index(found) >= reached, "a commit was lost"
        reached = states.index(found)
        with open_index(path) as index:
            index.add(["more"], [np.eye(4)])
            segments = index.status()["segments"]
        assert len(list((path / "segments").iterdir())) == segments, "leftovers were not swept"
    assert reached == 2
    counted(f"killed at {len(tried)} of {steps} steps")


def test_killed_while_it_is_made_it_can_be_made_again(path: Path) -> None:
    """At any statement, SQLite's own inside one of ours too: a journal may be left beside the draft."""

    def make_and_die(at: int) -> None:
        connect, seen = sqlite3.connect, 0

        def count(_: str) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_trace_callback(count)
            return connection

        sqlite3.connect = traced
        MultiVectorIndex.create(path, 4)

    left: set[str] = set()
    for step in range(1, 1000):
        shutil.rmtree(path, ignore_errors=True)
        if in_child(lambda step=step: make_and_die(step)) == 0:  # type: ignore[misc]
            break
        left |= {file.name for file in path.iterdir()}
        if not (path / "catalog.sqlite").exists():
            make(path)
        with open_index(path) as index:
            assert index.verify() == []
    assert "catalog.sqlite.new-journal" in left


def state(path: Path) -> Any:
    with open_index(path) as index:
        assert index.verify() == []
        return everything(index)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_it_keeps_what_was_committed(path: Path, seed: int) -> None:
    MultiVectorIndex.create(path, 4).close()
    log = path.with_name("log")

    def write() -> None:
        with open_index(path) as index, log.open("a") as done:
            for i in range(1, 10_000):
                with index.writer() as writer:
                    writer.add([entry(i, i), entry(0, -i - 1)])
                done.write(f"{i}\n")
                done.flush()

    def die() -> None:
        delay = random.Random(seed).uniform(0.05, 0.6)
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        write()

    assert in_child(die) == -signal.SIGKILL
    committed = int(log.read_text().split()[-1]) if log.exists() and log.read_text() else 0
    with open_index(path) as index:
        assert index.verify() == []
        present = {document.id for document in index.scan()}
        assert {f"d{i}" for i in range(1, committed + 1)} <= present
        assert len(present) <= committed + 2  # at most one commit was not written down
    with open_index(path) as index:
        index.add(["more"], [np.eye(4)])


def test_a_second_writer_is_told_who_is_first(path: Path) -> None:
    make(path)
    with open_index(path) as index, open_index(path) as other, index.writer() as writer:
        writer.delete(["d2"])
        with pytest.raises(IndexBusyError, match=f"process {os.getpid()}"), other.writer():
            pass
        assert in_child(lambda: other_process(path)) == 0
        assert len(other.documents(["d2"])) == 1
    with open_index(path) as index:
        assert index.documents(["d2"]) == []


def other_process(path: Path) -> None:
    with open_index(path) as index, pytest.raises(IndexBusyError, match="being written by process"):
        index.add(["x"], [np.eye(4)])


def test_a_reader_keeps_its_generation_until_it_refreshes(path: Path) -> None:
    make(path)
    with open_index(path) as reader, open_index(path) as writer:
        before = everything(reader)
        generation = reader.generation
        writer.delete([f"d{i}" for i in range(12)])
        assert len(list((path / "segments").iterdir())) == 0
        assert everything(reader) == before
        assert reader.generation == generation
        assert reader.refresh()
        assert not reader.refresh()
        assert everything(reader)["documents"] == []
        assert reader.generation == generation + 1


def test_a_reader_whose_segments_went_before_it_searched_goes_on_with_the_newest(path: Path) -> None:
    make(path)
    with open_index(path) as reader, open_index(path) as writer:
        writer.delete([f"d{i}" for i in range(12)])
        writer.add(["new"], [np.eye(4)])
        assert [match.id for match in reader.search([np.eye(4)], 5)[0]] == ["new"]


def test_every_answer_is_of_one_generation_while_another_process_writes(path: Path) -> None:
    """The writer gives all documents one new value in each commit: an answer that mixes two would show two scores."""
    with MultiVectorIndex.create(path, 4) as index:
        index.add([f"d{i}" for i in range(20)], [np.full((1, 4), 1.0)] * 20)
    stop = path.with_name("stop")

    def write() -> None:
        with open_index(path) as index:
            for value in range(2, 10_000):
                if stop.exists():
                    return
                index.add([f"d{i}" for i in range(20)], [np.full((1, 4), float(value % 1000))] * 20)

    pid = os.fork()
    if pid == 0:
        try:
            write()
        finally:
            os._exit(0)
    seen: list[set[float]] = []
    problems: list[BaseException] = []

    def read() -> None:
        try:
            with open_index(path) as index:
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    index.refresh()
                    [matches] = index.search([np.full((1, 4), 0.25)], 100)
                    assert len(matches) == 20
                    seen.append({match.score for match in matches})
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    stop.touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert problems == []
    assert all(len(scores) == 1 for scores in seen)
    assert len({min(scores) for scores in seen}) > 3, "the readers saw hardly any commit"


@pytest.mark.parametrize("made", [make, make_packed])
def test_threads_share_one_reader(path: Path, made: Callable[[Path], None]) -> None:
    made(path)
    with open_index(path) as index:
        expected = everything(index)
        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(everything(index))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 6


@pytest.mark.parametrize("killed", [False, True])
def test_a_read_only_folder_is_read_and_not_written(path: Path, killed: bool) -> None:
    make(path)
    if killed:  # leaves the write-ahead log behind, with the last commit in it
        work = dying_at(10**9, lambda: (change(path), os.kill(os.getpid(), signal.SIGKILL)))  # type: ignore[arg-type]
        with open_index(path):
            assert in_child(work) == -signal.SIGKILL
            copy = path.with_name("copy")
            shutil.copytree(path, copy)
            for child in copy.rglob("*"):
                child.chmod(0o755 if child.is_dir() else 0o644)
            path = copy
        assert (path / "catalog.sqlite-wal").stat().st_size > 0
    path.chmod(0o555)

    def read() -> None:
        with open_index(path) as index:
            assert index.verify() == []
            assert len(everything(index)["documents"]) == (6 if killed else 11)
            assert index.status()["documents"] == len(index)
            with pytest.raises(IndexBusyError, match="cannot be written"):
                index.add(["x"], [np.eye(4)])
        with pytest.raises(IndexBusyError, match="cannot be used"):
            DenseIndex.create(path / "new", 3)

    assert in_child(read, user=NOBODY) == 0
    path.chmod(0o755)


def test_a_log_that_cannot_be_recovered_is_named(path: Path) -> None:
    make(path)
    with open_index(path) as index:
        index.add(["x"], [np.eye(4)])
        copy = path.with_name("copy")
        shutil.copytree(path, copy)
    (copy / "catalog.sqlite-shm").unlink()
    copy.chmod(0o555)

    def read() -> None:
        with pytest.raises(IndexBusyError, match="read-only: open it once where it is not"):
            open_index(copy)

    assert (copy / "catalog.sqlite-wal").stat().st_size > 0
    assert in_child(read, user=NOBODY) == 0
    copy.chmod(0o755)


def test_a_reader_of_a_frozen_catalogue_notices_that_it_was_written(path: Path) -> None:
    make(path)
    path.chmod(0o555)

    def read() -> None:
        with open_index(path) as index:
            everything(index)
            path.with_name("opened").touch()
            while not path.with_name("written").exists():
                time.sleep(0.01)
            with pytest.raises(IndexBusyError, match="open it again"):
                everything(index)

    path.parent.chmod(0o777)
    if os.getuid() != 0:
        pytest.skip("only the superuser writes where others may not")
    thread = threading.Thread(target=lambda: write_when_opened(path))
    thread.start()
    assert in_child(read, user=NOBODY) == 0
    thread.join()
    path.chmod(0o755)


def write_when_opened(path: Path) -> None:
    while not path.with_name("opened").exists():
        time.sleep(0.01)
    with open_index(path) as index:
        index.delete(["d2"])
    path.with_name("written").touch()


def add_many(index: Any) -> None:
    with index.writer() as writer:
        for i in range(100, 4000):
            writer.add([entry(i, i)])


@pytest.mark.parametrize("limit", [20_000, 80_000, 200_000, 330_000])
def test_a_full_disk_leaves_the_last_commit(path: Path, limit: int) -> None:
    make(path)
    before = state(path)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with open_index(path) as index, pytest.raises(IndexBusyError, match="what was committed is safe"):
            add_many(index)

    assert in_child(write) == 0
    assert state(path) == before
    with open_index(path) as index:
        index.add(["more"], [np.eye(4)])


@pytest.mark.parametrize("room", [0, 8 << 10, 40 << 10, 100 << 10])
def test_a_disk_without_room_is_said_to_be_full(path: Path, room: int) -> None:
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only the superuser mounts a disk")
    disk, refused = path.with_name("disk"), 77
    disk.mkdir()

    def write() -> None:
        mounts = (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=2m", "none", str(disk)])
        if ctypes.CDLL(None).unshare(0x20000) or any(  # or others would see what is mounted
            subprocess.run(["mount", *arguments], check=False).returncode for arguments in mounts
        ):
            os._exit(refused)
        index = disk / "index"
        make(index)
        before = state(index)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
        with open_index(index) as opened:
            with pytest.raises(IndexBusyError) as caught:
                add_many(opened)
            said = str(caught.value)
            assert said == f"{index} cannot be used: its disk is full; make room for it; what was committed is safe"
        filler.unlink()
        assert state(index) == before
        change(index)

    if (status := in_child(write)) == refused:
        pytest.skip("no disk may be mounted here")
    assert status == 0


def test_after_an_error_nothing_more_is_written(path: Path) -> None:
    make(path)
    with open_index(path) as index:
        with contextlib.suppress(IndexBusyError), index.writer() as writer:
            writer.add([entry(50, 50)])
            with pytest.raises(TypeError):
                writer.set_settings({"a": object()})
            with pytest.raises(IndexBusyError, match="an earlier error"):
                writer.add([entry(51, 51)])
            with pytest.raises(IndexBusyError, match="an earlier error"):
                writer.commit()
        assert index.documents(["d50", "d51"]) == []


@pytest.mark.parametrize(("other", "advice"), [(FORMAT + 1, "upgrade mbretrieve"), (FORMAT - 1, "index again")])
def test_another_format_is_refused_with_both_versions(path: Path, other: int, advice: str) -> None:
    make(path)
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database, database:
        put_meta(database, "format", other)
        database.execute("ALTER TABLE files DROP COLUMN parity")  # what an older one lacks is not looked for
    with pytest.raises(IndexFormatError) as caught:
        open_index(path)
    assert str(caught.value) == f"{path} has index format {other}; this version reads format {FORMAT}: {advice}"


def test_what_is_no_index_is_refused(path: Path) -> None:
    with pytest.raises(IndexFormatError, match="is not an index"):
        open_index(path)
    path.mkdir()
    with pytest.raises(IndexFormatError, match="is not an index"):
        open_index(path)
    sqlite3.connect(path / "catalog.sqlite").execute("CREATE TABLE a (b)").connection.close()
    with pytest.raises(IndexFormatError, match="not the catalogue of an index"):
        open_index(path)
    (path / "catalog.sqlite").write_text("hello" * 1000)
    with pytest.raises(IndexFormatError, match="damaged"):
        open_index(path)


def test_the_other_kind_is_refused(path: Path) -> None:
    make(path)
    with pytest.raises(IndexFormatError, match="is a colbert index; a dense index was expected"):
        DenseIndex.open(path)


def test_nothing_is_made_over_something(path: Path) -> None:
    make(path)
    with pytest.raises(DataError, match="already is an index"):
        MultiVectorIndex.create(path, 4)
    other = path.with_name("other")
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(DataError, match=r"holds other files \(thesis.txt\)"):
        DenseIndex.create(other, 4)
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]
    (other / "thesis.txt").unlink()
    DenseIndex.create(other, 4).close()
    with pytest.raises(DataError, match="lock is a file; name a new or empty folder"):
        DenseIndex.create(path / "lock", 4)
    with pytest.raises(IndexBusyError):
        DenseIndex.create(path / "lock" / "below", 4)
