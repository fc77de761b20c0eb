"""The tables in documents are made from results, and a stale one is noticed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbretrieve.evaluation.report import TaskResult, write_result

ROOT = Path(__file__).parents[2]
DOCUMENT = "# A\n\n<!-- table: {} -->\n{}<!-- end of table -->\n\ntext\n"


def tables(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "eval" / "tables.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for model, scores in {"bm25": {"a": 0.25, "b": 0.5}, "mini": {"a": 0.75, "c": 0.1, "b": 0.5}}.items():
        for task, score in scores.items():
            result = TaskResult(task, "sets", model, "ndcg@10", {"ndcg@10": score}, {})
            write_result(tmp_path / "results" / model / "sets" / f"{task}.json", result)
    return tmp_path / "results"


def test_tables_are_made_and_stay(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "R.md"
    readme.write_text(DOCUMENT.format("sets bm25 mini", "old\n"))
    stale = tables("--check", "--results", str(results), str(readme))
    assert (stale.returncode, stale.stderr) == (1, "stale tables in R.md: run python eval/tables.py\n")
    assert "old" in readme.read_text()
    assert tables("--results", str(results), str(readme)).returncode == 0
    rows = [
        "| task | metric | bm25 | mini |",
        "| --- | --- | --- | --- |",
        "| a | ndcg@10 | 0.250 | 0.750 |",
        "| b | ndcg@10 | 0.500 | 0.500 |",
        "| c | ndcg@10 |  | 0.100 |",
        "| mean of 2 of 3 tasks |  | 0.375 | 0.625 |",
    ]
    assert readme.read_text() == DOCUMENT.format("sets bm25 mini", "".join(f"{row}\n" for row in rows))
    assert tables("--check", "--results", str(results), str(readme)).returncode == 0


@pytest.mark.parametrize(
    ("what", "said"), [("sets", "names no model"), ("sets nobody", "no results in"), ("beir mini", "no results in")]
)
def test_a_table_of_nothing_is_one_line(results: Path, tmp_path: Path, what: str, said: str) -> None:
    (tmp_path / "R.md").write_text(DOCUMENT.format(what, ""))
    done = tables("--results", str(results), str(tmp_path / "R.md"))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_readme_is_fresh() -> None:
    done = tables("--check", str(ROOT / "README.md"))
    assert done.returncode == 0, done.stderr
