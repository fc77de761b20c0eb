"""Any sequence of adds, updates, deletes, reopenings and searches, against a dictionary and brute-force scores.

Vectors are small whole numbers, so scores are exact and ties are real: the order must be the same too.
"""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.index import DenseIndex, Entry, MultiVectorIndex, merging, open_index
from mbretrieve.index.words import tokenize

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
    index_class: ClassVar[type[MultiVectorIndex] | type[DenseIndex]]
    rows: ClassVar[st.SearchStrategy[list[tuple[int, ...]]]]

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(merging, "FAN", 3)  # so that a few commits already merge
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
        bad.vectors[0][0, 0] = np.nan  # type: ignore[index]
        with self.index.writer() as writer:
            writer.add([good])
            with pytest.raises(DataError, match="NaN"):
                writer.add([self.draw_entry(data, "other")[0], bad])
        self.model[ids[0]] = stored

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
        found = self.index.search(self.as_queries(drawn), k, where=where[0], ids=ids)
        named = self.index.score(self.as_queries(drawn), [list(self.model)] * len(drawn))
        for query, matches, scored in zip(drawn, found, named, strict=True):
            best: dict[str, tuple[float, int]] = {}
            for id, stored in self.model.items():
                scores = [self.score(query, window) for window in stored.windows]
                best[id] = max(scores), int(np.argmax(scores))
            assert {m.id: (m.score, m.window) for m in scored} == best
            assert all(m.span == self.model[m.id].spans[m.window] for m in scored)
            passing = [
                id for id, stored in self.model.items() if where[1](stored.metadata) and (ids is None or id in ids)
            ]
            expected = sorted((-best[id][0], id) for id in passing)[:k]
            assert [(-m.score, m.id) for m in matches] == expected
            assert all(m.window == best[m.id][1] for m in matches)

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

    def as_queries(self, rows: list[NDArray[Any]]) -> list[NDArray[Any]] | NDArray[Any]:
        return rows


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


FEW = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestMultiVector = MultiVectorMachine.TestCase
TestMultiVector.settings = FEW
TestDense = DenseMachine.TestCase
TestDense.settings = FEW
