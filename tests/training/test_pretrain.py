"""Pre-training from recipe to model: what is written, what resumes, what a phase changes, what bad input gets."""

import gzip
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mbretrieve.cli import main
from mbretrieve.errors import DataError, MbretrieveError, ModelError
from mbretrieve.models.files import read_json
from mbretrieve.training import pretrain as room
from mbretrieve.training import state
from mbretrieve.training.masked_lm import MaskedLanguageModel
from mbretrieve.training.masked_steps import PhaseSteps
from mbretrieve.training.pretrain import pretrain
from mbretrieve.training.pretrain_config import PretrainConfig
from mbretrieve.training.pretrain_start import begin, open_model
from mbretrieve.training.token_store import TokenStore

from .runs import torchrun

pytest.importorskip("accelerate")

WORDS = [f"word{number}" for number in range(8)] + ["read", "write", "file", "index", "search", "document", "token"]
RECIPES = Path(__file__).parent.parent.parent / "examples" / "recipes"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"text": " ".join(drawn.choice(WORDS, drawn.integers(3, 60)))} for _ in range(300)]
    with gzip.open(folder / "texts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder / "texts.jsonl.gz"


def recipe(texts: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "text": [{"path": str(texts)}],
        "tokenizer": {"vocab_size": 300},
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "local_attention": 32,
            "dtype": "float32",
        },
        "optimizer": {"lr": 1e-2},
        "phase": [
            {
                "name": "stable",
                "steps": 6,
                "batch_size": 4,
                "first_batch_size": 2,
                "batch_warmup": 3,
                "length": 64,
                "warmup": 2,
                "global_rope_theta": 1e4,
            },
            {
                "name": "long",
                "steps": 4,
                "batch_size": 2,
                "length": 256,
                "lr": 5e-3,
                "schedule": "trapezoid",
                "decay": 4,
                "global_rope_theta": 16e4,
            },
        ],
        "run": {"log_every": 1, "token_budget": 128},
    }
    return PretrainConfig.from_dict({**settings, **changes})


@pytest.fixture(scope="module")
def done(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "done"
    outcome = pretrain(recipe(texts), output)
    assert (outcome.step, outcome.steps, outcome.stopped) == (10, 10, None)
    return output


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_model_is_transformers_and_says_its_length_and_theta(done: Path) -> None:
    theirs = AutoModelForMaskedLM.from_pretrained(done)
    tokenizer = AutoTokenizer.from_pretrained(done)
    ids = tokenizer("read the [MASK] of a document", return_tensors="pt")
    assert theirs(**ids).logits.shape == (1, ids["input_ids"].shape[1], 320)
    config = read_json(done / "config.json")
    assert (config["max_position_embeddings"], config["global_rope_theta"]) == (256, 16e4)
    assert config["rope_parameters"]["full_attention"]["rope_theta"] == 16e4
    assert config["local_rope_theta"] == 1e4
    stable = read_json(done / "checkpoints" / "step-00000006" / "config.json")
    assert (stable["max_position_embeddings"], stable["global_rope_theta"]) == (64, 1e4)
    assert tokenizer.model_max_length == 256


def test_the_log_has_each_steps_tokens_loss_and_rate(done: Path) -> None:
    lines = log(done)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["phase"] for line in lines] == ["stable"] * 6 + ["long"] * 4
    assert [line["lr"] for line in lines[:6]] == pytest.approx([5e-3] + [1e-2] * 5)
    assert [line["lr"] for line in lines[6:]] == pytest.approx([5e-3 * (1 - (k / 4) ** 0.5) for k in range(4)])
    sizes = np.diff([0, *(line["tokens"] for line in lines)])
    for size, sequences in zip(sizes, [2, 2, 3, 4, 4, 4], strict=False):
        assert 0.95 * 64 * sequences <= size <= 64 * sequences
    assert all(0.98 * 512 <= size <= 512 for size in sizes[6:])
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert not (done / "tokens").exists()


def test_the_loss_depends_on_no_budget(texts: Path, done: Path, tmp_path: Path) -> None:
    small = recipe(texts, run={"log_every": 1, "token_budget": 1})
    pretrain(small, tmp_path / "small")
    assert [line["loss"] for line in log(tmp_path / "small")] == pytest.approx(
        [line["loss"] for line in log(done)], rel=1e-4
    )


