"""``mbretrieve mine`` as a user gives it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Command, one_line
from tests.evaluation.sets import MODULES, functions, write_set


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [row for module in MODULES for row in functions(module).values()]
    path.write_text("".join(json.dumps({"query": said, "positive": code}) + "\n" for said, code in rows))
    return path


def test_mined_lines_and_what_became_of_the_others(mbretrieve: Command, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    arguments = ("mine", pairs, "--output", output, "--negatives", 3, "--to", 20, "--relative-margin", 0.05)
    result = mbretrieve(*arguments, "--dtype", "float32")
    assert result.status == 0, result
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    asked = len(pairs.read_text().splitlines())
    assert f"{len(rows)} of {asked} pairs, " in result.out
    assert "texts rejected: too near the positive's score" in result.out
    for row in rows:
        assert 1 <= len(row["negatives"]) <= 3
        assert row["positive"] not in row["negatives"]
        assert len(row["scores"]) == 1 + len(row["negatives"])
        assert max(row["scores"][1:]) <= 0.95 * row["scores"][0]
    assert "exists" in one_line(mbretrieve(*arguments))


@pytest.mark.parametrize(
    ("kind", "loss"), [("colbert", "infonce"), ("dense", "margin-mse"), ("joint", "kl"), ("bm25", "infonce")]
)
def test_a_mined_file_is_trained_on(mbretrieve: Command, pairs: Path, tmp_path: Path, kind: str, loss: str) -> None:
    pytest.importorskip("accelerate")
    mined, recipe = tmp_path / "mined.jsonl.gz", tmp_path / "recipe.toml"
    asked = ("--kind", kind, "--negatives", 2, "--from", 2, "--to", 20, "--relative-margin", 0.01, "--complete")
    assert mbretrieve("mine", pairs, "--output", mined, *asked).status == 0
    columns = 'columns = { scores = "scores" }' if loss != "infonce" else ""
    recipe.write_text(
        f'[model]\nquery_length = 16\ndocument_length = 24\n[[data]]\npath = "{mined.as_posix()}"\n'
        f'format = "tuples"\n{columns}\n[loss]\nname = "{loss}"\n[run]\nsteps = 2\nbatch_size = 4\nlog_every = 1\n'
    )
    shown = mbretrieve("train", recipe, "--dry-run")
    assert "negative" in shown.out, shown
    assert ("scores" in shown.out.partition("The first batch")[2]) == (loss != "infonce")
    done = mbretrieve("train", recipe, "--output", tmp_path / "model")
    assert done.status == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    assert all(0 < line["loss"] < 100 for line in lines)
    assert lines[-1]["tokens"] > 2 * 4 * 4 * 3, "a query, a positive and two negatives an example"


def test_a_beir_folder_by_bm25(mbretrieve: Command, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    output = tmp_path / "mined.jsonl.gz"
    result = mbretrieve("mine", folder, "--split", "test", "--kind", "bm25", "--output", output, "--sampling", "random")
    assert result.status == 0, result
    assert output.stat().st_size > 0
    assert "qrels/dev.tsv" in one_line(
        mbretrieve("mine", folder, "--split", "dev", "--kind", "bm25", "--output", tmp_path / "other.jsonl")
    )


def test_what_cannot_be_is_one_line(mbretrieve: Command, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined.jsonl"
    assert "--kind bm25 has no --model" in one_line(
        mbretrieve("mine", pairs, "--output", output, "--kind", "bm25", "--model", "x")
    )
    assert "is not there" in one_line(mbretrieve("mine", tmp_path / "none.jsonl", "--output", output))
    assert "ends in .jsonl" in one_line(mbretrieve("mine", pairs, "--output", tmp_path / "mined.csv"))
    assert "cannot be loaded as a cross-encoder" in one_line(
        mbretrieve("mine", pairs, "--output", output, "--kind", "bm25", "--teacher", tmp_path)
    )
    assert not output.exists()


def test_killed_and_given_again_it_writes_the_same(mbretrieve: Command, pairs: Path, tmp_path: Path) -> None:
    arguments = ["--negatives", "3", "--kind", "dense", "--dtype", "float32", "--sampling", "random"]
    assert mbretrieve("mine", pairs, "--output", tmp_path / "whole.jsonl", *arguments).status == 0
    output = tmp_path / "killed.jsonl"
    small_batches = (
        "import sys, mbretrieve.training.mining as mining; from mbretrieve.cli import main; mining.BATCH = 16;"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", small_batches, "mine", str(pairs), "--output", str(output), *arguments]
    state = tmp_path / "killed.jsonl.work" / "state.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not (state.exists() and json.loads(state.read_text())["report"]["pairs"]):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert mbretrieve("mine", pairs, "--output", output, *arguments).status == 0 or output.exists()
    whole, again = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (tmp_path / "whole.jsonl", output)
    )
    assert [row["negatives"] for row in again] == [row["negatives"] for row in whole]
    for one, other in zip(again, whole, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
