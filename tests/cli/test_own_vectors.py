"""Indexes made of one's own vectors, with no model: what the command line says of them, and what it does not do."""

import json
from pathlib import Path

import numpy as np
import pytest

from mbretrieve.index import DenseIndex, Entry, JointIndex, MultiVectorIndex, plan
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
    assert f"lists:      none of tokens; vectors are found 1,000 {words}, 50 by comparing every one\n" in shown
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
