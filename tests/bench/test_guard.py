"""The guard's arithmetic: what fails it, what does not, what it says. Nothing is timed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("guard", BENCH / "guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "guard", module)
    spec.loader.exec_module(module)
    return module


def parts(**values: list[float]) -> ModuleType:
    """Parts that give values as they are told."""
    made = ModuleType("guard_parts")

    def given(limit: tuple[int, float]) -> dict[str, list[float]]:
        return {name: of[: limit[0]] for name, of in values.items()}

    made.PARTS = (given,)  # type: ignore[attr-defined]
    made.Limit = lambda rounds, seconds: (rounds, seconds)  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(("now", "said"), [(0.86, []), (0.84, ["encode: 0.42, was 0.5: 16% less"]), (3.0, [])])
def test_a_fall_of_more_than_15_percent_is_said(guard: ModuleType, now: float, said: list[str]) -> None:
    assert guard.falls({"encode": 0.5 * now, "search": 2.0}, {"encode": 0.5, "search": 2.0}) == said


def test_a_ratio_that_is_missing_is_named(guard: ModuleType) -> None:
    assert guard.falls({}, {"encode": 0.5}) == ["encode: not measured, expected 0.5"]
    assert guard.falls({"encode": 0.5}, {}) == ["encode: 0.5, not committed yet"]


def test_what_is_committed_is_compared_with(
    guard: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "guard.json"
    at = ["--committed", str(file)]
    monkeypatch.setitem(sys.modules, "guard_parts", parts(encode=[0.9, 1.0, 1.1], search=[2.0, 2.0, 2.0]))
    assert guard.main(["update", *at]) == 0
    record = json.loads(file.read_text())
    assert record["ratios"] == {"encode": 1.0, "search": 2.0}
    assert record["rounds"] == {"encode": 3, "search": 3}
    assert {"machine", "versions", "command", "ranges"} <= record.keys()
    assert guard.main(["compare", *at]) == 0
    monkeypatch.setitem(sys.modules, "guard_parts", parts(encode=[0.8, 0.9, 0.8], search=[2.0, 2.0, 2.0]))
    capsys.readouterr()
    assert guard.main(["compare", *at]) == 1
    out, error = capsys.readouterr()
    assert "encode: 0.8, was 1: 20% less" in error
    assert "search" not in error
    assert "-20%" in out
    assert guard.main(["show", *at]) == 0, "what CI prints fails nothing"


def test_what_falls_once_and_not_again_is_noise(
    guard: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, values = ["--committed", str(tmp_path / "guard.json")], iter([1.0, 0.7, 0.9, 0.7, 0.8])
    made = parts()
    made.PARTS = (lambda limit: {"encode": [next(values)]},)  # type: ignore[attr-defined]
    made.PARTS[0].__name__ = "encoding"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "guard_parts", made)
    assert guard.main(["update", *at]) == 0
    assert guard.main(["compare", *at]) == 0
    assert guard.main(["compare", *at]) == 1


def test_without_committed_ratios_each_is_named(
    guard: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "guard_parts", parts(encode=[1.0, 1.0, 1.0]))
    at = ["--committed", str(tmp_path / "none.json")]
    assert guard.main(["show", *at]) == 0
    assert guard.main(["compare", *at]) == 1
    assert "encode: 1, not committed yet" in capsys.readouterr().err
