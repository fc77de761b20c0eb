"""What ``bench encode`` says beside its rows: of the peak that is promised, where it is known."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from mbretrieve.bench.encode import Asked, Report, Row
from mbretrieve.bench.encode_report import print_table
from mbretrieve.bench.roofline import PEAKS
from mbretrieve.models.config import ModernBertConfig

ROW = Row(
    work="512-fixed",
    engine="mbretrieve",
    dtype="bfloat16",
    attention="packed",
    documents=10,
    tokens=5120,
    operations=10**12,
    seconds=[0.002],
    roofline=800e3,
    peak=None,
    largest_batch=None,
    least_cosine=1.0,
)


def printed(*rows: Row) -> str:
    out = io.StringIO()
    report = Report("m", ModernBertConfig(), torch.device("cpu"), list(rows), {"bfloat16": 800e3}, {}, Asked())
    print_table(report, Console(file=out, width=120))
    return out.getvalue()


def test_the_share_of_the_peak_is_beside_that_of_the_roofline() -> None:
    peak = PEAKS["NVIDIA H200", "bfloat16"]
    row = replace(ROW, peak=peak)
    assert row.as_json()["share_of_peak"] == pytest.approx(500 / 989, abs=1e-4)
    shown = printed(row, replace(ROW, engine="transformers", dtype="float32"))
    assert "of peak" in shown
    assert " 62% " in shown
    assert " 51% " in shown
    assert "peak, bfloat16: 989 TFLOP/s" in shown
    assert ROW.as_json()["share_of_peak"] is None
    assert "peak" not in printed(ROW)


def test_variable_lengths_are_held_against_fixed_ones_of_their_size() -> None:
    def at(work: str, seconds: float) -> Row:
        return replace(ROW, work=work, seconds=[seconds])

    rows = [at("512-fixed", 1.0), at("mixed", 3.0), at("8192-variable", 9.0), at("512-variable", 1.25)]
    assert printed(*rows).count("variable over fixed") == 1
    assert "512 tokens, variable over fixed lengths: mbretrieve bfloat16: 0.80x" in printed(*rows)
