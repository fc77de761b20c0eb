"""The log of a run and its picture."""

import json
from pathlib import Path

import pytest

from mbretrieve.errors import DataError
from mbretrieve.training.curves import Log, read_log, smoothed, write_curves


def line(step: int) -> dict[str, float]:
    return {"step": step, "tokens": 10 * step, "loss": 1 / step, "lr": 0.1, "tokens_per_second": 5.0}


def test_a_log_goes_on_behind_the_step_that_was_saved(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.add(line(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')  # the process was killed
    Log(tmp_path, 2).add(line(3))
    assert read_log(tmp_path / "log.jsonl") == [line(1), line(2), line(3)]
    write_curves(tmp_path, "evaluations.jsonl")
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert curves["loss"] == [1.0, 1 / 2, 1 / 3]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_file_that_is_no_log_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[]\n')
    with pytest.raises(DataError, match=r"log\.jsonl:2"):
        read_log(tmp_path / "log.jsonl")


def test_smoothing_averages_what_came_before() -> None:
    assert smoothed([4.0, 2.0, 3.0, 7.0], 2) == [4.0, 3.0, 2.5, 5.0]
    assert smoothed([], 3) == []
