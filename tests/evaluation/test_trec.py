"""Run files: what is written is what trec_eval's rules rank, and what is read is what was written."""

from pathlib import Path

import ir_measures
import numpy as np
import pytest

from mbretrieve.errors import DataError
from mbretrieve.evaluation.metrics import evaluate
from mbretrieve.evaluation.trec import read_run, write_run
from mbretrieve.types import Run


def test_round_trip_keeps_every_metric(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run: Run = {
        f"q{query}": {f"d{d}": float(s) for d, s in enumerate(rng.integers(0, 9, 50) / 9)} for query in range(9)
    }
    qrels = {f"q{query}": {f"d{d}": int(d % 3) for d in range(0, 50, 7)} for query in range(9)}
    path = tmp_path / "run.trec"
    write_run(path, run, "tag")
    assert evaluate(read_run(path), qrels).means == evaluate(run, qrels).means
    theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, ir_measures.read_trec_run(str(path)))
    assert evaluate(run, qrels, ["ndcg@10"]).means["ndcg@10"] == pytest.approx(theirs[ir_measures.nDCG @ 10], abs=1e-6)


def test_ranks_are_written_as_trec_eval_breaks_ties(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"q": {"a": 1.0, "c": 1.0, "b": 1.0 + 1e-12, "z": 2.0}}, "t")
    rows = [line.split() for line in (tmp_path / "r").read_text().splitlines()]
    assert [(row[2], row[3]) for row in rows] == [("z", "1"), ("c", "2"), ("b", "3"), ("a", "4")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q Q0 d 1 0.5", "expected query Q0 document rank score tag"),
        ("q Q0 d 1 high t", "got 'q Q0 d 1 high t'"),
        ("q Q0 d 1 nan t", "not a number"),
        ("q Q0 a 2 0.1 t", "'a' comes twice"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "run.trec"
    path.write_text(f"q Q0 a 1 0.9 t\n\n{line}\n")
    with pytest.raises(DataError, match=rf"run\.trec:3: .*{said}"):
        read_run(path)


@pytest.mark.parametrize("run", [{"two words": {"d": 1.0}}, {"q": {"": 1.0}}, {"q": {"a\tb": 1.0}}])
def test_an_id_that_the_format_cannot_hold_is_refused_and_nothing_written(tmp_path: Path, run: Run) -> None:
    with pytest.raises(DataError, match="cannot stand in a TREC run file"):
        write_run(tmp_path / "run.trec", run, "t")
    assert not list(tmp_path.iterdir())
