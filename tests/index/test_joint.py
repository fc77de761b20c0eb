"""A joint index: what is fetched are the best by the dense vectors, what is ranked has its score of late interaction,
whatever was added, changed, deleted, packed, compacted, killed or damaged."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from numpy.typing import NDArray

from mbretrieve.errors import DataError, IndexFormatError
from mbretrieve.index import (
    AnyIndex,
    DenseIndex,
    Effort,
    Entry,
    JointIndex,
    MultiVectorIndex,
    Writer,
    derived,
    files,
    graph,
    open_index,
    plan,
    salvage,
)
from mbretrieve.types import JointVectors
from tests.index import test_model
from tests.index.faults import dying_at, flip, forget_parity, in_child, packed_entry
from tests.index.packed import ALL, held, tiny
from tests.index.test_dense_ann import patch_table
from tests.index.test_packed import DIM, assert_best, documents, queries, truth
from tests.index.test_packed_reliability import count_steps
from tests.index.test_reliability import path

__all__ = ["path"]  # the fixture

Floats = NDArray[np.float32]

WIDTH = 5  # of the dense vectors
DEPTHS = (1, 3, 10, 40)
MIXING = np.random.default_rng(7).standard_normal((DIM, WIDTH)).astype(np.float32)


def to_depth(depth: int) -> Effort:
    """Look everywhere for the best ``depth`` documents by the dense vectors, and rank these."""
    return replace(ALL, rescore=depth)


def both(rows: Floats) -> JointVectors:
    """A dense vector beside tokens' that follows from them, as of one model, but ranks otherwise than they do."""
    return JointVectors(rows, rows.sum(axis=0) @ MIXING[: rows.shape[1]])


def joint(entry: Entry) -> Entry:
    return replace(entry, vectors=[both(np.asarray(rows)) for rows in entry.vectors])


def nearest(query: JointVectors, entries: list[Entry], depth: int) -> set[str]:
    """The best ``depth`` documents by the cosine of their best window."""

    def cosine(row: Floats) -> float:
        return float(row @ query.pooled / np.linalg.norm(row) / np.linalg.norm(query.pooled))

    scores = {entry.id: max(cosine(window.pooled) for window in entry.vectors) for entry in entries}  # type: ignore[union-attr]
    return set(sorted(scores, key=lambda id: -scores[id])[:depth])


def filled(path: Path, entries: list[Entry], batch: int = 60) -> JointIndex:
    """An index of several commits, like that of ``test_packed``: packed segments and raw ones."""
    index = JointIndex.create(path, DIM, pooled_dim=WIDTH)
    for first in range(0, len(entries), batch):
        with index.writer() as writer:
            writer.add(entries[first : first + batch])
    return index


def test_fetched_by_the_dense_vectors_ranked_by_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300, DRIFT_TOKENS=600, PACK_TOKENS=1000)
    entries = [joint(entry) for entry in documents(350)]
    asked = [both(query) for query in queries(12)]
    with filled(tmp_path / "index", entries) as index:
        status = index.status()
        assert 0 < status["packed_tokens"] < status["tokens"]
        assert status["searched"] == {"flat": status["windows"], "graph": 0, "lists": 0}
        windows = held(index.path)
        # Nothing left out: late interaction over every document, by brute force.
        for k in (1, 10, 1000):
            for effort, exact in ((to_depth(350), False), (None, True)):
                for query, matches in zip(asked, index.search(asked, k, effort=effort, exact=exact), strict=True):
                    assert_best(matches, truth(query.tokens, windows), k)
        even = [entry for entry in entries if entry.metadata["even"]]
        for depth in DEPTHS:
            for where, passing in ((None, entries), ({"even": True}, even)):
                found = index.search(asked, 1000, where=where, effort=to_depth(depth))
                for query, matches in zip(asked, found, strict=True):
                    wanted = nearest(query, passing, depth)
                    assert {match.id for match in matches} == wanted
                    assert_best(matches, truth(query.tokens, {id: windows[id] for id in wanted}), depth)
        named = index.score(asked, [["d0003", "d0100", "none"]] * len(asked))
        for query, matches in zip(asked, named, strict=True):
            assert_best(matches, truth(query.tokens, {id: windows[id] for id in ("d0003", "d0100")}), 2)
        # As many as are asked for are fetched, and what is fetched by default is in the table.
        assert index.effort(10).rescore == plan.FETCHED
        assert [len(matches) for matches in index.search(asked, 300)] == [300] * len(asked)


