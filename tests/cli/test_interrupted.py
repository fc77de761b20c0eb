"""An indexing run that dies loses nothing committed, and the next one goes on."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command, one_line

# Commits so often that a run of seconds has many of them to be killed between.
EAGER = """
import sys
import mbretrieve.retriever as retriever
from mbretrieve.cli import main
retriever.BATCH_DOCUMENTS, retriever.COMMIT_TOKENS = 20, 1000
sys.exit(main(["index", *sys.argv[1:]]))
"""
FILES, FUNCTIONS = 60, 12
WORDS = ["apple", "river", "engine", "cloud", "garden", "silver", "music", "stone", "winter", "bridge", "paper"]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 720 functions, no two alike."""
    root = tmp_path / "library"
    root.mkdir()
    draw = random.Random(0)
    for number in range(FILES):
        lines = [
            f"def {'_'.join(draw.sample(WORDS, 3))}_{number}_{i}():\n    return {' + '.join(draw.sample(WORDS, 9))}\n"
            for i in range(FUNCTIONS)
        ]
        (root / f"file{number}.py").write_text("\n".join(lines))
    monkeypatch.chdir(root)
    return root


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", EAGER, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_a_commit(process: "subprocess.Popen[str]", cache: Path, after: float) -> None:
    """Wait until the run has begun to write (or is over), then so many seconds more."""
    while process.poll() is None and not list(cache.rglob("segments/*")):
        time.sleep(0.01)
    if process.poll() is None:
        time.sleep(after)


def kill_and_check(mbretrieve: Command, cache: Path, kills: int, *arguments: str) -> None:
    draw = random.Random(kills)
    committed = 0
    for kill in range(kills):
        process = start(".", *arguments)
        with process:
            if kill % 2:  # in the middle of the work, else anywhere
                wait_for_a_commit(process, cache, draw.uniform(0, 0.5))
            else:
                time.sleep(draw.uniform(0.1, 4))
            process.send_signal(signal.SIGKILL)
        found = mbretrieve("search", WORDS[0], "--json", "-k", 9999, "--mode", "lexical", "--no-refresh")
        if found.status:
            assert "mbretrieve index" in one_line(found), "nothing committed yet"
            assert committed == 0
            continue
        verified = mbretrieve("verify")
        assert verified.status == 0, verified
        held = json.loads(mbretrieve("status", "--json").out)["documents"]
        assert held >= committed, "what was committed is kept"
        committed = held
    assert mbretrieve("index", ".", *arguments).status == 0
    assert mbretrieve("verify").status == 0
    hits = json.loads(mbretrieve("search", "apple", "--json", "-k", 9999, "--mode", "semantic").out)
    units = [hit["metadata"]["name"] for hit in hits if hit["metadata"]["unit"] == "function"]
    assert len(units) == len(set(units)) == FILES * FUNCTIONS


def test_kill_9_at_random_moments(library: Path, cache: Path, mbretrieve: Command) -> None:
    kill_and_check(mbretrieve, cache, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["colbert", "dense"])
def test_kill_9_at_many_random_moments(library: Path, cache: Path, mbretrieve: Command, kind: str) -> None:
    kill_and_check(mbretrieve, cache, 30, "--kind", kind)


def test_ctrl_c_is_one_line_and_keeps_what_was_committed(library: Path, cache: Path, mbretrieve: Command) -> None:
    process = start(".")
    with process:
        wait_for_a_commit(process, cache, 0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.strip() == "mbretrieve: interrupted; what was committed is kept, run the same command to go on"
    assert mbretrieve("verify").status == 0


@pytest.mark.slow
def test_kill_9_while_another_model_takes_over(library: Path, cache: Path, mbretrieve: Command) -> None:
    assert mbretrieve("index", ".").status == 0
    draw = random.Random(0)
    for _ in range(10):
        process = start(".", "--kind", "dense")
        with process:
            wait_for_a_commit(process, cache, draw.uniform(0, 3))
            process.send_signal(signal.SIGKILL)
        assert mbretrieve("verify").status == 0
        assert mbretrieve("search", WORDS[0], "-k", 1, "--mode", "lexical", "--no-refresh").status == 0
    assert mbretrieve("index", ".", "--kind", "dense").status == 0
    assert json.loads(mbretrieve("status", "--json").out)["model"]["kind"] == "dense"
    assert len([folder for folder in cache.iterdir() if folder.name != "kernels"]) == 1
