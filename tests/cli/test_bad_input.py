"""What bad input gets: one line that says what came, what was expected and what to do; exit 1; nothing lost."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mbretrieve as package
from mbretrieve.folder import default_index
from tests.cli.conftest import Command, one_line

QUESTION = "where is the configuration file read"


def test_an_empty_folder(tmp_path: Path, cache: Path, mbretrieve: Command) -> None:
    (tmp_path / "empty").mkdir()
    assert "nothing to index" in one_line(mbretrieve("index", tmp_path / "empty"))
    assert not cache.exists()


def test_a_folder_of_nothing_readable(tmp_path: Path, cache: Path, mbretrieve: Command) -> None:
    folder = tmp_path / "blobs"
    folder.mkdir()
    (folder / "data.dat").write_bytes(bytes(range(256)) * 20)
    line = one_line(mbretrieve("index", folder))
    assert "nothing to index" in line
    assert "data.dat" in line
    assert not any(cache.iterdir())


@pytest.mark.parametrize("command", [["index"], ["search", "q"], ["status"], ["verify"]], ids=" ".join)
def test_a_path_that_is_not_there(repo: Path, mbretrieve: Command, command: list[str]) -> None:
    assert "no such file or folder" in one_line(mbretrieve(*command, "nowhere"))


@pytest.mark.parametrize("command", [["search", "q"], ["status"], ["verify"], ["delete", "id"]], ids=" ".join)
def test_an_index_that_is_not_there(repo: Path, mbretrieve: Command, command: list[str]) -> None:
    assert "mbretrieve index" in one_line(mbretrieve(*command, "--index", "nowhere"))
    assert "mbretrieve index" in one_line(mbretrieve(*command, "--index", "docs")), "a folder that is no index"
    assert not Path("nowhere").exists()


def test_an_index_is_not_made_among_other_files(repo: Path, mbretrieve: Command) -> None:
    before = sorted(path.name for path in (repo / "docs").iterdir())
    one_line(mbretrieve("index", "app", "--index", "docs"))
    assert sorted(path.name for path in (repo / "docs").iterdir()) == before
    assert "is a file" in one_line(mbretrieve("index", "app", "--index", next((repo / "docs").iterdir())))


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query(indexed: Path, mbretrieve: Command, query: str) -> None:
    assert "the query is empty" in one_line(mbretrieve("search", query))


@pytest.mark.parametrize("where", ["lang", "=x", "year>=1,2", 'name="open'])
def test_a_filter_that_does_not_parse(indexed: Path, mbretrieve: Command, where: str) -> None:
    assert where in one_line(mbretrieve("search", QUESTION, "--where", where))


@pytest.mark.parametrize("regex", ["(", "[a-", "a{99999999999}", "*"])
def test_a_regular_expression_that_is_none(indexed: Path, mbretrieve: Command, regex: str) -> None:
    assert "regular expression" in one_line(mbretrieve("search", QUESTION, "-e", regex))


def test_a_model_folder_that_is_not_one(indexed: Path, mbretrieve: Command) -> None:
    one_line(mbretrieve("index", indexed, "--model", indexed / "docs"))
    one_line(mbretrieve("index", indexed, "--model", "./no/such/model"))
    one_line(mbretrieve("search", QUESTION, "--model", indexed / "docs"))
    assert mbretrieve("search", QUESTION, "-k", 1, "-l").out == "app/config.py\n", "the index is as it was"


def test_a_device_that_is_not_there(indexed: Path, mbretrieve: Command) -> None:
    (indexed / "new.py").write_text("def new(): ...\n")
    for device in ("abacus", "cuda:99", "meta"):
        assert f"'{device}'" in one_line(mbretrieve("index", indexed, "--device", device))
        assert f"'{device}'" in one_line(mbretrieve("search", QUESTION, "--no-refresh", "--device", device))


def catalogue(cache: Path) -> Path:
    return next(cache.glob("*/catalog.sqlite"))


ALL = (["index", "."], ["search", QUESTION], ["status"], ["verify"], ["delete", "id"])


def test_an_index_whose_first_run_died_at_once(repo: Path, mbretrieve: Command) -> None:
    place = default_index(repo)
    place.parent.mkdir()
    package.Retriever.create(place, package.ColBERT.from_pretrained()).close()
    assert "mbretrieve index" in one_line(mbretrieve("search", QUESTION))
    assert mbretrieve("search", QUESTION, "--yes", "-k", 1, "-l").out == "app/config.py\n"


def test_an_index_of_a_newer_format(indexed: Path, cache: Path, mbretrieve: Command) -> None:
    connection = sqlite3.connect(catalogue(cache))
    connection.execute("UPDATE meta SET value = '999' WHERE name = 'format'")
    connection.commit()
    connection.close()
    for command in ALL:
        assert "format 999" in one_line(mbretrieve(*command))
    assert catalogue(cache).exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_a_damaged_catalogue(indexed: Path, cache: Path, mbretrieve: Command, damage: str) -> None:
    path = catalogue(cache)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": os.urandom(len(data))}[damage])
    for command in ALL:
        result = mbretrieve(*command)
        assert result.status == 1, command
        assert "Traceback" not in result.err
        assert (result.out if command == ["verify"] and result.out else one_line(result)).count("\n") >= 1


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "gone"])
def test_a_damaged_segment(indexed: Path, cache: Path, mbretrieve: Command, damage: str) -> None:
    path = next(cache.rglob("segments/*/tokens.npy"))
    data = path.read_bytes()
    if damage == "gone":
        shutil.rmtree(path.parent)
    else:
        path.write_bytes({"empty": b"", "cut": data[:-1], "garbage": os.urandom(len(data))}[damage])
    assert "index again" in one_line(mbretrieve("search", QUESTION, "--mode", "semantic"))
    verified = mbretrieve("verify")
    assert verified.status == 1
    assert "Traceback" not in verified.err


def test_a_damaged_index_is_deleted_and_made_again(indexed: Path, cache: Path, mbretrieve: Command) -> None:
    catalogue(cache).write_bytes(b"not a database at all, whatever its name says")
    one_line(mbretrieve("index", "."))
    assert mbretrieve("delete", "--all", "--yes").status == 0
    assert mbretrieve("index", ".").status == 0
    assert mbretrieve("verify").status == 0


HOLD = """
import sys, time
from pathlib import Path
from mbretrieve.index import open_index
with open_index(Path(sys.argv[1])) as index, index.writer():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_writer(indexed: Path, cache: Path) -> Iterator[int]:
    """Another process that writes the index, for as long as the test lasts; its id."""
    command = [sys.executable, "-c", HOLD, str(catalogue(cache).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.stdin.close()
    assert process.returncode == 0


def test_a_second_writer(indexed: Path, mbretrieve: Command, other_writer: int) -> None:
    (indexed / "new.py").write_text("def brand_new(): ...\n")
    assert str(other_writer) in one_line(mbretrieve("index", "."))
    assert str(other_writer) in one_line(mbretrieve("delete", "id"))
    assert str(other_writer) in one_line(mbretrieve("delete", "--all", "--yes"))
    assert str(other_writer) in one_line(mbretrieve("index", ".", "--kind", "dense"))


def test_search_while_another_process_writes(indexed: Path, mbretrieve: Command, other_writer: int) -> None:
    (indexed / "new.py").write_text("def brand_new(): ...\n")
    result = mbretrieve("search", QUESTION, "-k", 1, "-l")
    assert (result.status, result.out) == (0, "app/config.py\n")
    assert "1 new file" in result.err
    assert str(other_writer) in result.err
    assert mbretrieve("status").status == 0
    assert mbretrieve("verify").status == 0


def test_a_very_long_query_is_cut_and_says_so(indexed: Path, mbretrieve: Command) -> None:
    query = (QUESTION + " ") * (100_000 // len(QUESTION))
    result = mbretrieve("search", query, "-k", 1, "-l")
    assert (result.status, result.out) == (0, "app/config.py\n")
    assert "the model reads the first" in result.err
    assert result.err.count("\n") == 1
    assert mbretrieve("search", "ab" * 50_000, "-k", 1, "--mode", "lexical").status == 0
    words = " ".join(f"word{number}" for number in range(9_000)) + " config"
    assert "different words" in mbretrieve("search", words, "--mode", "lexical").err


@pytest.fixture
def read_only(indexed: Path, cache: Path) -> Iterator[Path]:
    """The index, on a disk mounted read-only."""
    index = catalogue(cache).parent
    made = subprocess.run(["mount", "--bind", "-o", "ro", index, index], capture_output=True, check=False)
    remade = subprocess.run(["mount", "-o", "remount,bind,ro", index], capture_output=True, check=False)
    if made.returncode or remade.returncode:
        if made.returncode == 0:
            subprocess.run(["umount", index], check=True)
        if os.geteuid() == 0:
            pytest.skip("root here may write everywhere and mount nothing")
        for path in (index, *index.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield index
        for path in (index, *index.rglob("*")):
            path.chmod(0o755)
        return
    yield index
    subprocess.run(["umount", index], check=True)


def test_a_read_only_index_answers_and_is_not_written(indexed: Path, mbretrieve: Command, read_only: Path) -> None:
    before = {path: path.read_bytes() for path in read_only.rglob("*") if path.is_file()}
    result = mbretrieve("search", QUESTION, "-k", 1, "-l")
    assert (result.status, result.out, result.err) == (0, "app/config.py\n", "")
    assert mbretrieve("status").status == 0
    assert mbretrieve("verify").status == 0
    (indexed / "new.py").write_text("def brand_new(): ...\n")
    one_line(mbretrieve("index", "."))
    one_line(mbretrieve("delete", "id"))
    one_line(mbretrieve("delete", "--all", "--yes"))
    stale = mbretrieve("search", QUESTION, "-k", 1, "--json")
    assert stale.status == 0
    assert json.loads(stale.out)[0]["path"] == "app/config.py"
    assert "stays as it is" in stale.err
    assert {path: path.read_bytes() for path in read_only.rglob("*") if path.is_file()} == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a few hundred units."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only who may mount can have a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_loses_nothing_committed(repo: Path, small_disk: Path, mbretrieve: Command) -> None:
    index = small_disk / "my.index"
    assert mbretrieve("index", "app", "--index", index).status == 0
    before = mbretrieve("search", QUESTION, "--index", index, "--json", "--no-refresh").out
    for number in range(40):
        words = [f"value_{number}_{i} = compute({number}, {i})" for i in range(400)]
        (repo / f"app/large{number}.md").write_text("\n".join(words))
    assert "what was committed is safe" in one_line(mbretrieve("index", "app", "--index", index))
    assert mbretrieve("verify", "--index", index).status == 0
    assert mbretrieve("search", QUESTION, "--index", index, "--json", "--no-refresh").out == before


def test_a_place_that_cannot_be_written(repo: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRETRIEVE_CACHE", "/proc/no/such")
    one_line(mbretrieve("index", "."))
    one_line(mbretrieve("index", ".", "--index", "/proc/index"))
    assert "has no index" in one_line(mbretrieve("search", QUESTION))


def test_a_user_without_a_home_folder(repo: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MBRETRIEVE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # a container's user whom no table of users knows
    for command in (["index", "."], ["search", QUESTION], ["status"]):
        assert "set MBRETRIEVE_CACHE" in one_line(mbretrieve(*command))
