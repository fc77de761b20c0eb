"""Indexes made of one's own vectors, with no model: what the command line says of them, and what it does not do."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.index import DenseIndex, Entry, JointIndex, MultiVectorIndex, open_index, plan
from mbretrieve.types import JointVectors
from tests.cli.conftest import Command, one_line

DIM = 16


def rows(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def late(tmp_path: Path) -> Path:
    with MultiVectorIndex.create(tmp_path / "late", DIM, bits=4) as index:
        index.add([f"d{i}" for i in range(30)], [rows(5, i) for i in range(30)])
    return tmp_path / "late"


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    with DenseIndex.create(tmp_path / "dense", DIM, {"name": "mine"}) as index:
        index.add([f"d{i}" for i in range(300)], rows(300))
    return tmp_path / "dense"


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    with JointIndex.create(tmp_path / "joint", DIM, pooled_dim=3) as index:
        index.add([f"d{i}" for i in range(30)], [JointVectors(rows(5, i), np.eye(3)[i % 3]) for i in range(30)])
    return tmp_path / "joint"


def test_status_shows_all_it_can(late: Path, dense: Path, joint: Path, mbretrieve: Command) -> None:
    shown = mbretrieve("status", "--index", late)
    assert shown.status == 0, shown
    assert "documents:  30\n" in shown.out
    assert "model:      none: made of one's own vectors (colbert, 16 dimensions)\n" in shown.out
    record = json.loads(mbretrieve("status", "--index", late, "--json").out)
    assert (record["model"], record["kind"], record["dim"], record["tokens"]) == (None, "colbert", 16, 150)
    assert "mine (dense, 16 dimensions)" in mbretrieve("status", "--index", dense).out
    assert "own vectors (joint, 16 dimensions a token, 3 a text)" in mbretrieve("status", "--index", joint).out


def test_bits_are_those_of_now_and_those_that_will_be(late: Path, dense: Path, mbretrieve: Command) -> None:
    record = json.loads(mbretrieve("status", "--index", late, "--json").out)
    assert (record["bits"], record["bits_when_packed"]) == (None, 4)
    shown = mbretrieve("status", "--index", late).out
    assert "bits:       16 a dimension: vectors as they came; 4 once they are packed, of more than 131,072" in shown
    assert "lists:      none: every vector is compared" in shown
    assert "bits:       32 a dimension" in mbretrieve("status", "--index", dense).out


def test_what_waits_to_be_packed_is_told(tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "EXACT_TOKENS", 400)
    place = tmp_path / "packed"
    with MultiVectorIndex.create(place, DIM) as index:
        index.add([f"d{i}" for i in range(100)], [rows(5, i) for i in range(100)])
        index.add(["more"], [rows(7)])
    assert "bits:       2 a dimension; 16 of 7 tokens that are not packed" in mbretrieve("status", "--index", place).out


@pytest.mark.parametrize(
    ("search", "words"), [("graph", "along a graph (HNSW)"), ("lists", "by inverted lists (IVF-PQ)")]
)
def test_status_says_how_dense_vectors_are_found(
    tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch, search: plan.Search, words: str
) -> None:
    flat, *others = plan.DENSE_TABLE
    row = next(row for row in others if row.search == search)
    monkeypatch.setattr(plan, "DENSE_TABLE", (flat._replace(vectors=100), row._replace(vectors=1 << 62)))
    place = tmp_path / "dense"
    with DenseIndex.create(place, DIM) as index:
        index.add([f"d{i}" for i in range(1000)], rows(1000))
        index.add([f"e{i}" for i in range(50)], rows(50, 1))
    shown = mbretrieve("status", "--index", place).out
    assert f"lists:      none of tokens; vectors found: 1,000 {words}, 50 by comparing every one\n" in shown
    record = json.loads(mbretrieve("status", "--index", place, "--json").out)
    assert record["searched"] == {"flat": 50, "graph": 0, "lists": 0} | {search: 1000}


def test_a_question_in_words_is_one_line(late: Path, dense: Path, joint: Path, mbretrieve: Command) -> None:
    for place in (late, dense, joint):
        for mode in ("hybrid", "semantic"):
            said = one_line(mbretrieve("search", "a question", "--index", place, "--mode", mode))
            assert "made of one's own vectors" in said
        for option in (("--model", "mbretrieve/mini-v3"), ("--kind", "colbert")):
            assert "own vectors" in one_line(mbretrieve("search", "a question", "--index", place, *option))
        assert "own vectors" in one_line(mbretrieve("index", place.parent, "--index", place))


def test_by_words_it_answers(tmp_path: Path, mbretrieve: Command) -> None:
    place = tmp_path / "late"
    with MultiVectorIndex.create(place, DIM) as index, index.writer() as writer:
        text = "the keeper of the lighthouse"
        writer.add([Entry("a", [rows(3)], [(0, len(text))], text), Entry("b", [rows(4)], [(0, 3)], "sea")])
    found = mbretrieve("search", "lighthouse", "--index", place, "--mode", "lexical", "--json")
    assert [hit["id"] for hit in json.loads(found.out)] == ["a"]
    assert "keeper" in mbretrieve("search", "lighthouse", "--index", place, "--mode", "lexical").out


def write_queries(path: Path, queries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    return path


def bench(mbretrieve: Command, place: Path, queries: list[dict[str, Any]], *options: str) -> dict[str, Any]:
    out = place.parent / "out.json"
    asked = write_queries(place.parent / "queries.jsonl", queries)
    done = mbretrieve("bench", "index", "--index", place, "--queries", asked, "--json", out, *options)
    assert done.status == 0, done
    record: dict[str, Any] = json.loads(out.read_text("utf-8"))
    assert record["default"] in record["settings"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return record


@pytest.mark.parametrize("few_tokens", [True, False])
def test_bench_takes_queries_as_vectors(
    tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch, few_tokens: bool
) -> None:
    monkeypatch.setattr(plan, "EXACT_TOKENS", 5000 if few_tokens else 400)
    place = tmp_path / "late"
    with MultiVectorIndex.create(place, DIM, bits=8) as index:
        index.add([f"d{i}" for i in range(300)], [rows(5, i) for i in range(300)])
    record = bench(mbretrieve, place, [{"vectors": rows(5, i).tolist()} for i in range(3)])
    assert (record["queries"], record["tokens"], record["documents"]) == (3, 1500, 300)
    assert len(record["settings"]) == (1 if few_tokens else 9)
    assert record["default"]["recall@10"] > 0.9
    assert record["build"]["tokens_per_second"] > 0


@pytest.mark.parametrize(("search", "knobs"), [("graph", {"tokens"}), ("lists", {"probes", "tokens"})])
def test_a_dense_index_has_a_curve_and_a_build(
    tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch, search: plan.Search, knobs: set[str]
) -> None:
    """The build is a process of its own, with the table as it is: only of so many vectors there is a graph there."""
    flat, *others = plan.DENSE_TABLE
    row = next(row for row in others if row.search == search)
    monkeypatch.setattr(plan, "DENSE_TABLE", (flat._replace(vectors=100), row._replace(vectors=1 << 62)))
    place, vectors = tmp_path / "dense", rows(17_000 if search == "graph" else 3_000)
    with DenseIndex.create(place, DIM) as index:
        index.add([f"d{i}" for i in range(len(vectors))], vectors)
    record = bench(mbretrieve, place, [{"vector": rows(1, 7)[0].tolist()}, {"vectors": rows(1, 8).tolist()}])
    assert record["searched"] == {"flat": 0, "graph": 0, "lists": 0} | {search: len(vectors)}
    turned = {part for part in ("probes", "tokens") if len({setting[part] for setting in record["settings"]}) > 1}
    assert turned == knobs
    first = "probes" if search == "lists" else "tokens"
    assert len({setting[first] for setting in record["settings"]}) == 5
    assert all(setting["tokens"] == setting["rescore"] for setting in record["settings"])
    with open_index(place) as index:
        assert record["default"]["effort@100"] == asdict(index.effort(100))
    assert record["build"]["tokens"] == len(vectors) - 1
    assert ("with a graph (HNSW) of 16,999" in record["build"]["what"]) == (search == "graph")
    assert record["build"]["peak_memory_bytes"] > 0


def test_a_joint_index_has_a_curve_over_what_it_fetches(tmp_path: Path, mbretrieve: Command) -> None:
    place = tmp_path / "joint"
    pooled = rows(400, 99)
    with JointIndex.create(place, DIM, pooled_dim=DIM) as index:
        index.add([f"d{i}" for i in range(400)], [JointVectors(rows(5, i), pooled[i]) for i in range(400)])
    query = {"vectors": rows(5, 3).tolist(), "vector": pooled[3].tolist()}
    record = bench(mbretrieve, place, [query])
    by_rescore = sorted(record["settings"], key=lambda setting: setting["rescore"])
    assert [setting["rescore"] for setting in by_rescore] == [25, 50, 100, 200, 400]
    assert by_rescore[-1]["recall@10"] == 1, "all are fetched"
    assert by_rescore[0]["recall@10"] < 1
    assert record["build"]["tokens"] == 1995


def test_what_cannot_be_built_again_says_why(tmp_path: Path, mbretrieve: Command) -> None:
    place = tmp_path / "late"
    with MultiVectorIndex.create(place, DIM) as index:
        index.add(["only"], [rows(5)])
    record = bench(mbretrieve, place, [{"vectors": rows(5).tolist()}])
    assert record["build"] is None
    assert "nothing is written again" in record["not_built"]


@pytest.mark.parametrize(
    ("kind", "query", "said"),
    [
        ("late", {"text": "a question"}, 'one\'s own vectors: expected "vectors", rows of 16 numbers'),
        ("late", {"vectors": [[1.0] * 4]}, '(of 1 x 4) do not fit this index: expected "vectors", rows of 16 numbers'),
        ("late", {"vectors": [[1.0] * 16], "vector": [1.0] * 3}, "do not fit"),
        ("dense", {"vectors": [[1.0] * 16] * 2}, '(of 2 x 16) do not fit this index: expected "vector", 16 numbers'),
        ("joint", {"vectors": [[1.0] * 16]}, '"vectors", rows of 16 numbers, and "vector", 3 numbers'),
        ("joint", {"vectors": [[1.0] * 16], "vector": [1.0] * 4}, "do not fit"),
    ],
)
def test_queries_that_do_not_fit_are_one_line(
    late: Path, dense: Path, joint: Path, mbretrieve: Command, kind: str, query: dict[str, Any], said: str
) -> None:
    place = {"late": late, "dense": dense, "joint": joint}[kind]
    asked = write_queries(place.parent / "queries.jsonl", [query])
    assert said in one_line(mbretrieve("bench", "index", "--index", place, "--queries", asked))


def test_without_a_model_exact_search_is_over_what_is_stored(late: Path, mbretrieve: Command) -> None:
    asked = write_queries(late.parent / "queries.jsonl", [{"vectors": rows(5).tolist()}])
    arguments = ("bench", "index", "--index", late, "--queries", asked, "--exact-from", "model")
    assert "made of one's own vectors" in one_line(mbretrieve(*arguments))
