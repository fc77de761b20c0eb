"""The runner: known answers for a hand-made searcher, real models through their index, interruption, failure."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve import retriever
from mbretrieve.errors import DataError
from mbretrieve.evaluation import runner, searchers, suites
from mbretrieve.evaluation.report import TaskResult, read_result
from mbretrieve.evaluation.rerankers import CrossEncoder
from mbretrieve.evaluation.suites import Part, Suite, Task
from mbretrieve.evaluation.trec import read_run
from mbretrieve.index import Effort, plan
from mbretrieve.models import load_encoder
from mbretrieve.scoring import maxsim
from mbretrieve.types import Document, Hit, Progress, Searcher
from tests.evaluation.sets import write_set

SAID = {"q1": "first", "q2": "second", "q3": "third", "q4": " "}


class HandMade:
    """A system whose rankings are written down."""

    name = "hand-made"
    rankings: dict[str, list[str]] = {"first": ["d2", "d1"], "second": ["q2", "d2"], "third": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.built = 0

    def describe(self, task: Task) -> dict[str, Any]:
        return {"system": "hand-made", "depth": task.depth}

    def build(self, task: Task, corpus: Sequence[Document], folder: Path, progress: Progress | None) -> Searcher:
        self.built += 1
        return self

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        return [
            [Hit(id, 1.0 / (rank + 1), "", {}, (0, 0)) for rank, id in enumerate(self.rankings[query])][:k]
            for query in queries
        ]

    def report(self) -> dict[str, Any]:
        return {"seconds": {"index": 0.5}, "bytes": 10, "documents": 3}


def hand_made_set(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": id, "text": f"text of {id}"} for id in ("d1", "d2", "q2")]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    queries = [{"_id": id, "text": text} for id, text in SAID.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judgements = ["q1\td1\t1", "q2\td2\t1", "q3\td9\t1", "q4\td1\t1", "q9\td1\t1"]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judgements]) + "\n")
    return folder


def run(task: Task, system: runner.System, output: Path, **options: Any) -> TaskResult:
    outcome = runner.run_suite(
        Suite("made", "made", (task,)), system, runner.Options(output, output / "cache", **options)
    )
    assert not outcome.failures
    return outcome.results[0]


def test_known_answers(tmp_path: Path) -> None:
    task = Task("t", (Part(str(hand_made_set(tmp_path / "set"))),))
    result = run(task, HandMade(), tmp_path / "out")
    second = 1 / np.log2(3)
    assert result.per_query == pytest.approx({"q1": second, "q2": second, "q3": 0, "q4": 0})
    assert result.metrics["ndcg@10"] == pytest.approx(second / 2)
    assert result.metrics["recall@100"] == 0.5
    assert "1 judged queries have no text and are left out" in result.notes
    assert "1 judgements name documents that are not in the corpus" in result.notes
    assert "1 queries are blank and score 0" in result.notes
    assert result.exact_metrics == {}
    dropped = run(replace(task, name="dropped", drop_own=True, depth=1), HandMade(), tmp_path / "out")
    assert dropped.per_query == {"q1": 0, "q2": 1, "q3": 0, "q4": 0}, "its own document is dropped before the cut"
    assert read_run(tmp_path / "out" / "hand-made" / "made" / "t.run")["q2"] == {"q2": 1.0, "d2": 0.5}


def test_parts_are_averaged_over_parts_not_queries(tmp_path: Path) -> None:
    parts = (
        Part(str(hand_made_set(tmp_path / "a")), name="a"),
        Part(str(hand_made_set(tmp_path / "b")), name="b"),
    )
    judged = tmp_path / "b" / "qrels" / "test.tsv"
    judged.write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\n")
    result = run(Task("t", parts), HandMade(), tmp_path / "out", exact=True)
    assert [result.parts[name]["ndcg@10"] for name in "ab"] == pytest.approx([0.5 / np.log2(3), 1.0])
    assert result.metrics["ndcg@10"] == pytest.approx((0.5 / np.log2(3) + 1) / 2)
    assert set(result.per_query) == {"a/q1", "a/q2", "a/q3", "a/q4", "b/q1"}
    assert result.exact_metrics == result.metrics, "nothing between this searcher and its exact twin"
    assert result.index == {"bytes": 20, "documents": 6, "recall@10": 1.0}
    assert result.timing["index"] == 1.0


def test_a_failed_task_does_not_stop_the_others_and_a_finished_one_is_not_run_again(tmp_path: Path) -> None:
    good = Task("good", (Part(str(hand_made_set(tmp_path / "good"))),))
    bad = Task("bad", (Part(str(hand_made_set(tmp_path / "bad"))),))
    (tmp_path / "bad" / "corpus.jsonl").write_text("{}\n")
    broken = HandMade()
    suite, options, said = Suite("made", "made", (bad, good)), {}, list[str]()
    options = runner.Options(tmp_path / "out", tmp_path / "cache", say=said.append)
    first = runner.run_suite(suite, broken, options)
    assert [result.task for result in first.results] == ["good"]
    assert "corpus.jsonl:1: expected" in first.failures["bad"]
    assert sum("corpus.jsonl:1" in line for line in said) == 1
    second = runner.run_suite(suite, broken, options)
    assert second.results == first.results
    assert broken.built == 1
    assert not list((tmp_path / "out").rglob(runner.WORK))


def test_a_bug_is_told_whole_and_does_not_stop_the_others(tmp_path: Path) -> None:
    class Buggy(HandMade):
        def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
            raise ZeroDivisionError("of all\nthings")

    said: list[str] = []
    task = Task("t", (Part(str(hand_made_set(tmp_path / "set"))),))
    options = runner.Options(tmp_path / "out", tmp_path / "cache", say=said.append)
    outcome = runner.run_suite(Suite("made", "made", (task, replace(task, name="u"))), Buggy(), options)
    assert outcome.failures == dict.fromkeys("tu", "ZeroDivisionError: of all things")
    assert "Traceback" in said[0]


def test_another_configuration_is_not_taken_for_this_one(tmp_path: Path) -> None:
    task = Task("t", (Part(str(hand_made_set(tmp_path / "set"))),))
    run(task, HandMade(), tmp_path / "out")
    other = runner.run_suite(
        Suite("made", "made", (replace(task, depth=50),)), HandMade(), runner.Options(tmp_path / "out", tmp_path)
    )
    assert "depth was 100 and is 50" in other.failures["t"]


def test_exact_that_was_not_measured_yet_is_measured(tmp_path: Path) -> None:
    task = Task("t", (Part(str(hand_made_set(tmp_path / "set"))),))
    assert not run(task, HandMade(), tmp_path / "out").exact_metrics
    assert run(task, HandMade(), tmp_path / "out", exact=True).exact_metrics
    assert run(task, HandMade(), tmp_path / "out").exact_metrics, "and kept"


# Real models


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "library")


load = partial(load_encoder, dtype="float32")


@pytest.fixture(scope="module")
def task(data: Path) -> Task:
    return suites.get(str(data)).tasks[0]


def system(**options: Any) -> searchers.EncoderSystem:
    return searchers.EncoderSystem(load, options.pop("kind", "colbert"), **options)


def test_a_model_through_the_runner_is_the_formula_by_hand(task: Task, data: Path, tmp_path: Path) -> None:
    """Encode, score every pair with scoring.maxsim, rank: what the whole of retriever, index and runner must give."""
    result = run(task, system(exact=True, cut=True), tmp_path, exact=True)
    corpus = [json.loads(line) for line in (data / "corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line) for line in (data / "queries.jsonl").read_text().splitlines()]
    model = load("colbert")

    def padded(arrays: list[Any]) -> tuple[Any, Any]:
        import torch

        tensors = [torch.from_numpy(array) for array in arrays]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(array)) for array in arrays], True) > 0
        return torch.nn.utils.rnn.pad_sequence(tensors, True), mask

    texts = [f"{row['title']} {row['text']}".strip() for row in corpus]
    vectors, mask = padded(model.encode_documents(texts))
    asked, asked_mask = padded(model.encode_queries([row["text"] for row in queries]))
    scores = maxsim(asked, vectors, asked_mask, mask).numpy()
    for number, row in enumerate(queries):
        name, partner = corpus[number]["_id"], corpus[number - 1]["_id"]
        order = [corpus[place]["_id"] for place in np.argsort(-scores[number])]
        gains = [2 if id == name else 1 if id == partner else 0 for id in order[:10]]
        dcg = sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains))
        assert result.per_query[row["_id"]] == pytest.approx(dcg / (2 + 1 / np.log2(3)), abs=1e-6), row
    assert result.exact_metrics["ndcg@10"] == pytest.approx(result.metrics["ndcg@10"], abs=1e-4)
    assert result.index["recall@10"] > 0.99
    assert result.timing["tokens_per_second"] > 0
    assert result.provenance["system"]["beyond_length"] == "cut"


@pytest.mark.parametrize("kind", ["colbert", "dense", "joint"])
def test_windows_modes_and_a_kept_index(kind: str, task: Task, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    short = partial(system, kind=kind, exact=True, document_length=192)
    semantic = run(task, short(), tmp_path, exact=True, indexes=indexes)
    hybrid = run(task, short(mode="hybrid"), tmp_path, exact=True, indexes=indexes)
    assert hybrid.metrics != semantic.metrics
    assert hybrid.timing["encode"] == semantic.timing["encode"], "one index, encoded once"
    assert hybrid.exact_metrics["ndcg@10"] == pytest.approx(hybrid.metrics["ndcg@10"], abs=1e-3)
    assert len(list(indexes.iterdir())) == 1
    assert semantic.index["windows"] > semantic.index["documents"]
    assert not hybrid.notes


def test_a_joint_model_fetches_by_one_head_and_ranks_by_the_other(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(task, depth=3)
    late = run(few, system(exact=True), tmp_path, exact=True)
    whole = run(few, system(kind="joint", exact=True), tmp_path, exact=True)
    assert whole.index["documents"] <= plan.FETCHED, "all are fetched, so that late interaction ranks them all"
    assert whole.metrics == pytest.approx(late.metrics, abs=1e-3)
    assert whole.exact_metrics == pytest.approx(late.exact_metrics, abs=1e-6)
    # What is fetched is dense search's, in the order of the tokens: of as many as are asked for, the same documents.
    monkeypatch.setattr(plan, "FETCHED", 1)
    monkeypatch.setattr(plan, "joint_effort", lambda windows, k: Effort(1, 1, k))
    dense = run(few, system(kind="dense", exact=True), tmp_path, exact=True)
    narrow = run(few, system(kind="joint", exact=True), tmp_path / "narrow", exact=True)
    for name in ("recall@10", "recall@100"):
        assert narrow.metrics[name] == dense.metrics[name]
        assert narrow.exact_metrics[name] == dense.exact_metrics[name]
    assert narrow.metrics["ndcg@10"] != dense.metrics["ndcg@10"]
    assert narrow.exact_metrics == pytest.approx(narrow.metrics, abs=1e-3)


@pytest.mark.parametrize("mode", ["semantic", "hybrid"])
def test_a_packed_index_is_held_against_the_model_s_vectors(
    mode: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "DEPTH", 20)  # so that words find documents that meaning does not
    wanted = run(task, system(mode=mode, exact=True), tmp_path, exact=True)
    monkeypatch.setattr(plan, "EXACT_TOKENS", 1000)
    result = run(task, system(mode=mode, exact=True, bits=1), tmp_path, exact=True)
    assert result.model.endswith("-1bit")
    assert result.provenance["system"]["bits"] == 1
    assert wanted.provenance["system"]["bits"] == 2
    assert result.metrics != wanted.metrics, "one bit a dimension is not enough"
    assert result.index["recall@10"] < 1 or mode == "hybrid"  # of so few documents words find the rest
    assert result.exact_metrics == wanted.exact_metrics
    assert result.index["bytes"] < wanted.index["bytes"], "packed vectors"
    assert result.index["catalogue_bytes"] > 0


def test_words_alone_are_two_systems_under_two_names(task: Task, tmp_path: Path) -> None:
    bm25, lexical = run(task, searchers.Bm25System(), tmp_path), run(task, searchers.LexicalSystem(), tmp_path)
    assert (bm25.model, lexical.model) == ("bm25", "lexical")
    assert bm25.metrics["ndcg@10"] > 0.3
    assert lexical.metrics["ndcg@10"] > 0.3
    assert bm25.metrics != lexical.metrics


def test_lengths_are_the_tasks_where_the_model_allows_them(task: Task, tmp_path: Path) -> None:
    asked = replace(task, query_length=32, document_length=1024)
    assert system().lengths(task) == searchers.Lengths(64, 512)
    assert system().lengths(asked) == searchers.Lengths(32, 512)
    assert system().lengths(replace(task, query_length=10**6)) == searchers.Lengths(8192, 512)
    assert system(query_length=40, document_length=1024).lengths(asked) == searchers.Lengths(40, 1024)
    result = run(replace(asked, document_length=64), system(), tmp_path)
    assert result.provenance["system"]["model"]["document_length"] == 64
    assert result.provenance["system"]["model"]["query_length"] == 32


def test_a_second_stage_of_our_own_over_words(task: Task, tmp_path: Path) -> None:
    model, task = load("colbert"), replace(task, depth=4)
    stages = searchers.RerankingSystem(searchers.Bm25System(), model, {"name": "mbretrieve/mini-v3"})
    result = run(task, stages, tmp_path, exact=True)
    assert result.model == "bm25+mini-v3"
    alone = run(task, searchers.Bm25System(), tmp_path)
    assert result.metrics["ndcg@10"] > alone.metrics["ndcg@10"]
    assert result.metrics["recall@10"] == alone.metrics["recall@10"], "the same documents in another order"
    assert result.exact_metrics == result.metrics


def test_a_cross_encoder(tmp_path: Path, task: Task) -> None:
    import torch
    from sentence_transformers import CrossEncoder as Library
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    assets = Path(retriever.__file__).parent / "assets" / "mini-v3"
    torch.manual_seed(0)
    config = ModernBertConfig.from_pretrained(assets, num_labels=1, num_hidden_layers=1, layer_types=["full_attention"])
    ModernBertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((assets / name).read_bytes())
    reranker = CrossEncoder(str(tmp_path / "model"))
    candidates = ["def f(): return 1", "def sort(x): return sorted(x)", ""]
    [ranked] = reranker.rerank(["sort a list"], [candidates])
    wanted = Library(str(tmp_path / "model")).predict([("sort a list", text) for text in candidates])
    assert [place for place, _ in ranked] == np.argsort(-wanted, kind="stable").tolist()
    result = run(
        replace(task, depth=5), searchers.RerankingSystem(searchers.Bm25System(), reranker, reranker.identity), tmp_path
    )
    assert result.model == "bm25+model"
    told = result.provenance["system"]["search"]["rerank"]
    assert (told["name"], told["depth"], len(told["content_hash"])) == ("model", 5, 32)
    assert str(tmp_path) not in json.dumps(result.provenance)


# Interruption


class Interrupting:
    """A loaded model that is interrupted after so many calls, and counts the texts it encoded."""

    def __init__(self, calls: int | None) -> None:
        self.calls, self.texts = calls, 0

    def __call__(self, kind: Any, name: str | None = None, **shape: Any) -> Any:
        model = load(kind, name, **shape)
        encode = model.encode_documents

        def counted(texts: Sequence[str]) -> Any:
            if self.calls is not None and self.calls <= 0:
                raise KeyboardInterrupt
            self.calls = None if self.calls is None else self.calls - 1
            self.texts += len(texts)
            return encode(texts)

        model.encode_documents = counted  # type: ignore[method-assign]
        return model


@pytest.mark.parametrize("exact", [False, True])
def test_an_interrupted_task_goes_on_and_gives_the_same(
    exact: bool, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "BATCH_DOCUMENTS", 16)
    monkeypatch.setattr(retriever, "COMMIT_SECONDS", 0.0)
    whole, first, second = Interrupting(None), Interrupting(3), Interrupting(None)
    wanted = run(task, searchers.EncoderSystem(whole, "colbert", exact=exact), tmp_path / "whole", exact=exact)
    with pytest.raises(KeyboardInterrupt):
        run(task, searchers.EncoderSystem(first, "colbert", exact=exact), tmp_path / "out", exact=exact)
    assert list((tmp_path / "out").rglob("catalog.sqlite"))
    assert not list((tmp_path / "out").rglob("*.json.partial"))
    result = run(task, searchers.EncoderSystem(second, "colbert", exact=exact), tmp_path / "out", exact=exact)
    assert first.texts
    assert first.texts + second.texts == whole.texts, "what was committed is not encoded again"
    assert result.per_query == wanted.per_query
    assert result.exact_metrics == wanted.exact_metrics
    assert result.notes == wanted.notes == ()
    assert not list((tmp_path / "out").rglob(runner.WORK))


def test_what_is_left_of_another_corpus_is_not_gone_on_with(
    task: Task, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "BATCH_DOCUMENTS", 16)
    monkeypatch.setattr(retriever, "COMMIT_SECONDS", 0.0)
    other = write_set(tmp_path / "library")
    lines = (other / "corpus.jsonl").read_text().splitlines(keepends=True)
    (other / "corpus.jsonl").write_text("".join([*lines, json.dumps({"_id": "zz", "text": lines[0]}) + "\n"]))
    grown = replace(task, parts=(Part(str(other)),))
    with pytest.raises(KeyboardInterrupt):
        run(grown, searchers.EncoderSystem(Interrupting(3), "dense"), tmp_path / "out")
    result = run(task, searchers.EncoderSystem(load, "dense"), tmp_path / "out")
    assert result.index["documents"] == len(lines)
    assert result == read_result(tmp_path / "out" / "mini-v3-dense" / "made" / "library.json")


def test_a_document_that_an_index_refuses_is_a_failure_with_its_id(tmp_path: Path) -> None:
    folder = hand_made_set(tmp_path / "set")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "half", "text": "\\ud800"}\n')
    task = Task("t", (Part(str(folder)),))
    outcome = runner.run_suite(
        Suite("made", "made", (task,)), searchers.LexicalSystem(), runner.Options(tmp_path / "out", tmp_path)
    )
    assert "'half'" in outcome.failures["t"]


def test_without_vectors_there_is_no_exact_twin(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exact=True"):
        runner.run_task(Suite("s", "s", (task,)), task, system(), runner.Options(tmp_path, tmp_path, exact=True))
    with pytest.raises(DataError, match="no task 'x'"):
        suites.get(task.parts[0].folder, ("x",))
