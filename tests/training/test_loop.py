"""Laws of the loop: neither token budget nor number of processes changes a step, and a run that goes on is the same."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from models import small
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from mbretrieve.cli import main
from mbretrieve.errors import DataError, ModelError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.training import loop, state
from mbretrieve.training.config import TrainConfig
from mbretrieve.training.data import Batches
from mbretrieve.training.running import CHECKPOINTS
from mbretrieve.training.setup import make_student, prepare

from .runs import losses, pairs, recipe, torchrun

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.pylate(tmp_path_factory.mktemp("model") / "pylate", do_query_expansion=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("scored"), negatives=True)


@pytest.fixture(scope="module")
def teacher(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "dense"
    DenseEncoder.from_pretrained(start, device="cpu", dtype="float32").save_pretrained(folder)
    return folder


SCORED: dict[str, Any] = {"format": "tuples", "columns": {"scores": "scores"}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "late interaction": {},
    "symmetric, learned temperature": {"loss": {"symmetric": True, "learn_temperature": True}},
    "Matryoshka": {"loss": {"matryoshka": [4, 8], "matryoshka_weights": [0.5, 0.25]}},
    "dense": {"model": {"kind": "dense"}},
    "joint": {"model": {"kind": "joint"}, "loss": {"dense_weight": 0.3}},
    "hard negatives": {"scored": True},
    "KL": {"scored": True, "loss": {"name": "kl"}},
    "margin": {"scored": True, "loss": {"name": "margin-mse"}, "model": {"kind": "dense"}},
    "cosine distillation": {"model": {"kind": "dense"}, "teacher": True},
    "relational distillation": {"model": {"kind": "joint"}, "teacher": True, "loss": {"distillation": "relational"}},
    "distillation of vectors made beforehand": {"model": {"kind": "joint"}, "vectors": True},
    "in-batch distillation": {"model": {"kind": "joint"}, "teacher": True, "loss": {"in_batch_weight": 0.5}},
    "in-batch distillation of late interaction alone": {
        "vectors": True,
        "loss": {"in_batch_weight": 1.0, "distillation_weight": 0.0},
    },
    "checkpointing": {"model": {"gradient_checkpointing": True}},
}


def first_gradients(config: TrainConfig, output: Path) -> tuple[float, dict[str, torch.Tensor], int]:
    """The loss and the gradients of a run's first step, and how many micro-batches it took."""
    run = prepare(config, output, False, print)
    made = loop.Loop(run, print)
    step = made.next_step()
    value = made.gradients(step)
    grads = {
        name: p.grad for m in (run.student, run.objective) for name, p in m.named_parameters() if p.grad is not None
    }
    count = len(loop.cut(run.student, step, config.run.token_budget, not run.objective.spans_examples))
    return float(value), grads, count


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_do_not_depend_on_the_token_budget(
    name: str, start: Path, data: Path, scored: Path, teacher: Path, tmp_path: Path
) -> None:
    tables = dict(OBJECTIVES[name])
    if tables.pop("teacher", False):
        tables["loss"] = {**tables.get("loss", {}), "teacher": str(teacher)}
    if tables.pop("scored", False):
        tables["data"] = [{"path": str(scored), **SCORED}]
    if tables.pop("vectors", False):
        tables["data"] = [{"path": str(data), "teacher_vectors": str(taught(data, teacher, tmp_path))}]
    whole = first_gradients(recipe(start, data, **tables), tmp_path / "whole")
    for budget in (1, 60):
        run = {"run": {"token_budget": budget}}
        cut = first_gradients(recipe(start, data, **tables, **run), tmp_path / str(budget))
        assert whole[2] == 1 < cut[2]
        assert cut[0] == pytest.approx(whole[0], abs=1e-5)
        assert whole[1].keys() == cut[1].keys()
        for parameter, grad in whole[1].items():
            torch.testing.assert_close(cut[1][parameter], grad, atol=1e-5, rtol=1e-4)


