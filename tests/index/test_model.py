"""Any sequence of adds, updates, deletes, reopenings and searches, against a dictionary and brute-force scores.

Vectors are small whole numbers, so scores are exact and ties are real: the order must be the same too. In a packed
index scores are those of the vectors as they are kept; and since a codebook is trained on all there is, of which no two
hundred differ, these are near the vectors that came.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.index import AnyIndex, DenseIndex, Entry, Match, MultiVectorIndex, open_index
from mbretrieve.index.words import tokenize
from tests.index.packed import ALL, held, score, tiny

DIM = 2
MEMORY = Path("/dev/shm")  # thousands of commits; a disk would take its time for each
IDS = st.sampled_from([f"d{i}" for i in range(8)] + ["é/ü::x", 'it\'s "q"'])
SOURCES = st.sampled_from([None, "a.py", "b.py"])
TEXTS = st.sampled_from(["", "parse arguments", "JsonParser x", "日本 x", "zeta"])
METADATA = st.fixed_dictionaries(
    {}, optional={"n": st.integers(0, 3), "lang": st.sampled_from(["en", "fr"]), "ok": st.booleans()}
)
ROW = st.tuples(*[st.integers(-3, 3)] * DIM)
WHERE: list[tuple[Any, Any]] = [
    (None, lambda m: True),
    ({"lang": "en"}, lambda m: m.get("lang") == "en"),
    ({"n": {"gte": 1, "lt": 3}}, lambda m: "n" in m and 1 <= m["n"] < 3),
    ({"n": [0, 3], "lang": ["fr", "en"]}, lambda m: m.get("n") in (0, 3) and "lang" in m),
    ({"ok": True}, lambda m: m.get("ok") is True),
    ({"lang": {"not_glob": "f*"}}, lambda m: m.get("lang") == "en"),
]


@dataclass
class Stored:
    windows: list[NDArray[Any]]
    spans: list[tuple[int, int]]
    text: str
    metadata: dict[str, Any]
    source: str | None
    hash: str


class Machine(RuleBasedStateMachine):
    index_class: ClassVar[type[AnyIndex]]
    rows: ClassVar[st.SearchStrategy[list[tuple[int, ...]]]]

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        tiny(self.patch, EXACT_TOKENS=1 << 17)  # so that a few commits already merge, and nothing is packed
        self.path = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None)) / "index"
        self.model: dict[str, Stored] = {}
        self.hashes = 0

    @initialize()
    def create(self) -> None:
        self.index = self.index_class.create(self.path, DIM, {"name": "test"})

    def teardown(self) -> None:
        assert self.index.verify() == []
        self.index.close()
        shutil.rmtree(self.path.parent)
        self.patch.undo()

    def score(self, query: NDArray[Any], window: NDArray[Any]) -> float:
        raise AssertionError

    def draw_entry(self, data: st.DataObject, id: str) -> tuple[Entry, Stored]:
        text = data.draw(TEXTS)
        windows = [np.array(rows, np.float32) for rows in data.draw(st.lists(self.rows, min_size=1, max_size=3))]
        spans = [(0, len(text)) if i == 0 else (len(text) // 2, len(text)) for i in range(len(windows))]
        self.hashes += 1
        stored = Stored(windows, spans, text, data.draw(METADATA), data.draw(SOURCES), f"h{self.hashes}")
        entry = Entry(id, windows, spans, text, "ctx", stored.metadata, stored.source, stored.hash)
        return entry, stored

    @rule(data=st.data(), ids=st.lists(IDS, min_size=1, max_size=4, unique=True))
    def add(self, data: st.DataObject, ids: list[str]) -> None:
        drawn = {id: self.draw_entry(data, id) for id in ids}
        with self.index.writer() as writer:
            writer.add([entry for entry, _ in drawn.values()])
        self.model |= {id: stored for id, (_, stored) in drawn.items()}

    @rule(data=st.data(), id=IDS, metadata=METADATA, source=SOURCES)
    def add_same_in_the_place_of_a_deleted_one(
        self, data: st.DataObject, id: str, metadata: dict[str, Any], source: str | None
    ) -> None:
        if not self.model:
            return
        other = data.draw(st.sampled_from(sorted(self.model)))
        stored = self.model[other]
        with self.index.writer() as writer:
            if data.draw(st.booleans()):
                assert writer.delete([other]) == 1
                del self.model[other]
            assert writer.known([stored.hash, "none", ""]) == {stored.hash}
            writer.add_same(id, stored.hash, stored.text, "ctx", metadata, source)
        self.model[id] = Stored(stored.windows, stored.spans, stored.text, metadata, source, stored.hash)

    @rule(ids=st.lists(IDS, max_size=5))
    def delete(self, ids: list[str]) -> None:
        assert self.index.delete(ids) == len(set(ids) & set(self.model))
        for id in ids:
            self.model.pop(id, None)

    @rule(source=SOURCES.filter(bool))
    def delete_source(self, source: str) -> None:
        gone = {id for id, stored in self.model.items() if stored.source == source}
        assert self.index.source_ids(source) == gone
        with self.index.writer() as writer:
            writer.set_source(source, {"n": 1})
            assert writer.delete_source(source) == len(gone)
        self.model = {id: stored for id, stored in self.model.items() if id not in gone}
        assert source not in self.index.sources()

    @rule(data=st.data(), id=IDS)
    def what_is_not_committed_leaves_no_trace(self, data: st.DataObject, id: str) -> None:
        entry, _ = self.draw_entry(data, id)
        with contextlib.suppress(ZeroDivisionError), self.index.writer() as writer:
            writer.add([entry])
            writer.delete(list(self.model))
            raise ZeroDivisionError

    @rule(data=st.data(), ids=st.lists(IDS, min_size=2, max_size=3, unique=True))
    def a_refused_batch_leaves_the_transaction_as_it_was(self, data: st.DataObject, ids: list[str]) -> None:
        good, stored = self.draw_entry(data, ids[0])
        bad, _ = self.draw_entry(data, ids[1])
        self.spoil(bad)
        with self.index.writer() as writer:
            writer.add([good])
            with pytest.raises(DataError, match="NaN"):
                writer.add([self.draw_entry(data, "other")[0], bad])
        self.model[ids[0]] = stored

    @rule(retrain=st.booleans())
    def compact(self, retrain: bool) -> None:
        self.index.compact(retrain=retrain)
        segments = self.index.status()["segments"]
        assert len(list((self.path / "segments").iterdir() if segments else [])) == segments

    @rule(data=st.data(), id=IDS, retrain=st.booleans())
    def compact_what_is_not_committed_yet(self, data: st.DataObject, id: str, retrain: bool) -> None:
        entry, _ = self.draw_entry(data, id)
        with self.index.writer() as writer:
            writer.add([entry])
            writer.delete([id])
            writer.compact(retrain=retrain)
        self.model.pop(id, None)

    @rule()
    def reopen(self) -> None:
        self.index.close()
        index = open_index(self.path)
        assert type(index) is self.index_class
        self.index = index

    @rule(
        queries=st.data(),
        k=st.sampled_from([1, 2, 3, 100]),
        where=st.sampled_from(WHERE),
        ids=st.none() | st.sets(IDS, max_size=5),
    )
    def search(self, queries: st.DataObject, k: int, where: tuple[Any, Any], ids: set[str] | None) -> None:
        drawn = [np.array(rows, np.float32) for rows in queries.draw(st.lists(self.rows, min_size=1, max_size=3))]
        found = self.index.search(self.as_queries(drawn), k, where=where[0], ids=ids, effort=ALL)
        named = self.index.score(self.as_queries(drawn), [list(self.model)] * len(drawn))
        for query, matches, scored in zip(drawn, found, named, strict=True):
            passing = {
                id for id, stored in self.model.items() if where[1](stored.metadata) and (ids is None or id in ids)
            }
            self.check_ranking(query, scored, set(self.model), len(self.model))
            self.check_ranking(query, matches, passing, k)

    def check_ranking(self, query: NDArray[Any], matches: list[Match], passing: set[str], k: int) -> None:
        best: dict[str, tuple[float, int]] = {}
        for id in passing:
            scores = [self.score(query, window) for window in self.model[id].windows]
            best[id] = max(scores), int(np.argmax(scores))
        expected = sorted((-best[id][0], id) for id in passing)[:k]
        assert [(-m.score, m.id) for m in matches] == expected
        assert all(m.window == best[m.id][1] for m in matches)
        assert all(m.span == self.model[m.id].spans[m.window] for m in matches)

    @rule(query=st.sampled_from(["pars", "parse", "parser", "x", "日", "ctx", "nothing"]), where=st.sampled_from(WHERE))
    def search_words(self, query: str, where: tuple[Any, Any]) -> None:
        expected = {
            id
            for id, stored in self.model.items()
            if where[1](stored.metadata)
            and any(
                word == query or ((len(query) > 2 or query == "日") and word.startswith(query))
                for word in tokenize(f"ctx {stored.text}")
            )
        }
        [matches] = self.index.lexical([query], 100, where=where[0])
        assert {match.id for match in matches} == expected
        assert matches == sorted(matches, key=lambda m: (-m.score, m.id))
        [few] = self.index.lexical([query], 2, where=where[0])
        assert few == matches[:2]

    @invariant()
    def documents_are_those_of_the_model(self) -> None:
        type(self).steps += 1
        if not hasattr(self, "index"):
            return
        found = {document.id: document for document in self.index.scan()}
        assert set(found) == set(self.model)
        assert {(d.id, d.text, tuple(d.metadata.items())) for d in self.index.documents([*self.model, "none"])} == {
            (id, stored.text, tuple(stored.metadata.items())) for id, stored in self.model.items()
        }
        status = self.index.status()
        assert status["documents"] == len(self.index) == len(self.model)
        assert self.index.known({s.hash for s in self.model.values()}) == {s.hash for s in self.model.values()}

    def as_queries(self, rows: list[NDArray[Any]]) -> Any:
        return rows

    def spoil(self, entry: Entry) -> None:
        rows: Any = entry.vectors[0]
        rows[0, 0] = np.nan


class MultiVectorMachine(Machine):
    index_class = MultiVectorIndex
    rows = st.lists(ROW, min_size=1, max_size=3)

    def score(self, query: NDArray[Any], window: NDArray[Any]) -> float:
        return float((query @ window.T).max(axis=1).sum())


class DenseMachine(Machine):
    # Along the axes a cosine is -1, 0 or 1 exactly.
    index_class = DenseIndex
    rows = st.sampled_from([[(1, 0)], [(0, 1)], [(-2, 0)], [(0, -4)]])

    def score(self, query: NDArray[Any], window: NDArray[Any]) -> float:
        return float(query[0] @ window[0] / np.linalg.norm(query) / np.linalg.norm(window))

    def as_queries(self, rows: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(rows)


class PackedMachine(MultiVectorMachine):
    """Packed after the first commit, which holds all vectors that can come; later ones come raw, and wait or are packed
    under new codebooks. No vector is lost among its neighbours: they are 1 apart."""

    bits = 2
    rows = st.lists(ROW, min_size=1, max_size=6)
    every = np.array([(x, y) for x in range(-3, 4) for y in range(-3, 4)], np.float32)
    thresholds: ClassVar[dict[str, float]] = {"DRIFT_TOKENS": 1, "MOST_CODEBOOKS": 100}

    @initialize()
    def create(self) -> None:
        tiny(self.patch, **self.thresholds)
        self.index = self.empty()
        stored = Stored([self.every], [(0, 0)], "", {}, None, "every")
        with self.index.writer() as writer:
            writer.add([Entry("every", self.as_queries([self.every]), [(0, 0)], "", "ctx", content_hash="every")])
        self.model["every"] = stored
        assert self.index.status()["packed_tokens"] == len(self.every)

    def empty(self) -> AnyIndex:
        return MultiVectorIndex.create(self.path, DIM, bits=self.bits)

    def check_ranking(self, query: NDArray[Any], matches: list[Match], passing: set[str], k: int) -> None:
        windows = held(self.path)
        assert windows.keys() == self.model.keys()
        scores = {id: score(query, windows[id]) for id in passing}
        for match in matches:
            assert match.score == pytest.approx(scores[match.id], abs=1e-4)
            assert match.score == pytest.approx(score(query, [windows[match.id][match.window]]), abs=1e-4)
            assert match.span == self.model[match.id].spans[match.window]
        assert matches == sorted(matches, key=lambda match: (-match.score, match.id))
        found = {match.id for match in matches}
        assert found <= passing
        assert len(found) == len(matches) == min(k, len(passing))
        assert all(scores[id] <= matches[-1].score + 1e-4 for id in passing - found)

    @invariant()
    def vectors_are_those_that_came(self) -> None:
        if not hasattr(self, "index"):
            return
        for id, windows in held(self.path).items():
            assert [len(window) for window in windows] == [len(window) for window in self.model[id].windows]
            for window, came in zip(windows, self.model[id].windows, strict=True):
                np.testing.assert_allclose(window, came, atol=self.loss)

    loss = 0.4


class LossyMachine(PackedMachine):
    """One bit a dimension, and codebooks kept for vectors that they were not trained on: some wait, some lose much."""

    bits = 1
    thresholds: ClassVar[dict[str, float]] = {"DRIFT_TOKENS": 10, "MOST_CODEBOOKS": 2}
    loss = 9.0


MACHINES = [MultiVectorMachine, DenseMachine, PackedMachine, LossyMachine]


def run(machine: type[Machine], examples: int, counted: Callable[[str], None]) -> None:
    some = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    machine.steps = 0
    run_state_machine_as_test(machine, settings=some)
    counted(f"{machine.steps:,} steps")


@pytest.mark.parametrize("machine", MACHINES)
def test_an_index_is_a_dictionary_with_exact_scores(machine: type[Machine], counted: Callable[[str], None]) -> None:
    run(machine, 30 if issubclass(machine, PackedMachine) else 50, counted)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_an_index_is_a_dictionary_with_exact_scores_after_many_steps(
    machine: type[Machine], counted: Callable[[str], None]
) -> None:
    run(machine, 1000, counted)