@pytest.mark.parametrize("search", ["graph", "lists"])
def test_many_windows_are_found_along_a_graph_or_by_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: plan.Search
) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300, DRIFT=100.0, PACK_TOKENS=1 << 20)
    patch_table(monkeypatch, search)
    entries = [joint(entry) for entry in documents(1500)]
    asked = [both(query) for query in queries(20)]
    with filled(tmp_path / "index", entries, batch=400) as index:
        index.compact()
        status = index.status()
        assert status["searched"] == {"flat": 0, "graph": 0, "lists": 0} | {search: status["windows"]}
        windows = held(index.path)
        found = index.search(asked, 1000, effort=Effort(probes=64, tokens=256, rescore=50))
        shares = []
        for query, matches in zip(asked, found, strict=True):
            wanted = nearest(query, entries, 50)
            ids = {match.id for match in matches}
            assert_best(matches, truth(query.tokens, {id: windows[id] for id in ids}), 50)
            shares.append(len(ids & wanted) / 50)
        assert np.mean(shares) > 0.9
        assert index.verify() == []
        index.delete([f"d{i:04}" for i in range(0, 1500, 2)])
        index.compact()
        left = [entry for entry in entries if int(entry.id[1:]) % 2]
        for query, matches in zip(asked, index.search(asked, 1000, effort=to_depth(800)), strict=True):
            assert_best(matches, truth(query.tokens, held(index.path)), 1000)
            assert len(matches) == len(left)


class JointMachine(test_model.PackedMachine):
    """Tokens are packed, and more than three windows are found along a graph. Looking everywhere is brute force by the
    tokens; and to any depth what comes back are the best by the dense vectors, which follow from the tokens."""

    index_class = JointIndex
    table: ClassVar[tuple[plan.DenseRow, ...]] = (
        plan.DenseRow(3, "flat", Effort(1, 1, 1)),
        plan.DenseRow(1 << 62, "graph", ALL),
    )

    def empty(self) -> AnyIndex:
        self.patch.setattr(plan, "DENSE_TABLE", self.table)
        self.patch.setattr(graph, "WALKED", 0)
        self.patch.setattr(derived, "FETCHED", 0)
        return JointIndex.create(self.path, test_model.DIM, bits=self.bits, pooled_dim=WIDTH)

    @initialize()
    def create(self) -> None:
        super().create()

    def draw_entry(self, data: st.DataObject, id: str) -> tuple[Entry, test_model.Stored]:
        entry, stored = super().draw_entry(data, id)
        return replace(entry, vectors=self.as_queries(stored.windows)), stored

    def as_queries(self, rows: list[NDArray[Any]]) -> Any:
        return [JointVectors(one, pooled(one)) for one in rows]

    def spoil(self, entry: Entry) -> None:
        vectors: Any = entry.vectors[0]
        vectors.pooled[0] = np.nan

    @rule(data=st.data(), depth=st.sampled_from([1, 2, 5]), where=st.sampled_from(test_model.WHERE))
    def fetch(self, data: st.DataObject, depth: int, where: tuple[Any, Any]) -> None:
        query = np.array(data.draw(self.rows), np.float32)
        [matches] = self.index.search(self.as_queries([query]), 1000, where=where[0], effort=to_depth(depth))
        passing = {id: stored for id, stored in self.model.items() if where[1](stored.metadata)}
        self.check_ranking(query, matches, {match.id for match in matches}, 1000)
        assert {match.id for match in matches} <= passing.keys()
        towards = pooled(query) / np.linalg.norm(pooled(query))
        # Documents of one text are fetched together: the depth counts texts.
        scores = {
            stored.hash: max(float(towards @ pooled(w) / np.linalg.norm(pooled(w))) for w in stored.windows)
            for stored in passing.values()
        }
        last = sorted(scores.values(), reverse=True)[min(depth, len(scores)) - 1] if scores else 0.0
        found = {passing[match.id].hash for match in matches}
        assert all(scores[hash] >= last - 1e-5 for hash in found)
        assert all(hash in found for hash, score in scores.items() if score > last + 1e-5)
        assert len(matches) == sum(stored.hash in found for stored in passing.values())


