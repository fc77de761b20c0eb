"""The same model through mteb and through this: the same nDCG."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import mteb
import pytest
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SearchProtocol

from mbretrieve.evaluation import runner, searchers, suites
from mbretrieve.integrations.mteb import mteb_model
from mbretrieve.models import load_encoder
from mbretrieve.types import Kind
from tests.evaluation.sets import write_set

load = partial(load_encoder, dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "library")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def local_task(folder: Path, top_ranked: dict[str, list[str]] | None = None) -> AbsTaskRetrieval:
    """The set as a task of mteb's, which is asked for nothing on a network."""
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        judged.setdefault(query, {})[document] = int(grade)

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LibraryLocal",
            description="Functions of Python's library by their docstrings.",
            reference="https://docs.python.org/3/library/index.html",
            dataset={"path": "local/library", "revision": "1"},
            type="Reranking" if top_ranked else "Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            corpus = [
                {"id": row["_id"], "title": row["title"], "text": row["text"]} for row in rows(folder / "corpus.jsonl")
            ]
            queries = [{"id": row["_id"], "text": row["text"]} for row in rows(folder / "queries.jsonl")]
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_list(corpus),
                        "queries": Dataset.from_list(queries),
                        "relevant_docs": judged,
                        "top_ranked": top_ranked,
                    }
                }
            }
            self.data_loaded = True

    return Local()


def through_mteb(kind: Kind, task: AbsTaskRetrieval) -> dict[str, Any]:
    result = mteb.evaluate(mteb_model(load(kind)), task, cache=None, show_progress_bar=False, co2_tracker=False)
    scores: dict[str, Any] = result.task_results[0].scores["test"][0]
    return scores


@pytest.mark.parametrize("kind", ["colbert", "dense"])
def test_the_same_figures(kind: Kind, data: Path, tmp_path: Path) -> None:
    theirs = through_mteb(kind, local_task(data))
    suite = suites.get(str(data))
    system = searchers.EncoderSystem(load, kind, cut=True, exact=True)
    ours = runner.run_suite(suite, system, runner.Options(tmp_path, tmp_path / "cache", exact=True)).results[0]
    assert 0.3 < ours.metrics["ndcg@10"] < 0.9
    for metrics in (ours.metrics, ours.exact_metrics):
        assert metrics["ndcg@10"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-4)
        assert metrics["recall@10"] == pytest.approx(theirs["recall_at_10"], abs=1e-4)
        assert metrics["precision@10"] == pytest.approx(theirs["precision_at_10"], abs=1e-4)


def test_reranking_ranks_only_what_is_given(data: Path) -> None:
    documents = [row["_id"] for row in rows(data / "corpus.jsonl")]
    given = {row["_id"]: documents[:7] for row in rows(data / "queries.jsonl")}
    assert through_mteb("colbert", local_task(data, given))["recall_at_1000"] < 0.2
    everything = dict.fromkeys(given, documents)
    reranked = through_mteb("colbert", local_task(data, everything))
    assert reranked["ndcg_at_10"] == pytest.approx(through_mteb("colbert", local_task(data))["ndcg_at_10"], abs=1e-6)


def test_they_are_what_mteb_takes_them_for() -> None:
    colbert, dense = mteb_model(load("colbert")), mteb_model(load("dense"))
    assert isinstance(colbert, SearchProtocol)
    assert not isinstance(colbert, EncoderProtocol)
    assert isinstance(dense, EncoderProtocol)
    assert dense.mteb_model_meta is not None
    assert dense.mteb_model_meta.name == "mbretrieve/mini-v3"
    assert len(dense.mteb_model_meta.revision or "") == 32


def test_a_local_model_has_no_path_in_mtebs_files(tmp_path: Path) -> None:
    load("dense").save_pretrained(tmp_path / "mine")
    meta = mteb_model(load("dense", tmp_path / "mine")).mteb_model_meta
    assert meta is not None
    assert meta.name == "local/mine"