def test_memory_that_ends_halves_the_budget_and_says_what_fitted(
    texts: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's forward fails beyond so many tokens as torch's CPU allocator does; all else is the run itself."""
    most, forward = 300, MaskedLanguageModel.forward

    def bounded(self: MaskedLanguageModel, input_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(input_ids) > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")
        return forward(self, input_ids, *rest)

    monkeypatch.setattr(MaskedLanguageModel, "forward", bounded)
    said: list[str] = []
    pretrain(recipe(texts, run={"log_every": 1, "token_budget": 10_000}), tmp_path / "out", say=said.append)
    assert [line["loss"] for line in log(tmp_path / "out")] == pytest.approx(
        [line["loss"] for line in log(done)], abs=1e-5
    )
    assert any("fitted): going on with run.token_budget=" in line for line in said)
    most = 200
    with pytest.raises(
        ModelError, match=r"\d+ fitted\), which cannot be cut: lower the phase's length, or set model\.g"
    ):
        pretrain(recipe(texts), tmp_path / "other")


@pytest.mark.parametrize("at", [3, 6, 8])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(
    texts: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    config = recipe(texts, run={"log_every": 1, "token_budget": 128, "save_every": 1, "keep": 20})
    count, real = 0, room._Phase._gradients

    def cut_off(phase: Any, received: list[int]) -> Any:
        nonlocal count
        count += 1
        if count == at + 1:
            raise KeyboardInterrupt  # as a second Ctrl-C, between two checkpoints
        return real(phase, received)

    monkeypatch.setattr(room._Phase, "_gradients", cut_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "run")
    monkeypatch.undo()
    torch.manual_seed(99)  # nothing of this process's generators may matter
    pretrain(config, tmp_path / "run", resume=True)
    whole, resumed = tensors(done), tensors(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [(x["loss"], x["tokens"]) for x in log(tmp_path / "run")] == [(x["loss"], x["tokens"]) for x in log(done)]


def test_a_signal_stops_with_a_checkpoint_from_which_it_goes_on(
    texts: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = room._Phase._gradients

    def signalled(phase: Any, received: list[int]) -> Any:
        found = real(phase, received)
        if phase.run.position.step == 2:  # when the processes have just agreed to go on
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(room._Phase, "_gradients", signalled)
    stopped = pretrain(recipe(texts), tmp_path / "run")
    monkeypatch.undo()
    assert (stopped.stopped, stopped.step) == (signal.SIGTERM, 4)
    assert (tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert pretrain(recipe(texts), tmp_path / "run", resume=True).stopped is None
    whole, resumed = tensors(done), tensors(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(texts: Path, tmp_path: Path) -> None:
    phases = [
        {"name": "a", "steps": 3, "batch_size": 4, "length": 64},
        {"name": "b", "steps": 2, "batch_size": 2, "length": 128},
    ]
    config = recipe(texts, phase=phases)
    (tmp_path / "recipe.toml").write_text(config.to_toml(), "utf-8")
    pretrain(config, tmp_path / "one")
    done = torchrun("-m", "mbretrieve", "pretrain", tmp_path / "recipe.toml", "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = ([(line["loss"], line["tokens"]) for line in log(tmp_path / name)] for name in ("one", "two"))
    assert [tokens for _, tokens in two] == [tokens for _, tokens in one]
    assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one], abs=1e-4)


def test_an_annealing_begins_from_the_weights_and_the_optimiser_of_a_checkpoint(
    texts: Path, done: Path, tmp_path: Path
) -> None:
    other = tmp_path / "notes"
    other.mkdir()
    for number in range(20):
        (other / f"{number}.txt").write_text("a note on paris and france\n" * (number + 1), "utf-8")
    start = {"model": str(done / "checkpoints" / "step-00000006"), "optimizer": True}
    phase = {"name": "anneal", "steps": 3, "batch_size": 2, "length": 64, "schedule": "trapezoid", "decay": 3}
    changes = {"start": start, "tokenizer": {}, "model": {"dtype": "float32"}, "phase": [phase]}
    annealing = recipe(texts, text=[{"path": str(other)}], **changes)
    pretrain(annealing, tmp_path / "warm")
    pretrain(replace(annealing, start=replace(annealing.start, optimizer=False)), tmp_path / "cold")
    warm, cold = log(tmp_path / "warm"), log(tmp_path / "cold")
    assert warm[0]["loss"] == cold[0]["loss"]  # the same weights
    assert warm[1]["loss"] != cold[1]["loss"]  # moved by other moments
    moments = load_file(tmp_path / "warm" / "checkpoints" / "step-00000003" / "training.safetensors")
    steps = {float(tensor) for name, tensor in moments.items() if name.startswith("optimizer.step.")}
    assert steps == {9.0}  # six before, three here
    assert [line["lr"] for line in warm] == pytest.approx([1e-2 * (1 - (k / 3) ** 0.5) for k in range(3)])


def test_a_larger_model_begins_as_the_smaller_one_tiled(texts: Path, done: Path, tmp_path: Path) -> None:
    phase = {"name": "one", "steps": 1, "batch_size": 2, "length": 64, "lr": 1e-9}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 6}
    config = recipe(texts, start={"model": str(done), "tile": True}, tokenizer={}, model=sizes, phase=[phase])
    pretrain(config, tmp_path / "large")
    _, saved, state = open_model(tmp_path / "large")
    assert (saved.hidden_size, saved.num_hidden_layers, saved.global_rope_theta) == (64, 6, 16e4)
    small = tensors(done)["model.embeddings.tok_embeddings.weight"]
    torch.testing.assert_close(state["embeddings.tok_embeddings.weight"][:, 16:48], small, rtol=0, atol=1e-6)


def test_the_bundled_model_can_be_trained_on(texts: Path, tmp_path: Path) -> None:
    phase = {"name": "more", "steps": 1, "batch_size": 1, "length": 64}
    start = {"start": {"model": "bundled"}, "tokenizer": {}, "model": {}, "phase": [phase]}
    pretrain(recipe(texts, **start), tmp_path / "more")
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "more").config.num_hidden_layers == 4


def test_a_recipe_says_what_its_tokenizer_takes_for_words(texts: Path) -> None:
    code, text = (
        begin(recipe(texts, tokenizer={"vocab_size": 290, "words": words})).tokenizer for words in ("code", "text")
    )
    split, whole = (tokenizer.first_tokens(["readFile", "read File"], 99) for tokenizer in (code, text))
    assert split[0].ids == split[1].ids
    assert whole[0].ids != whole[1].ids


def test_two_sources_come_as_often_as_they_say(texts: Path, tmp_path: Path) -> None:
    rows = [{"name": "a", "path": str(texts), "limit": 100, "repeat": 2.5}, {"name": "b", "path": str(texts)}]
    config = recipe(texts, text=rows)
    tokenizer = begin(config).tokenizer
    store = TokenStore.open(tmp_path / "tokens", config.text, tokenizer)
    assert (store.sources["a"], store.sources["b"]) == (range(100), range(100, 400))
    order = PhaseSteps(config, 0, store, tokenizer)._order(0)
    counts = np.bincount(order, minlength=400)
    assert counts[:100].sum() == 250
    assert set(counts[:100]) == {2, 3}
    assert set(counts[100:]) == {1}
    text = tokenizer.first_tokens(["read write file"], 99)[0].ids
    assert tokenizer.decode(text) == "read write file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": [{"path": "nowhere.jsonl"}]}, "nowhere.jsonl is not there"),
        ({"tokenizer": {}}, "there is no tokenizer"),
        ({"start": {"tile": True}}, "start: tile or optimizer is set without a model"),
        ({"run": {"mask_rate": 1.0}}, "mask_rate is 1.0, expected a share"),
        ({"phase": [{"name": "a", "steps": 1, "texts": ["x"]}]}, "phase 'a' has texts 'x', expected of texts.jsonl.gz"),
        ({"phase": [{"name": "a"}]}, "both or none of steps and tokens"),
        ({"phase": []}, r"needs a \[\[phase\]\]"),
        ({"optimiser": {}}, "optimiser is not a setting: the nearest is optimizer"),
        ({"start": {"model": "bundled"}}, r"leave \[tokenizer\] out"),
        ({"start": {"model": "bundled"}, "tokenizer": {}}, "or set start.tile to grow"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(texts: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(MbretrieveError, match=message) as caught:
        pretrain(recipe(texts, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_broken_line_and_a_missing_field_are_named(texts: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "one"}\n{"text": \n', "utf-8")
    with pytest.raises(DataError, match=r"broken.jsonl:2"):
        pretrain(recipe(broken), tmp_path / "a")
    with pytest.raises(DataError, match=r"texts.jsonl.gz:1: no field 'body', it has text"):
        pretrain(recipe(texts, text=[{"path": str(texts), "fields": ["body"]}]), tmp_path / "b")


def test_a_run_goes_on_only_with_its_own_recipe_and_texts(texts: Path, done: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not empty"):
        pretrain(recipe(texts), done)
    with pytest.raises(DataError, match=r"optimizer\.lr was 0\.01"):
        pretrain(recipe(texts, optimizer={"lr": 0.1}), done, resume=True)
    copied, run = tmp_path / "texts.jsonl", tmp_path / "run"
    copied.write_text(gzip.decompress(texts.read_bytes()).decode(), "utf-8")
    config = recipe(copied)
    pretrain(config, run)
    before = tensors(run)
    pretrain(config, run, resume=True)  # a run that is done is done again at once
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(run).items())
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    copied.write_text('{"text": "another"}\n', "utf-8")
    with pytest.raises(DataError, match="are not those that the run began with"):
        pretrain(config, run, resume=True)


def test_the_command_shows_trains_and_says_what_is_wrong(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe(texts).to_toml(), "utf-8")
    assert main(["pretrain", str(path), "--dry-run", "phase.0.steps=5"]) == 0
    shown = capsys.readouterr().out
    assert "phase stable: 5 steps, 960 tokens in sequences of 64, global RoPE base 10,000" in shown
    assert "[MASK]" in shown
    assert 'name = "long"' in shown
    output = str(tmp_path / "out")
    assert main(["pretrain", str(path), "--output", output, "phase.0.steps=1", "phase.1.steps=1"]) == 0
    assert f"{output} is the backbone, after 2 steps" in capsys.readouterr().err
    assert (tmp_path / "out" / "curves.json").is_file()
    assert main(["pretrain", str(path), "--output", output]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["pretrain", str(path)]) == 2


def test_a_loss_that_is_no_number_names_the_texts_and_leaves_a_checkpoint_to_begin_from(
    texts: Path, tmp_path: Path
) -> None:
    """The rate of the second phase is the fault; what the message says is done as it is said."""
    phases = [
        {"name": "a", "steps": 2, "batch_size": 1, "length": 64},
        {"name": "b", "steps": 9, "batch_size": 1, "length": 64, "lr": 1e25},
    ]
    config = recipe(texts, phase=phases, text=[{"path": str(texts), "limit": 200}])
    with pytest.raises(
        DataError, match=r"not finite in step \d+ .* of phase b, on \d+ texts that .* names; "
    ) as caught:
        pretrain(config, tmp_path / "run")
    good = Path(str(caught.value).partition("names; ")[2].partition(" is the last good checkpoint")[0])
    assert good == tmp_path / "run" / "checkpoints" / "step-00000003"  # which nothing but the failure asked for
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(good).values())
    rows = json.loads((tmp_path / "run" / "failed-batch.json").read_text())
    lines = gzip.decompress(texts.read_bytes()).decode().splitlines()
    assert rows
    for row in rows:
        path, _, line = row["place"].rpartition(":")
        assert (path, row["source"]) == (str(texts), "texts.jsonl.gz")
        assert json.loads(lines[int(line) - 1])["text"][:200] == row["text"]
    first = tmp_path / "run" / "checkpoints" / "step-00000002"
    mended = recipe(texts, start={"model": str(first)}, tokenizer={}, model={}, phase=[{**phases[1], "lr": 1e-3}])
    assert pretrain(mended, tmp_path / "again").step == 9


@pytest.mark.parametrize("name", ["pretrain-mini", "domain-annealing"])
def test_a_shipped_recipe_loads_and_is_printed_whole(name: str, tmp_path: Path) -> None:
    config = PretrainConfig.load(RECIPES / f"{name}.toml")
    (tmp_path / "printed.toml").write_text(config.to_toml(), "utf-8")
    assert PretrainConfig.load(tmp_path / "printed.toml") == config
    last = config.phase[-1]
    assert (last.schedule, last.decay) == ("trapezoid", last.total_steps)  # the last phase is all decay


def test_the_shipped_recipe_is_the_one_that_was_run() -> None:
    run = RECIPES.parent.parent / "eval" / "results" / "pretrain-mini" / "recipe.toml"
    assert PretrainConfig.load(RECIPES / "pretrain-mini.toml") == PretrainConfig.load(run)


TINY = """
tokenizer.vocab_size=280 model.hidden_size=32 model.intermediate_size=48 model.num_attention_heads=2
model.num_hidden_layers=2 model.dtype=float32 run.save_every=1
phase.0.length=32 phase.0.tokens=600 phase.1.length=64 phase.1.tokens=200 phase.2.length=64 phase.2.tokens=200
phase.2.decay=4
"""


def test_the_shipped_recipes_follow_each_other(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins with the checkpoint at the end of the first one's stable phase, which later ones leave."""
    first, second = (RECIPES / f"{name}.toml" for name in ("pretrain-mini", "domain-annealing"))
    shipped = PretrainConfig.load(first).phase[0].total_steps
    assert PretrainConfig.load(second).start.model == f"backbone/checkpoints/step-{shipped:08d}"
    monkeypatch.chdir(tmp_path)
    settings = [*TINY.split(), f"text.0.path={texts}"]
    assert main(["pretrain", str(first), "--output", "backbone", *settings]) == 0
    steps = [phase.total_steps for phase in PretrainConfig.load(first, settings).phase]
    there = state.checkpoints(tmp_path / "backbone" / "checkpoints")
    assert list(there) == [steps[0], sum(steps[:2]), sum(steps) - 1, sum(steps)]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.txt").write_text("a note on paris and france\n" * 40, "utf-8")
    shorter = [f"start.model=backbone/checkpoints/step-{steps[0]:08d}", "phase.0.length=32", "phase.0.steps=3"]
    assert main(["pretrain", str(second), "--output", "mine", *shorter, "phase.0.decay=3", "model.dtype=float32"]) == 0
    assert len(log(tmp_path / "mine")) == 1
    assert (tmp_path / "mine" / "model.safetensors").is_file()