def pooled(rows: NDArray[Any]) -> Floats:
    """A dense vector of a few rows of small whole numbers; never zero."""
    x, y = rows.sum(axis=0)
    return np.array([x, y, x * y, len(rows), 1], np.float32)


def test_a_joint_index_is_a_dictionary(counted: Callable[[str], None]) -> None:
    test_model.run(JointMachine, 25, counted)


@pytest.mark.slow
def test_a_joint_index_is_a_dictionary_after_many_steps(counted: Callable[[str], None]) -> None:
    test_model.run(JointMachine, 1000, counted)


# Kills and damage


def entries_for(first: int, last: int, value: int) -> list[Entry]:
    return [joint(packed_entry(i, i + value, "t.py", tokens=12)) for i in range(first, last)]


def make_joint(path: Path) -> None:
    with JointIndex.create(path, 4, {"name": "m"}, pooled_dim=WIDTH) as index:
        for first in range(0, 12, 4):
            with index.writer() as writer:
                writer.add(entries_for(first, first + 4, 0))
        index.delete(["d1"])


def change(writer: Writer) -> None:
    writer.add(entries_for(2, 6, 200))
    writer.delete(["d7"])


def work(path: Path, commits: int = 3) -> None:
    with open_index(path) as index, index.writer() as writer:
        for commit in (change, Writer.compact, lambda writer: writer.compact(retrain=True))[:commits]:
            commit(writer)  # type: ignore[operator]
            writer.commit()


def state(path: Path) -> Any:
    with open_index(path) as index:
        assert index.verify() == []
        asked = [both(np.eye(4, dtype=np.float32)), both(-np.ones((1, 4), np.float32))]
        return list(index.scan()), index.search(asked, 100, effort=to_depth(3)), index.search(asked, 100)


def test_killed_at_some_steps_it_holds_the_last_commit_or_the_one_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch)
    patch_table(monkeypatch, "lists", flat=3)
    origin = path.with_name("origin")
    make_joint(origin)
    states = []
    for commits in range(4):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(origin, path)
        work(path, commits)
        states.append(state(path))
    shutil.rmtree(path)
    shutil.copytree(origin, path)
    steps = count_steps(lambda: work(path))
    for step in np.unique(np.linspace(1, steps, 16).astype(int)).tolist():
        shutil.rmtree(path)
        shutil.copytree(origin, path)
        assert in_child(dying_at(step, lambda: work(path), effects=True)) == -signal.SIGKILL
        assert state(path) in states, f"step {step}: a commit was lost, or half of one is there"
        with open_index(path) as index:
            index.add(["more"], [both(np.eye(4, dtype=np.float32))])
            assert index.verify() == []