def test_vectors_made_beforehand_teach_what_the_teacher_teaches(
    start: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {"model": {"kind": "dense"}, "loss": {"distillation": "relational"}}
    beforehand = [{"path": str(data), "teacher_vectors": str(taught(data, teacher, tmp_path))}]
    online = {**tables, "loss": {**tables["loss"], "teacher": str(teacher)}}
    value, grads, _ = first_gradients(recipe(start, data, **tables, data=beforehand), tmp_path / "beforehand")
    expected = first_gradients(recipe(start, data, **online), tmp_path / "online")
    assert value == pytest.approx(expected[0], abs=1e-5)
    for parameter, grad in expected[1].items():
        torch.testing.assert_close(grads[parameter], grad, atol=1e-5, rtol=1e-4)


def taught(data: Path, teacher: Path, folder: Path) -> Path:
    """Write a teacher's vectors of pairs."""
    model = SentenceTransformer(str(teacher), device="cpu")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for name, side in (("queries", "query"), ("positives", "positive")):
        np.save(folder / f"{name}.npy", model.encode([row[side] for row in rows]))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "late interaction",
        "KL",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("joint", "distillation of vectors made beforehand")),
    ],
)
def test_two_processes_learn_what_one_learns(
    name: str, start: Path, data: Path, scored: Path, teacher: Path, tmp_path: Path
) -> None:
    tables = dict(OBJECTIVES[name])
    if tables.pop("vectors", False):
        tables["data"] = [{"path": str(data), "teacher_vectors": str(taught(data, teacher, tmp_path))}]
    if tables.pop("scored", False):
        tables["data"] = [{"path": str(scored), **SCORED}]
    tables["loss"] = {**tables.get("loss", {}), "learn_temperature": True}
    config = recipe(start, data, **tables, run={"token_budget": 80})
    (tmp_path / "recipe.toml").write_text(config.to_toml())
    loop.train(config, tmp_path / "one")
    done = torchrun("-m", "mbretrieve", "train", tmp_path / "recipe.toml", "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    one, two = (ColBERT.from_pretrained(tmp_path / place, device="cpu", dtype="float32") for place in ("one", "two"))
    for (weights, ours), theirs in zip(
        one.backbone.state_dict().items(), two.backbone.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=weights)


def test_a_long_gradient_is_clipped_as_torch_clips_it(start: Path, data: Path, tmp_path: Path) -> None:
    """The optimiser's eps is large, so that the length of a gradient counts in its first step at all."""
    longest, optimizer = 0.01, {"lr": 0.1, "eps": 1.0}
    config = recipe(
        start,
        data,
        loss={"learn_temperature": True},
        optimizer={**optimizer, "max_grad_norm": longest},
        schedule={"name": "constant", "warmup": 0},
        run={"steps": 1, "token_budget": 90},
    )
    loop.train(config, tmp_path / "clipped")
    run = prepare(config, tmp_path / "ours", False, print)
    made = loop.Loop(run, print)
    made.gradients(made.next_step())
    assert torch.nn.utils.clip_grad_norm_(run.parameters, longest) > 2 * longest
    run.optimizer.step()
    checkpoint = tmp_path / "clipped" / CHECKPOINTS / "step-00000001"
    trained = dict(make_student(config, torch.device("cpu"), checkpoint).named_parameters())
    for name, parameter in run.student.named_parameters():
        torch.testing.assert_close(trained[name], parameter, atol=1e-7, rtol=1e-5, msg=name)
    free = replace(config, optimizer=replace(config.optimizer, max_grad_norm=0.0))
    loop.train(free, tmp_path / "free")
    other = make_student(config, torch.device("cpu"), tmp_path / "free" / CHECKPOINTS / "step-00000001")
    moved = max(float((trained[name] - p).abs().max().detach()) for name, p in other.named_parameters())
    assert moved > 1e-4


WRITER = '''
import json, os


class SummaryWriter:
    """As much of TensorBoard's as accelerate calls; what it is told goes into a file."""

    def __init__(self, folder, **_):
        os.makedirs(folder, exist_ok=True)
        self._path = f"{folder}/told.jsonl"

    def add_scalar(self, name, value, global_step=None, **_):
        with open(self._path, "a") as file:
            file.write(json.dumps([name, value, global_step]) + "\\n")

    def add_hparams(self, values, metric_dict, **_):
        with open(self._path, "a") as file:
            file.write(json.dumps(["settings", values["run"], None]) + "\\n")

    def flush(self):
        pass

    def close(self):
        self.add_scalar("closed", 1)
'''


@pytest.mark.skipif(
    find_spec("tensorboard") is not None, reason="TensorBoard itself is here, and writes in its own way"
)
def test_a_tracker_that_is_installed_is_told_each_logged_step(
    start: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "tensorboardX").mkdir(parents=True)
    (tmp_path / "site" / "tensorboardX" / "__init__.py").write_text(WRITER)
    (tmp_path / "site" / "tensorboardX-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: tensorboardX\nVersion: 1.0\n"
    (tmp_path / "site" / "tensorboardX-1.0.dist-info" / "METADATA").write_text(metadata)
    config = recipe(start, data, run={"steps": 4, "log_every": 2, "trackers": ["tensorboard"]})
    (tmp_path / "recipe.toml").write_text(config.to_toml())
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, "-m", "mbretrieve", "train", tmp_path / "recipe.toml", "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "out").rglob("told.jsonl")
    (_, settings, _), *told, closed = [json.loads(line) for line in path.read_text().splitlines()]
    assert "'batch_size': 8" in settings
    logged = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "lr", "tokens", "tokens_per_second"):
        assert [value for each, value, _ in told if each == name] == [line[name] for line in logged]
        assert [step for each, _, step in told if each == name] == [2, 4]
    assert closed[0] == "closed"


ALONE = """
import sys
from accelerate import PartialState
from mbretrieve.cli import main
PartialState()  # without a group, as accelerate makes it where there are no GPUs
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_processes_without_a_group_are_refused_before_they_write(start: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe(start, data).to_toml())
    (tmp_path / "alone.py").write_text(ALONE)
    done = torchrun(tmp_path / "alone.py", tmp_path / "recipe.toml", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "mbretrieve: 2 processes were started and form no group: start them by torchrun" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_is_the_run_that_did_not_stop(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(
        start,
        data,
        model={"kind": "joint"},
        loss={"learn_temperature": True},
        run={"steps": 10, "save_every": 4, "keep": 9, "token_budget": 90},
    )
    outcome = loop.train(config, tmp_path / "whole")
    assert (outcome.step, outcome.stopped) == (10, None)
    # The folder as it was when the process was killed in step 7: a log that is ahead, half a checkpoint.
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    for step in (8, 10):
        shutil.rmtree(half / CHECKPOINTS / f"step-{step:08d}")
    (half / CHECKPOINTS / ".partial-step-00000008").mkdir()
    for path in half.glob("*.safetensors"):
        path.unlink()
    torch.manual_seed(99)
    loop.train(config, half, resume=True)
    assert losses(half) == losses(tmp_path / "whole")
    assert not list((half / CHECKPOINTS).glob(".partial*"))
    for path in ("model.safetensors", "1_Dense/model.safetensors", "checkpoints/step-00000010/training.safetensors"):
        assert (half / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_every_checkpoint_and_the_folder_are_models_of_both_heads(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data, model={"kind": "joint"}, run={"save_every": 1, "keep": 2})
    loop.train(config, tmp_path / "out")
    kept = state.checkpoints(tmp_path / "out" / CHECKPOINTS)
    assert list(kept) == [3, 4]
    for folder in (*kept.values(), tmp_path / "out"):
        assert ColBERT.from_pretrained(folder, device="cpu").encode_documents(["a b"])[0].shape[1] == 16
        assert DenseEncoder.from_pretrained(folder, device="cpu").encode_documents(["a b"]).shape == (1, small.HIDDEN)
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert curves["step"] == [1, 2, 3, 4]
    assert curves["loss"] == losses(tmp_path / "out")
    assert TrainConfig.load(tmp_path / "out" / "recipe.toml") == config


def test_the_card_says_what_the_recipe_knows_of_licences(start: Path, data: Path, tmp_path: Path) -> None:
    named = {"name": "someone/small", "licence": "apache-2.0"}
    own = [{"path": str(data), "licence": "CC BY 4.0"}]
    config = recipe(start, data, data=own, model={"kind": "joint"}, card=named, run={"steps": 1})
    loop.train(config, tmp_path / "out")
    for folder in (tmp_path / "out", *state.checkpoints(tmp_path / "out" / CHECKPOINTS).values()):
        card = (folder / "README.md").read_text("utf-8")
        assert ModelCard(card).data.license == "apache-2.0"
        for words in ("# someone/small", "| pairs.jsonl | 48 | CC BY 4.0 |", "DenseEncoder", 'kind = "joint"'):
            assert words in card


def test_the_best_by_evaluation_is_kept_and_is_the_model(start: Path, data: Path, tmp_path: Path) -> None:
    figures = iter([0.1, 0.9, 0.3, 0.2])
    seen = []

    def evaluate(model: ColBERT) -> dict[str, float]:
        assert not model.backbone.training
        seen.append(model.encode_documents(["search index"])[0])
        return {"ndcg@10": next(figures)}

    config = recipe(start, data, run={"evaluate_every": 1, "keep": 1})
    outcome = loop.train(config, tmp_path / "out", evaluate=evaluate)
    assert outcome.metrics == {"ndcg@10": 0.2}
    assert list(state.checkpoints(tmp_path / "out" / CHECKPOINTS)) == [2, 4]
    loaded = ColBERT.from_pretrained(tmp_path / "out", device="cpu")
    assert (loaded.encode_documents(["search index"])[0] == seen[1]).all()
    rows = tmp_path / "out" / "evaluations.jsonl"
    assert [json.loads(row)["ndcg@10"] for row in rows.read_text().splitlines()] == [0.1, 0.9, 0.3, 0.2]


def test_a_loss_that_is_no_number_stops_and_names_the_batch(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data, optimizer={"lr": 1e30, "max_grad_norm": 0.0}, run={"steps": 9, "save_every": 1})
    with pytest.raises(DataError, match=r"not finite in step .*failed-batch.json holds; .*step-0000000\d is the last"):
        loop.train(config, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "failed-batch.json").read_text())
    assert len(rows) == 8
    assert {"query", "positive"} <= rows[0].keys()


def test_after_a_loss_that_is_no_number_one_begins_anew_from_before_it(
    start: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No checkpoint was asked for before the end; what the message says is done as it is said."""
    taught = [{"path": str(data), "teacher_vectors": str(tmp_path)}]
    config = recipe(start, data, model={"kind": "dense"}, data=taught)
    vectors = np.ones((48, 8), np.float32)
    for name in ("queries", "positives"):
        np.save(tmp_path / f"{name}.npy", vectors)
    batches = Batches(config.data, 8, config.run.seed)
    third = [next(batches) for _ in range(3)][-1]
    at_fault = int(third[0].query.split()[-1])  # the row's number
    np.save(tmp_path / "positives.npy", np.where(np.arange(48)[:, None] == at_fault, np.float32(np.nan), vectors))
    (tmp_path / "recipe.toml").write_text(config.to_toml())
    assert main(["train", str(tmp_path / "recipe.toml"), "--output", str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert "step 3 (loss nan)" in said
    assert "whose teacher's vectors are not all finite" in said
    good = tmp_path / "out" / CHECKPOINTS / "step-00000002"
    assert f"{good} is the last good checkpoint; begin anew from it: mbretrieve train" in said
    weights = DenseEncoder.from_pretrained(good, device="cpu", dtype="float32").backbone.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    rows = json.loads((tmp_path / "out" / "failed-batch.json").read_text())
    assert [row["teacher_vectors"] for row in rows] == ["not finite"] + ["finite"] * 7
    np.save(tmp_path / "positives.npy", vectors)
    assert main(shlex.split(said.partition("begin anew from it: mbretrieve ")[2])) == 0
    assert (tmp_path / "out-again" / "model.safetensors").is_file()
    printed = TrainConfig.load(tmp_path / "out-again" / "recipe.toml")
    assert (printed.model.start, printed.optimizer.lr) == (str(good), config.optimizer.lr / 2)


def test_a_checkpoint_whose_weights_are_not_finite_is_none_to_begin_from(
    start: Path, data: Path, tmp_path: Path
) -> None:
    loop.train(recipe(start, data, run={"steps": 2, "save_every": 1}), tmp_path / "out")
    first, second = state.checkpoints(tmp_path / "out" / CHECKPOINTS).values()
    assert state.last_good(tmp_path / "out" / CHECKPOINTS) == second
    tensors = load_file(second / "model.safetensors")
    next(iter(tensors.values())).view(-1)[3] = math.nan
    save_file(tensors, second / "model.safetensors")
    assert state.last_good(tmp_path / "out" / CHECKPOINTS) == first


class Small(torch.nn.Module):
    """A model on a device whose memory ends at so many tokens, as torch's CPU allocator says it."""

    def __init__(self, model: torch.nn.Module, tokens: int) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, batch: Any) -> Any:
        if len(batch.ids) > self.tokens:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")
        return self.model(batch)


def test_memory_that_ends_says_the_budget_that_fitted(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data)
    want, grads, _ = first_gradients(config, tmp_path / "one")
    said: list[str] = []
    run = prepare(config, tmp_path / "two", False, print)
    run.model = Small(run.model, 100)
    made = loop.Loop(run, said.append)
    assert float(made.gradients(made.next_step())) == pytest.approx(want, abs=1e-5)
    for name, parameter in run.student.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], atol=1e-5, rtol=1e-4)
    assert "run.token_budget=" in said[-1]
    run.model.tokens = 3
    with pytest.raises(ModelError, match=r"cannot be cut.*document_length"):
        made.gradients(made.next_step())


def test_a_folder_that_is_not_empty_is_not_written_to(start: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume, words in ((False, "not empty"), (True, "no run")):
        with pytest.raises(DataError, match=words):
            loop.train(recipe(start, data), tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_state_that_does_not_fit_is_refused_by_name(start: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(start, data, run={"steps": 1})
    loop.train(config, tmp_path / "out")
    other = recipe(start, data, run={"steps": 1}, optimizer={"lr": 2e-3})
    with pytest.raises(DataError, match=r"optimizer\.lr was 0\.001 .* is 0\.002"):
        loop.train(other, tmp_path / "out", resume=True)
    [folder] = state.checkpoints(tmp_path / "out" / CHECKPOINTS).values()
    tensors = folder / state.TENSORS
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"training\.safetensors cannot be read"):
        loop.train(config, tmp_path / "out", resume=True)
    tensors.write_bytes(whole)
    record = json.loads((folder / state.RECORD).read_text())
    record["shapes"]["model.backbone.final_norm.weight"] = [7]
    (folder / state.RECORD).write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"final_norm\.weight has shape \[7\]"):
        loop.train(config, tmp_path / "out", resume=True)
