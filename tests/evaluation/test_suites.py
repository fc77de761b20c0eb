"""The table of suites against mteb's task metadata, and how suites and tasks are found by name."""

import json
from pathlib import Path
from typing import Any

import mteb
import pytest

from mbretrieve.errors import DataError
from mbretrieve.evaluation import suites
from mbretrieve.evaluation.suites import Part, Task

STATISTICS = Path(mteb.__file__).parent / "descriptive_stats" / "Retrieval"
MTEB_BENCHMARKS = {"beir": "BEIR", "nanobeir": "NanoBEIR", "coir": "CoIR", "longembed": "LongEmbed"}
TASKS = {task.name: task for name in suites.names() for task in suites.get(name).tasks}
SOURCED = [name for name, task in TASKS.items() if task.parts[0].repository]


@pytest.mark.parametrize("name", MTEB_BENCHMARKS)
def test_suites_hold_the_tasks_of_mteb_benchmarks(name: str) -> None:
    theirs = [task.metadata.name for task in mteb.get_benchmark(MTEB_BENCHMARKS[name]).tasks]
    assert sorted(task.name for task in suites.get(name).tasks) == sorted(theirs)


def mteb_parts(name: str) -> dict[str, tuple[Any, str, str]]:
    """Part name -> the mteb task it belongs to, its subset and its split."""
    task = mteb.get_task(name)
    if name == "CQADupstackRetrieval":
        units = {unit.metadata.name: unit for unit in task.metadata.tasks}
        return {key[len("CQADupstack") : -len("Retrieval")].lower(): (units[key], "default", "test") for key in units}
    splits, subsets = task.metadata.eval_splits, task.hf_subsets
    if name == "MultiLongDocRetrieval":  # English, and the split that is published
        assert "en" in subsets
        assert "test" in splits
        return {"": (task, "en", "test")}
    if len(splits) > 1:
        return {split.removeprefix("test_"): (task, "default", split) for split in splits}
    if len(subsets) > 1:
        return {subset: (task, subset, splits[0]) for subset in subsets}
    return {"": (task, "default", splits[0])}


@pytest.mark.parametrize("name", SOURCED)
def test_sources_are_those_of_mteb(name: str) -> None:
    task = TASKS[name]
    theirs = mteb_parts(name)
    assert {part.name for part in task.parts} == set(theirs)
    for part in task.parts:
        unit, subset, split = theirs[part.name]
        source = unit.metadata.dataset
        assert (part.repository, part.revision) == (source["path"], source["revision"])
        assert part.config == source.get("name", "" if subset == "default" else subset)
        assert part.split == split
        assert (task.metric, task.licence) == (unit.metadata.main_score.replace("_at_", "@"), unit.metadata.license)
        assert task.drop_own == unit.ignore_identical_ids
        assert part.documents == documents_in_mteb(unit.metadata.name, split, subset)


def documents_in_mteb(name: str, split: str, subset: str) -> int:
    statistics = json.loads((STATISTICS / f"{name}.json").read_text("utf-8"))[split]
    statistics = statistics.get("hf_subset_descriptive_stats", {}).get(subset, statistics)
    if statistics.get("num_documents"):
        return int(statistics["num_documents"])
    # Older files give samples only. Every query of these sets has its own text, but for one of the needle's fifty.
    queries = 50 if name == "LEMBNeedleRetrieval" else statistics["queries_text_statistics"]["unique_texts"]
    return int(statistics["num_samples"]) - int(queries)


def test_the_fifteen_the_thirteen_and_the_twelve() -> None:
    assert len(suites.get("beir").tasks) == 15
    assert len(suites.get("nanobeir").tasks) == 13
    assert len(TASKS["CQADupstackRetrieval"].parts) == 12
    assert [part.name for part in TASKS["COIRCodeSearchNetRetrieval"].parts] == [
        *("python", "javascript", "go", "ruby", "java", "php"),
    ]


def test_every_task_is_complete() -> None:
    folders = [part.folder for task in TASKS.values() for part in task.parts]
    assert len(folders) == len(set(folders))
    for task in TASKS.values():
        assert "->" in task.direction
        assert task.depth >= 100
        assert task.document_length is not None
        for part in task.parts:
            assert bool(part.repository) == bool(part.revision) == bool(part.documents)
            assert len(part.revision) in (0, 40)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["scifact", "SCIFACT", "SciFact"], ["SciFact"]),
        (["cqadupstack", "trec-covid"], ["CQADupstackRetrieval", "TRECCOVID"]),
    ],
)
def test_tasks_are_found_by_mteb_name_or_folder(asked: list[str], found: list[str]) -> None:
    assert [task.name for task in suites.get("beir", asked).tasks] == found


@pytest.mark.parametrize(
    ("suite", "tasks", "said"),
    [
        ("bier", [], "unknown suite 'bier', and no folder of that name: nearest are beir"),
        ("beir", ["scifacts"], "suite beir has no task 'scifacts': nearest are SciFact"),
        ("mldr", ["zzz"], "suite mldr has no task 'zzz': nearest are MultiLongDocRetrieval"),
    ],
)
def test_unknown_names_get_the_nearest(suite: str, tasks: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        suites.get(suite, tasks)


def test_a_folder_is_a_suite(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus.jsonl").touch()
    (tmp_path / "notes").mkdir()
    whole = suites.get(str(tmp_path))
    assert (whole.name, [task.name for task in whole.tasks]) == (tmp_path.name, ["a", "b"])
    one = suites.get(str(tmp_path / "a"))
    assert one.tasks == (Task("a", (Part(str(tmp_path / "a")),)),)
    with pytest.raises(DataError, match=r"is not in BEIR layout: expected corpus\.jsonl"):
        suites.get(str(tmp_path / "notes"))


def test_another_split_is_another_folder_of_results_and_no_published_name() -> None:
    dev = suites.get("beir", ("SciFact", "MSMARCO"), "train")
    assert (dev.split, dev.folder, dev.title) == ("train", "beir-train", "BEIR, split train")
    assert {(part.split, part.chosen) for task in dev.tasks for part in task.parts} == {("train", True)}
    own = suites.get("beir", ("SciFact",), "test")
    assert (own.split, own.folder, own.title) == ("", "beir", "BEIR")
    with pytest.raises(DataError, match=r"LEMBNeedleRetrieval has no split 'dev' to choose, only test_256, "):
        suites.get("longembed", ("LEMBNeedleRetrieval",), "dev")
