"""Recipes: what is written is what is read, and whatever does not fit ends in one line."""

import math
import tomllib
import types
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.errors import DataError
from mbretrieve.training import recipe
from mbretrieve.training.config import (
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    TrainConfig,
)

SMALL = """
[[data]]
path = "pairs.jsonl"

[run]
steps = 10
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(SMALL)
    return path


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Draw values of a setting's type, those out of its range included."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return values(arguments[0]).filter(arguments[1].holds)
    if origin in (Union, types.UnionType):
        return st.none() | values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if is_dataclass(hint):
        return records(hint)
    if hint is float:
        return st.floats(0.001, 0.99) | st.sampled_from([1e-12, 3.0, 1e22])
    return {bool: st.booleans(), int: st.integers(0, 2**40), str: st.text(max_size=8)}[hint]


def records(record: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(record, include_extras=True)
    return st.fixed_dictionaries({field.name: values(hints[field.name]) for field in fields(record)}).map(
        lambda settings: record(**settings)
    )


@given(optimizer=records(OptimizerConfig), evaluation=records(EvaluationConfig), names=st.lists(st.text(), unique=True))
def test_what_is_written_is_read_back(
    optimizer: OptimizerConfig, evaluation: EvaluationConfig, names: list[str]
) -> None:
    start = TrainConfig.from_dict({"data": [{"path": "a.jsonl"}], "run": {"epochs": 1}})
    data = [SourceConfig(path="p", name=f"{at}{name}", query_prompt=name) for at, name in enumerate(["", *names])]
    config = replace(start, optimizer=optimizer, evaluation=evaluation, data=tuple(data))
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig.from_dict(tomllib.loads(config.to_toml())) == config


def test_a_setting_that_may_be_unset_is_so_by_default() -> None:
    """TOML has no word for None, so that nothing else could be written and read back."""
    config = TrainConfig.from_dict(tomllib.loads(SMALL))
    for table in (config, config.model, config.data[0], config.loss, config.run, config.optimizer, config.evaluation):
        for field in fields(table):
            if types.NoneType in get_args(get_type_hints(type(table), include_extras=True)[field.name]):
                assert field.default is None, field.name


def test_overrides_are_laid_over_the_file(small: Path) -> None:
    config = TrainConfig.load(
        small,
        [
            "optimizer.lr=3e-4",
            "run.steps=7",
            "model.start=answerdotai/ModernBERT-base",
            "loss.matryoshka=[32, 64]",
            "loss.symmetric=true",
            "data.0.weight=2",
            "data.0.columns.query=docstring",
            "data.0.name=007",
            'evaluation.sets=["a b"]',
            "model.query_prompt='query: '",
        ],
    )
    assert (config.optimizer.lr, config.run.steps, config.model.start) == (3e-4, 7, "answerdotai/ModernBERT-base")
    assert (config.loss.matryoshka, config.loss.symmetric, config.data[0].weight) == ((32, 64), True, 2.0)
    assert (config.data[0].columns.query, config.data[0].name) == ("docstring", "007")
    assert (config.evaluation.sets, config.model.query_prompt) == (("a b",), "query: ")


def test_an_empty_value_puts_the_default_back(small: Path) -> None:
    small.write_text(SMALL + "token_budget = 5\n")
    assert TrainConfig.load(small, ["run.token_budget="]).run == TrainConfig.load(small, ["run.token_budget=16384"]).run
    assert TrainConfig.load(small, ["run.steps=", "run.epochs=2"]).run.epochs == 2.0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.lrr=1", "optimizer.lrr is not a setting: the nearest is optimizer.lr"),
        ("run.lr=1", "run.lr is not a setting: the nearest is optimizer.lr"),
        ("optimiser.lr=1", "optimiser is not a setting: the nearest is optimizer"),
        ("data.0.wieght=1", "data.0.wieght is not a setting: the nearest is data.0.weight"),
        ("data.path=x", "data.path is not a setting: expected the number of a table, as in data.0"),
        ("data.3.path=x", "data.3.path: the recipe has 1 such tables, counted from 0"),
        ("data.0.columns.qery=x", "data.0.columns.qery is not a setting: the nearest is data.0.columns.query"),
        ("optimizer=1", "optimizer is a table: give one of its settings, such as optimizer.name"),
        ("run.steps.deep=1", "run.steps.deep is not a setting: the nearest is run.steps"),
        ("run.steps", "'run.steps' is not a setting: expected key=value, such as run.steps=100"),
        ("run.steps=ten", "run.steps is 'ten', expected a whole number"),
        ("run.steps=1.5", "run.steps is 1.5, expected a whole number"),
        ("run.steps=true", "run.steps is True, expected a whole number"),
        ("run.steps=0", "run.steps is 0, expected 1 or more"),
        ("run.steps=1\nseed=2", "run.steps is '1\\nseed=2', expected a whole number"),
        ("optimizer.lr=nan", "optimizer.lr is nan, expected a number"),
        ("optimizer.betas=[0.9]", "optimizer.betas has 1 values, expected 2"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1 is 1.0, expected a number from 0 to below 1"),
        ("loss.matryoshka=64", "loss.matryoshka is 64, expected a list: [...]"),
        ("loss.symmetric=yes", "loss.symmetric is 'yes', expected true or false"),
        ("loss.name=contrastive", "loss.name is 'contrastive', expected one of infonce, kl, margin-mse"),
        ("model.start=\udcff", "model.start is '\\udcff', expected text that UTF-8 can write"),
        ("run.epochs=1", "run: expected either steps or epochs, how long to train"),
        ("data.0.hub=b", "data.0: expected either path, a file or folder, or hub, the name of a dataset on the Hub"),
        ("loss.name=kl", "loss.name is 'kl', which learns a teacher's scores, but pairs.jsonl has none"),
        ("data.0.columns.scores=s", "data.0: columns.scores is set, but format is 'pairs'"),
        ("loss.matryoshka_weights=[1]", "loss: matryoshka_weights has 1 numbers, expected 0"),
        ("model.pooling=cls", "model: pooling is 'cls', but kind is 'colbert'"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(small: Path, override: str, says: str) -> None:
    with pytest.raises(DataError) as raised:
        TrainConfig.load(small, [override])
    assert str(raised.value).startswith(f"{small}: {says}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[run]\nsteps = 1", "data is not set, expected it in the recipe: [[data]]"),
        ("[[data]]\npath = 'a'", "run is not set, expected it in the recipe: [run]"),
        ("data = []\n[run]\nsteps = 1", "data has no source"),
        ("[data]\npath = 'a'", "data is {'path': 'a'}, expected tables: [[data]]"),
        ("run = 3", "run is 3, expected a table: [run]"),
        ("[[data]]\npath='x'\n[[data]]\npath='b/x'\n[run]\nsteps=1", "two sources are called 'x'"),
        ("[[data]]\nhub='x'\nstreaming=true\n[[data]]\npath='y'\n[run]\nsteps=1", "x is streamed"),
        ("[[data]]\nhub='x'\nstreaming=true\n[run]\nepochs=1", "x is streamed"),
        ("[[data]]\npath='x'\n[[data]]\npath='y'\nweight=1\n[run]\nsteps=1", "x has no weight and others have"),
        ("[model]\ndim=32\n[[data]]\npath='x'\n[run]\nsteps=1\n[loss]\nmatryoshka=[64]", "loss.matryoshka has 64"),
    ],
)
def test_a_recipe_that_is_not_whole(small: Path, text: str, says: str) -> None:
    small.write_text(text)
    with pytest.raises(DataError) as raised:
        TrainConfig.load(small)
    assert str(raised.value).startswith(f"{small}: {says}")


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.toml cannot be read as a recipe"):
        TrainConfig.load(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_bytes(b"[run\n")
    with pytest.raises(DataError, match=r"broken\.toml cannot be read as a recipe .*line 1"):
        TrainConfig.load(tmp_path / "broken.toml")


def test_every_setting_can_be_named_and_printed() -> None:
    config = TrainConfig.from_dict(tomllib.loads(SMALL))
    printed = config.to_toml()
    for name in recipe.names(TrainConfig):
        assert name.rpartition(".")[2] in printed, name


def test_temperatures_stand_for_the_scores_they_divide() -> None:
    settings = tomllib.loads(SMALL)
    config = TrainConfig.from_dict(settings)
    assert (config.temperature("dense"), config.temperature("colbert")) == (0.05, 1.0)
    settings["loss"] = {"temperature": 0.3}
    assert math.isclose(TrainConfig.from_dict(settings).temperature("dense"), 0.3)


def test_records_refuse_what_their_kind_has_not() -> None:
    with pytest.raises(DataError, match="query_marker is set, but kind is 'dense'"):
        ModelConfig(kind="dense", query_marker="[Q]")


def test_similarities_of_a_batch_are_a_teachers_and_for_who_sees_a_batch(small: Path) -> None:
    with pytest.raises(DataError, match="in_batch_weight is set, but name is 'kl': only infonce"):
        LossConfig(name="kl", in_batch_weight=1.0)
    with pytest.raises(DataError, match=r"loss.in_batch_weight has no teacher: expected loss.teacher or data"):
        TrainConfig.load(small, ["loss.in_batch_weight=1.0"])


def test_one_teacher_of_vectors_at_a_time(small: Path) -> None:
    with pytest.raises(DataError, match=r"loss.teacher is set, and pairs.jsonl has teacher_vectors: leave one"):
        TrainConfig.load(small, ["data.0.teacher_vectors=v", "loss.teacher=t"])
