"""``mbretrieve train`` as a user types it: a run, killed and resumed, its model loaded elsewhere, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from mbretrieve import ColBERT
from mbretrieve.training.config import EvaluationConfig
from mbretrieve.training.validation import evaluator
from tests.models import small
from tests.training.runs import beir

from .conftest import Command, one_line

pytest.importorskip("accelerate")

RECIPE = """
[model]
query_length = 16
document_length = 24
dtype = "float32"

[[data]]
path = "{data}"

[loss]
temperature = 0.5

[run]
steps = 3
batch_size = 4
log_every = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [
        {"query": f"how to sort list {number}", "positive": f"def sort_{number}(items): return sorted(items)"}
        for number in range(24)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=data.as_posix()), "utf-8")
    return path


def log(folder: Path) -> list[dict[str, float]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def test_a_run_leaves_a_model_that_sentence_transformers_loads(
    recipe: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    module = pytest.importorskip("sentence_transformers.multi_vector_encoder", reason="the oracle came with version 6")
    out = tmp_path / "model"
    done = mbretrieve("train", recipe, "--output", out, "optimizer.lr=1e-3")
    assert done.status == 0, done.err
    assert "lr = 0.001" in done.out.splitlines()
    assert "steps = 3" in done.out
    lines = log(out)
    assert [set(line) for line in lines] == [{"step", "tokens", "loss", "lr", "tokens_per_second"}] * 3
    assert [line["step"] for line in lines] == [1, 2, 3]
    texts = ["def sort_1(items): return sorted(items)"]
    ours = ColBERT.from_pretrained(out, device="cpu", dtype="float32").encode_documents(texts)[0]
    theirs = module.MultiVectorEncoder(str(out), device="cpu").encode_document(texts, convert_to_numpy=True)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    card = (out / "README.md").read_text("utf-8")
    assert "optimizer" in card
    unread = "PyLate cannot load it, having no words for rows that keep their own length"
    for said in (done.err, card):
        assert f"{unread}: trained with model.normalize_queries = true it could be" in said
    assert 'ColBERT.from_pretrained(".")' in card
    assert "MultiVectorEncoder" in card
    assert ModelCard(card).data.base_model == "mbretrieve/mini-v3"
    assert "Trained from mbretrieve/mini-v3, the model that mbretrieve brings along." in card
    again = one_line(mbretrieve_error(mbretrieve, recipe, out))
    assert "not empty" in again


def mbretrieve_error(mbretrieve: Command, recipe: Path, out: Path) -> object:
    done = mbretrieve("train", recipe, "--output", out)
    return done._replace(out="")  # the recipe, which is printed first


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(recipe: Path, tmp_path: Path, mbretrieve: Command) -> None:
    settings = ["run.steps=400", "run.save_every=300"]
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "mbretrieve", "train", str(recipe), "--output", str(out), *settings]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 120
    while len(log(out)) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, errors
    assert "--resume goes on" in errors
    stopped = len(log(out))
    assert 2 <= stopped < 400
    short = [f"run.steps={stopped + 3}"]
    changed = mbretrieve("train", recipe, "--output", out, "--resume", *short)
    assert changed.status == 1
    assert "run.steps was 400" in changed.err


@pytest.mark.slow
def test_a_run_that_is_killed_outright_has_the_curve_of_one_that_is_not(
    recipe: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    start = small.pylate(tmp_path / "start", do_query_expansion=False)
    settings = [f"model.start={start}", "run.steps=60", "run.save_every=20"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert mbretrieve("train", recipe, "--output", whole, *settings).status == 0
    command = [sys.executable, "-m", "mbretrieve", "train", str(recipe), "--output", str(out), *settings]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(log(out)) < 25 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL, errors
    assert 25 <= len(log(out)) < 60
    assert not (out / "model.safetensors").exists()
    done = mbretrieve("train", recipe, "--output", out, "--resume", *settings)
    assert done.status == 0, done.err
    assert "going on from" in done.err
    assert [line["step"] for line in log(out)] == list(range(1, 61))
    for name in ("loss", "lr", "tokens"):
        assert [line[name] for line in log(out)] == pytest.approx([line[name] for line in log(whole)], rel=1e-5)


def test_a_data_file_that_was_changed_since_ends_a_run_that_is_to_go_on(
    recipe: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    out, data = tmp_path / "out", tmp_path / "pairs.jsonl"
    assert mbretrieve("train", recipe, "--output", out).status == 0
    status = data.stat()
    data.write_text(data.read_text("utf-8").replace("sort list 7", "sort list 8"), "utf-8")
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = mbretrieve("train", recipe, "--output", out, "--resume")
    assert done.status == 1
    assert "the rows of pairs.jsonl, or its teacher's vectors, are not those that the run began with" in done.err


def test_a_run_is_measured_on_the_sets_of_its_recipe_and_keeps_the_best(
    recipe: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    folder, out = beir(tmp_path / "small"), tmp_path / "model"
    sets = [f"evaluation.sets=['{folder}']", "run.evaluate_every=1", "optimizer.lr=1e-2"]
    done = mbretrieve("train", recipe, "--output", out, *sets)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in (out / "evaluations.jsonl").read_text("utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"step", "ndcg@10", "ndcg@10 small"}] * 3
    best = max(rows, key=lambda row: row["ndcg@10"])
    assert f"the model is that of step {best['step']}, the best by evaluation ({best['ndcg@10']:.4f})" in done.err
    measure = evaluator(EvaluationConfig(sets=(str(folder),)))
    assert measure is not None
    assert measure(ColBERT.from_pretrained(out))["ndcg@10"] == pytest.approx(best["ndcg@10"])
    [figure] = [one for one in ModelCard.load(out / "README.md").data.eval_results if one.dataset_name == "small"]
    assert figure.metric_value == pytest.approx(best["ndcg@10"])
    missing = mbretrieve("train", recipe, "--output", tmp_path / "other", "evaluation.sets=['nowhere']")
    assert missing.status == 1
    assert "evaluation.sets names nowhere, which is no folder" in missing.err


def test_a_stopped_run_resumes_bit_for_bit(recipe: Path, tmp_path: Path, mbretrieve: Command) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ["run.steps=6", "run.save_every=2", "run.keep=5"]
    assert mbretrieve("train", recipe, "--output", whole, *settings).status == 0
    assert mbretrieve("train", recipe, "--output", parts, *settings).status == 0
    for step in (4, 6):  # as if it had been killed in step 3
        checkpoint = parts / "checkpoints" / f"step-{step:08d}"
        (checkpoint / "training.json").unlink()
    done = mbretrieve("train", recipe, "--output", parts, "--resume", *settings)
    assert done.status == 0, done.err
    assert [line["loss"] for line in log(parts)] == [line["loss"] for line in log(whole)]
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_dry_run_shows_and_writes_nothing(recipe: Path, tmp_path: Path, mbretrieve: Command) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    done = mbretrieve("train", recipe, "--dry-run")
    assert done.status == 0, done.err
    for words in ("steps", "tokens", "memory", "how to sort list", "def sort_"):
        assert words in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "PyLate cannot load it" in done.err


def test_a_model_with_queries_of_unit_length_is_saved_for_pylate(
    recipe: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    """What the line on PyLate says is done: PyLate's module list, and a program for it in the card."""
    out = tmp_path / "model"
    done = mbretrieve("train", recipe, "--output", out, "run.steps=1", "model.normalize_queries=true")
    assert done.status == 0, done.err
    assert "PyLate" not in done.err
    modules = json.loads((out / "modules.json").read_text("utf-8"))
    assert modules[-1]["type"] == "pylate.models.Dense.Dense"
    assert "from pylate import models" in (out / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optimizer.lrr=1"], "lr"),
        (["model.start=nowhere/at/all"], "nowhere"),
        (["run.steps=0"], "steps"),
        (["run.trackers=['nothing']"], "nothing"),
        (["run.trackers=['clearml']"], "run.trackers names clearml, which is not installed"),
        (["loss.teacher=/nowhere", "model.kind=dense"], "there is no folder /nowhere"),
    ],
)
def test_bad_input_is_one_line(
    settings: list[str], words: str, recipe: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    done = mbretrieve("train", recipe, "--output", tmp_path / "out", *settings)
    assert done.status == 1
    assert done.err.count("\n") == 1, done.err
    assert words in done.err


@pytest.mark.parametrize(
    ("command", "name", "other"), [("train", "pretrain-mini", "pretrain"), ("pretrain", "dpr", "train")]
)
def test_a_recipe_of_the_other_command_is_told(
    command: str, name: str, other: str, tmp_path: Path, mbretrieve: Command
) -> None:
    recipe = Path(__file__).parent.parent.parent / "examples" / "recipes" / f"{name}.toml"
    said = one_line(mbretrieve(command, recipe, "--output", tmp_path / "out"))
    assert f"is a recipe for mbretrieve {other}: give it to that command" in said