# A block holds the dense vectors of twelve windows, and the tokens of less than two.
@pytest.mark.parametrize(
    ("name", "lost"), [("vectors.npy", 7), ("tokens.npy", 2), ("codes.npy", 2), ("tokens.faiss", 0), ("levels.npy", 0)]
)
def test_a_flipped_byte_that_parity_does_not_restore_is_named_and_repaired(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lost: int
) -> None:
    monkeypatch.setattr(files, "BLOCK", 256)
    monkeypatch.setattr(salvage, "BLOCK", 256)
    tiny(monkeypatch)
    patch_table(monkeypatch, "graph" if name == "levels.npy" else "lists", flat=3)
    make_joint(path)
    with open_index(path) as index:
        if name == "tokens.npy":
            index.add(["raw"], [both(np.eye(4, dtype=np.float32))])
        before = {document.id for document in index.scan()}
        asked = [both(np.eye(4, dtype=np.float32))]
        scores = {match.id: match.score for match in index.search(asked, 100)[0]}
    flip(max(path.glob(f"segments/*/{name}"), key=os.path.getsize), -1)
    forget_parity(path)
    with open_index(path) as index:
        assert any(name in line for line in index.verify())
        if name == "vectors.npy":
            with pytest.raises(IndexFormatError, match=r"vectors\.npy"):
                index.search(asked, 100, effort=to_depth(1))
        assert index.repair() != []
        assert index.verify() == []
        left = {match.id: match.score for match in index.search(asked, 100)[0]}
        assert left.keys() == {document.id for document in index.scan()}
        assert 0 <= len(before) - len(left) <= lost
        assert left == pytest.approx({id: scores[id] for id in left}, abs=1e-4)
        index.add(["more"], asked)
        index.compact(retrain=True)
        assert index.verify() == []


# What is refused, and what stays as it was

ROWS = np.ones((2, 4), np.float32)
BAD: dict[str, tuple[Any, str]] = {
    "one head": (ROWS, "window 0 of document 'bad' has vectors of one head"),
    "pooled dim": (JointVectors(ROWS, np.ones(3, np.float32)), r"pooled vector of window 0 .* has shape \(1, 3\)"),
    "pooled NaN": (JointVectors(ROWS, np.full(WIDTH, np.nan, np.float32)), "pooled vector .* holds NaN"),
    "pooled zero": (JointVectors(ROWS, np.zeros(WIDTH, np.float32)), "pooled vector .* is a zero vector"),
    "token dim": (JointVectors(ROWS[:, :2], np.ones(WIDTH, np.float32)), r"'bad' has shape \(2, 2\)"),
    "no tokens": (JointVectors(ROWS[:0], np.ones(WIDTH, np.float32)), "'bad' has no tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_is_refused_by_name_and_the_rest_untouched(tmp_path: Path, name: str) -> None:
    vectors, message = BAD[name]
    with JointIndex.create(tmp_path / "index", 4, pooled_dim=WIDTH) as index:
        good = both(ROWS)
        index.add(["a"], [good])
        with index.writer() as writer, pytest.raises(DataError, match=message):
            writer.add([Entry("good", [good], [(0, 0)]), Entry("bad", [vectors], [(0, 0)])])
        assert [document.id for document in index.scan()] == ["a"]
        if name != "pooled zero":
            with pytest.raises(DataError, match="query 0"):
                index.search([vectors], 3)


def test_other_indexes_take_no_joint_vectors_and_are_kept_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch)
    with pytest.raises(ValueError, match="pooled_dim 0"):
        JointIndex.create(tmp_path / "none", 4)
    with pytest.raises(ValueError, match="pooled_dim 3"):
        MultiVectorIndex.create(tmp_path / "none", 4, pooled_dim=3)
    for kind in (MultiVectorIndex, DenseIndex):
        with kind.create(tmp_path / kind.kind, 4) as index, pytest.raises(DataError, match="'a'"):
            index.add(["a"], [both(ROWS)])
    with MultiVectorIndex.create(tmp_path / "late", 4) as late:
        late.add(["a"], [np.random.default_rng(0).standard_normal((64, 4))])
        written = {file.name for file in late.path.glob("segments/*/*")}
    assert written == {"codes.npy", "assignments.npy", "offsets.npy", "windows.npy", "tokens.faiss"}
    make_joint(tmp_path / "joint")
    with open_index(tmp_path / "joint") as index:
        index.compact()
        written = {file.name for file in index.path.glob("segments/*/*")}
    assert written == {"codes.npy", "assignments.npy", "offsets.npy", "windows.npy", "vectors.npy"}
