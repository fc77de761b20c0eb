"""Results on disk, tables, pictures: what a partial suite may be called, and what a bad file gets."""

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.evaluation import suites
from mbretrieve.evaluation.report import (
    SCHEMA,
    Published,
    TaskResult,
    markdown,
    plot_tasks,
    plot_trade_off,
    print_table,
    read_published,
    read_result,
    reference_folder,
    summarise,
    write_result,
)


def result(task: str, score: float, **fields: Any) -> TaskResult:
    return TaskResult(
        task=task,
        suite="beir",
        model="mini",
        metric="ndcg@10",
        metrics={"ndcg@10": score, "recall@100": 0.9},
        per_query={"q1": score, "q2": score},
        **fields,
    )


FULL = result(
    "SciFact",
    0.68,
    exact_metrics={"ndcg@10": 0.685},
    timing={"encode": 12.34, "index": 1.0, "search": 2.0, "p50_ms": 3.21, "p95_ms": 4.56},
    index={"bytes": 12_300_000, "documents": 5183, "recall@10": 0.987},
    provenance={"versions": {"numpy": "2"}, "data": {"revision": "abc"}},
    notes=("1 judgements name documents that are not in the corpus",),
)
PARTS = result("CQADupstackRetrieval", 0.4, parts={"android": {"ndcg@10": 0.5}, "gis": {"ndcg@10": 0.3}})


def test_a_result_survives_the_disk(tmp_path: Path) -> None:
    for number, written in enumerate((FULL, PARTS)):
        path = tmp_path / "deep" / f"{number}.json"
        write_result(path, written)
        assert read_result(path) == written
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["0.json", "1.json"]


def test_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    write_result(tmp_path / "r.json", FULL)
    fields = json.loads((tmp_path / "r.json").read_text())
    assert fields["metrics"] == {"ndcg@10": 0.68, "recall@100": 0.9}
    assert {"schema", "task", "metrics", "exact_metrics", "timing", "index", "provenance"} <= fields.keys()


def test_a_figure_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_result(tmp_path / "r.json", result("SciFact", math.nan))
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": SCHEMA + 1}, f"has schema version {SCHEMA + 1}, this program reads {SCHEMA}: run the task again"),
        ({"schema": "1"}, "has schema version '1'"),
        ({"task": None, "extra": 1}, "an unknown extra"),
        ({"metrics": {}}, "no number for its headline metric"),
        ({"metrics": [1]}, "no number for its headline metric"),
    ],
)
def test_another_schema_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "r.json"
    write_result(path, FULL)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=said):
        read_result(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("[1]", "is not a result"),
        ("{}", "is not a result"),
        ('{"schema": 1}', "it has no task"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_result(tmp_path / "r.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a result"):
        read_result(tmp_path / "nothing.json")


def test_only_a_whole_suite_bears_its_name() -> None:
    whole = summarise("BEIR", ["SciFact", "CQADupstackRetrieval"], [PARTS, FULL])
    assert (whole.label, whole.mean) == ("BEIR (mean of 2)", pytest.approx(0.54))
    assert [r.task for r in whole.results] == ["SciFact", "CQADupstackRetrieval"]
    partial = summarise("BEIR", ["SciFact", "CQADupstackRetrieval", "NQ"], [FULL])
    assert (partial.label, partial.missing) == ("mean of 1 of 3 tasks", ["CQADupstackRetrieval", "NQ"])
    assert "BEIR (mean" not in markdown(partial)
    assert "- no result: CQADupstackRetrieval, NQ" in markdown(partial)


@pytest.mark.parametrize(
    ("results", "said"),
    [([], "no result for any task of BEIR"), ([FULL, FULL], "two results for task SciFact")],
)
def test_what_cannot_be_summarised(results: list[TaskResult], said: str) -> None:
    with pytest.raises(DataError, match=said):
        summarise("BEIR", ["SciFact"], results)


def test_the_terminal_shows_what_the_result_holds() -> None:
    console = Console(file=io.StringIO(), width=160)
    print_table(summarise("BEIR", ["SciFact", "CQADupstackRetrieval"], [FULL, PARTS]), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    for figure in ("0.6800", "0.6850", "0.0050", "0.987", "5,183", "12.3", "3.2", "4.6"):
        assert figure in lines["SciFact"]
    assert "0.5000" in lines["android"]
    assert "0.5400" in lines["BEIR (mean of 2)"]
    assert "SciFact: 1 judgements name documents" in text


PUBLISHED = [
    Published("ColBERT", "SciFact", "ndcg@10", 0.73, "a paper", "Table 8"),
    Published("ColBERT", "beir", "ndcg@10", 0.513, "a paper", "Table 1"),
    Published("ColBERT", "SciFact", "ndcg@1", 0.6, "a paper", "Table 9"),
    Published("ColBERT", "NQ", "ndcg@10", 0.5, "another", "Table 8"),
]


def test_markdown_puts_published_figures_beside() -> None:
    text = markdown(summarise("BEIR", ["SciFact"], [FULL]), PUBLISHED)
    assert "| SciFact | 0.680 | 0.730 |" in text
    assert "| BEIR (mean of 1) | 0.680 | 0.513 |" in text
    assert text.endswith("Published: a paper, Table 1; a paper, Table 8.\n")
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 2  # two tables, each with lines of one width


def test_a_suites_published_mean_never_stands_beside_a_partial_one() -> None:
    text = markdown(summarise("BEIR", ["SciFact", "NQ"], [FULL]), PUBLISHED)
    assert "0.513" not in text
    assert "Table 1" not in text


def test_the_reference_tables_are_read_and_sourced() -> None:
    published = read_published(reference_folder())
    figures = {(p.model, p.task, p.metric): p.value for p in published}
    assert figures["ModernBERT-base ColBERT", "SciFact", "ndcg@10"] == pytest.approx(0.73)
    assert figures["ModernBERT-large ColBERT", "mldr", "ndcg@10"] == pytest.approx(0.804)
    assert len(figures) == len(published), "a figure stands twice"
    for figure in published:
        assert figure.source
        assert figure.table
        assert 0 < figure.value < 1


@pytest.mark.parametrize(
    "model", ["ModernBERT-base ColBERT", "ModernBERT-large ColBERT", "ModernBERT-base DPR", "ModernBERT-large DPR"]
)
def test_the_transcribed_sets_average_to_the_transcribed_mean(model: str) -> None:
    """A slip in one of the fifteen would show: the paper's Tables 7 and 8 against its Table 1."""
    figures = {p.task: p.value for p in read_published(reference_folder()) if p.model == model}
    tasks = [task.name for task in suites.get("beir").tasks]
    assert sum(figures[task] for task in tasks) / 15 == pytest.approx(figures["beir"], abs=1e-3)


@pytest.mark.parametrize("line", ["m,SciFact,ndcg@10,high,100,s,t", "m,SciFact", "m,SciFact,ndcg@10,1,0,s,t"])
def test_a_malformed_reference_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.csv").write_text(f"model,task,metric,value,scale,source,table\nm,NQ,ndcg@10,50,100,s,t\n{line}\n")
    with pytest.raises(DataError, match=r"x\.csv:3: expected model, task"):
        read_published(tmp_path)


def test_pictures_are_drawn_without_a_display(tmp_path: Path) -> None:
    plot_trade_off(tmp_path / "latency.png", {"mini": [FULL, PARTS], "other": [FULL]}, "latency")
    plot_trade_off(tmp_path / "size.png", {"mini": [FULL]}, "size")
    plot_tasks(tmp_path / "tasks.png", summarise("BEIR", ["SciFact", "CQADupstackRetrieval"], [FULL, PARTS]), PUBLISHED)
    for name in ("latency", "size", "tasks"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    for results in ({"mini": [PARTS]}, {"mini": [FULL], "other": [PARTS]}, {}):
        with pytest.raises(DataError, match="no task for which every system tells its latency"):
            plot_trade_off(tmp_path / "x.png", results, "latency")


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "mbretrieve\[eval\]"'):
        plot_trade_off(tmp_path / "x.png", {"mini": [FULL]}, "latency")


def test_a_report_is_of_one_split_and_beside_no_figure_of_another() -> None:
    dev = [result("SciFact", 0.5, split="dev"), result("NFCorpus", 0.6, split="dev")]
    published = [Published("theirs", "SciFact", "ndcg@10", 0.7, "a paper", "Table 1")]
    assert "theirs" in markdown(summarise("BEIR", ["SciFact"], [result("SciFact", 0.5)]), published)
    assert "theirs" not in markdown(summarise("BEIR", ["SciFact", "NFCorpus"], dev), published)
    with pytest.raises(DataError, match="different splits, dev, the tasks' own: a report shows one"):
        summarise("BEIR", ["SciFact", "NFCorpus"], [dev[0], result("NFCorpus", 0.6)])
