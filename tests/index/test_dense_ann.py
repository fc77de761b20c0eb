"""Large dense segments: what a graph or inverted lists find against brute force, whatever was filtered, deleted, merged
or damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import DenseIndex, Effort, Entry, Match, derived, graph, merging, open_index, plan
from mbretrieve.index.files import BLOCK, Draft, MappedFolder, save_array
from tests.index import test_model
from tests.index.faults import forget_parity
from tests.index.packed import ALL

Floats = NDArray[np.float32]

DIM = 24
DOCUMENTS = 6000
EFFORTS = {"graph": plan.dense_row(1 << 15).effort, "lists": Effort(probes=32, tokens=256, rescore=256)}
"""The efforts of the table; of the lists that are 256 here an eighth, as at 200,000 vectors."""


def patch_table(patch: pytest.MonkeyPatch, search: plan.Search, *, flat: int = 100) -> None:
    """Let a segment of more than ``flat`` vectors be searched in one way."""
    rows = (plan.DenseRow(flat, "flat", Effort(1, 1, 1)), plan.DenseRow(1 << 62, search, EFFORTS[search]))
    patch.setattr(plan, "DENSE_TABLE", rows)


def clustered(count: int, seed: int) -> Floats:
    """Vectors around 60 centres, as texts are around topics; the centres are the same whatever the seed."""
    centres = np.random.default_rng(0).standard_normal((60, DIM))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(60, size=count)] + 0.6 * random.standard_normal((count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def fill(path: Path, vectors: Floats) -> DenseIndex:
    index = DenseIndex.create(path, vectors.shape[1])
    with index.writer() as writer:
        writer.add([Entry(f"{i:05}", [row[None]], [(0, 0)], metadata={"n": i}) for i, row in enumerate(vectors)])
    return index


def recall(found: list[list[Match]], queries: Floats, vectors: Floats, among: NDArray[np.int64]) -> float:
    """Return which share of the best of some vectors was found; every score must be that of its vector."""
    hits = total = 0
    for query, matches in zip(queries, found, strict=True):
        scores = vectors @ query
        for match in matches:
            assert match.score == pytest.approx(float(scores[int(match.id)]), abs=1e-5)
        best = among[np.argsort(-scores[among])[: len(matches)]]
        hits += len({int(match.id) for match in matches} & set(best.tolist()))
        total += len(matches)
    return hits / total


@pytest.fixture(params=["graph", "lists"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> plan.Search:
    patch_table(monkeypatch, request.param)
    monkeypatch.setattr(graph, "WALKED", 1)  # or a graph of so few vectors would not be worth a walk
    found: plan.Search = request.param
    return found


@pytest.fixture(scope="module", params=["graph", "lists"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An index of one large segment, its vectors, and how it is searched."""
    vectors = clustered(DOCUMENTS, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch_table(patch, request.param)
        with fill(tmp_path_factory.mktemp("large") / "index", vectors) as index:
            yield index, vectors, request.param


def test_the_default_effort_finds_nearly_all(large: tuple[DenseIndex, Floats, plan.Search]) -> None:
    index, vectors, search = large
    queries = clustered(100, seed=2)
    assert index.status()["searched"] == {"flat": 0, "graph": 0, "lists": 0} | {search: DOCUMENTS}
    assert index.effort(10) == EFFORTS[search]
    everything = np.arange(DOCUMENTS)
    assert recall(index.search(queries, 10), queries, vectors, everything) >= 0.95
    assert recall(index.search(queries, 100), queries, vectors, everything) >= 0.95
    together, alone = index.search(queries, 10), [index.search(query[None], 10)[0] for query in queries]
    shared = [len({m.id for m in one} & {m.id for m in other}) for one, other in zip(together, alone, strict=True)]
    assert np.mean(shared) >= 9.9  # a product of matrices rounds otherwise than one with a vector


def test_full_effort_is_exact(large: tuple[DenseIndex, Floats, plan.Search]) -> None:
    index, _, _ = large
    queries = clustered(30, seed=3)
    for k in (1, 10, 300):
        for full, exact in zip(index.search(queries, k, effort=ALL), index.search(queries, k, exact=True), strict=True):
            assert [match.id for match in full] == [match.id for match in exact]
            np.testing.assert_allclose([m.score for m in full], [m.score for m in exact], atol=1e-6)
    assert len(index.search(queries[:1], 2 * DOCUMENTS)[0]) == DOCUMENTS


def test_little_effort_finds_less_but_as_many(large: tuple[DenseIndex, Floats, plan.Search]) -> None:
    index, vectors, _ = large
    queries = clustered(50, seed=4)
    found = index.search(queries, 10, effort=Effort(1, 1, 1))
    assert all(len(matches) == 10 for matches in found)
    everything = np.arange(DOCUMENTS)
    assert recall(found, queries, vectors, everything) < recall(index.search(queries, 10), queries, vectors, everything)


@pytest.mark.parametrize("passing", [DOCUMENTS - 1, 4000, 1500, 400, 60, 6, 1, 0])
def test_a_filter_acts_within_the_search(large: tuple[DenseIndex, Floats, plan.Search], passing: int) -> None:
    """However few pass, k documents come back if there are so many, and they are the best."""
    index, vectors, _ = large
    queries = clustered(20, seed=5)
    among = np.random.default_rng(6).permutation(DOCUMENTS)[:passing]
    found = index.search(queries, 10, ids=[f"{i:05}" for i in among])
    assert {len(matches) for matches in found} == {min(10, passing)}
    assert {int(match.id) for matches in found for match in matches} <= set(among.tolist())
    if passing:
        assert recall(found, queries, vectors, among) >= 0.95


@pytest.mark.parametrize("topics", [1, 10, 40])
def test_a_filter_may_leave_nothing_near_the_query(large: tuple[DenseIndex, Floats, plan.Search], topics: int) -> None:
    """The topics nearest to a query are all left out: the best of the others come back."""
    index, vectors, _ = large
    centres = np.random.default_rng(0).standard_normal((60, DIM))
    topic = np.argmax(vectors @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T, axis=1)
    shares = []
    for query in clustered(20, seed=20):
        left = np.flatnonzero(~np.isin(topic, np.argsort(-(centres @ query))[:topics]))
        [matches] = index.search(query[None], 10, ids=[f"{i:05}" for i in left])
        assert len(matches) == 10
        shares.append(recall([matches], query[None], vectors, left))
    assert np.mean(shares) >= 0.95


def test_deleted_and_replaced_vectors_never_come_back(tmp_path: Path, search: plan.Search) -> None:
    vectors = clustered(2000, seed=7)
    with fill(tmp_path / "index", vectors) as index:
        order = np.argsort(-(vectors @ vectors[0]))
        gone = order[:200]
        index.delete([f"{i:05}" for i in gone])
        moved = order[200:230]
        index.add([f"{i:05}" for i in moved], -vectors[moved])
        left = np.setdiff1d(np.arange(2000), gone)
        vectors[moved] *= -1
        for again in (index, open_index(tmp_path / "index")):
            assert again.status()["searched"][search] == 2000 - 230
            queries = np.concatenate([vectors[gone[:5]], vectors[moved[:5]]])
            found = again.search(queries, 20)
            assert recall(found, queries, vectors, left) >= 0.95
            assert [matches[0].id for matches in found[5:]] == [f"{i:05}" for i in moved[:5]]
            assert again.verify() == []
        index.compact()
        assert index.status()["searched"] == {"flat": 0, "graph": 0, "lists": 0} | {search: 1800}
        assert recall(index.search(queries, 20), queries, vectors, left) >= 0.95


def test_small_commits_build_nothing_until_they_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: plan.Search
) -> None:
    monkeypatch.setattr(merging, "SMALLEST", 128)
    built: list[int] = []
    derive = derived.derive

    def counting(folder: Path, vectors: Floats, memory: int) -> list[str]:
        built.append(len(vectors))
        return derive(folder, vectors, memory)

    monkeypatch.setattr(derived, "derive", counting)
    vectors = clustered(1000, seed=8)
    with fill(tmp_path / "index", vectors[:600]) as index:
        assert built == [600]
        for first in range(600, 1000, 40):
            index.add([f"{i:05}" for i in range(first, first + 40)], vectors[first : first + 40])
        assert built == [600, 7 * 40 + 40 + 40]  # the commit after the eighth merges them, itself included
        assert index.status()["searched"]["flat"] == 40
        queries = clustered(30, seed=9)
        assert recall(index.search(queries, 10), queries, vectors, np.arange(1000)) >= 0.95


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x41]))


def cut(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.truncate(at)


@pytest.mark.parametrize("harm", [flip, cut])
def test_a_damaged_file_is_named_and_made_again(
    tmp_path: Path, search: plan.Search, harm: Callable[[Path, int], None]
) -> None:
    vectors = clustered(1500, seed=10)
    fill(tmp_path / "index", vectors).close()
    [segment] = (tmp_path / "index" / "segments").iterdir()
    names = {path.name for path in segment.iterdir()}
    assert names == {"vectors.npy", "windows.npy", *derived.FILES[search]}
    queries = clustered(60, seed=11)
    with open_index(tmp_path / "index") as index:
        before = index.search(queries, 10)
    for name in sorted(names):
        file = segment / name
        sound = file.read_bytes()
        for at in np.random.default_rng(12).integers(len(sound), size=3).tolist():
            harm(file, at)
            with open_index(tmp_path / "index") as index:
                assert any(name in line for line in index.verify())
                with pytest.raises(IndexFormatError, match=name):
                    index.search(vectors, 10)
            file.write_bytes(sound)
    for name in derived.FILES[search]:
        [segment] = (tmp_path / "index" / "segments").iterdir()
        flip(segment / name, 200)
        forget_parity(tmp_path / "index")
        with open_index(tmp_path / "index") as index:
            assert any(name in line and "were copied" in line for line in index.repair())
            assert index.verify() == []
            overlap = [len(set(one) & set(other)) for one, other in zip(index.search(queries, 10), before, strict=True)]
            assert np.mean(overlap) >= 9.5  # several threads do not build the same graph twice
            assert index.status()["searched"][search] == 1500


def test_a_missing_file_is_named(tmp_path: Path, search: plan.Search) -> None:
    fill(tmp_path / "index", clustered(200, seed=13)).close()
    [segment] = (tmp_path / "index" / "segments").iterdir()
    (segment / derived.FILES[search][-1]).unlink()
    with open_index(tmp_path / "index") as index:
        assert any(derived.FILES[search][-1] in line for line in index.verify())
        with pytest.raises(IndexFormatError, match="is missing"):
            index.search(np.ones((1, DIM)), 1)


def test_a_reader_keeps_what_a_writer_drops(tmp_path: Path, search: plan.Search) -> None:
    vectors = clustered(1000, seed=14)
    queries = clustered(10, seed=15)
    with fill(tmp_path / "index", vectors) as index, open_index(tmp_path / "index") as reader:
        before = reader.search(queries[:1], 10)
        index.delete([f"{i:05}" for i in range(0, 1000, 3)])
        index.compact()
        assert reader.search(queries[:1], 10) == before
        assert all(len(matches) == 10 for matches in reader.search(queries, 10))


def test_lists_are_the_same_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_table(monkeypatch, "lists")
    vectors = clustered(700, seed=16)
    for name, rows in (("whole", 1 << 20), ("parts", 300)):
        monkeypatch.setattr(derived, "PART_ROWS", rows)
        (tmp_path / name).mkdir()
        names = derived.derive(tmp_path / name, vectors, 1 << 30)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(names)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_a_graph_that_does_not_fit_the_memory_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_table(monkeypatch, "graph")
    vectors = clustered(500, seed=17)
    assert derived.derive(tmp_path, vectors, 3 * vectors.nbytes) == list(derived.FILES["graph"])
    assert derived.derive(tmp_path, vectors, vectors.nbytes) == list(derived.FILES["lists"])
    assert derived.derive(tmp_path, vectors[:100], 1 << 30) == []


HARMS: dict[str, Callable[[NDArray[np.uint8], NDArray[np.int32]], Any]] = {
    "names rows": lambda levels, links: links.__setitem__(5, len(levels)),
    "names rows that": lambda levels, links: links.__setitem__(5, -2),
    "do not stand there": lambda levels, links: links.__setitem__(
        32 * int(levels.argmax()) + 32 + 16 * int((levels[: levels.argmax()] - 1).sum()), int(levels.argmin())
    ),
    "are not from 1": lambda levels, links: levels.__setitem__([levels.argmin(), levels.argmin() + 1], [0, 3]),
}


@pytest.mark.parametrize("message", HARMS)
def test_links_that_lead_nowhere_are_refused_though_their_checksums_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    patch_table(monkeypatch, "graph")
    vectors = clustered(400, seed=18)
    draft = Draft(tmp_path)
    names = derived.derive(draft.path, vectors, 1 << 30)
    levels, links = (np.load(draft.path / name) for name in (graph.LEVELS, graph.NEIGHBORS))
    HARMS[message](levels, links)
    if message == "are not from 1":  # as many places as the file has: 0 levels have none, two 3 have 128
        links = np.concatenate([links, np.full(16 * 4 + 16 * 4 - 0, -1, np.int32)])
        links = links[: int(graph._places(levels.astype(np.int32)).sum())]
    save_array(draft.path / graph.LEVELS, levels)
    save_array(draft.path / graph.NEIGHBORS, links)
    save_array(draft.path / "vectors.npy", vectors)
    files = MappedFolder(tmp_path / draft.name, draft.finish([*names, "vectors.npy"]))
    with pytest.raises(IndexFormatError, match=message):
        graph.Graph(files, "vectors.npy", vectors).search(vectors[:1], 3, ALL, None)


def test_where_the_checksums_of_blocks_are_read_they_cover_what_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed vector that lists fetch is named, though the lists themselves are sound."""
    patch_table(monkeypatch, "lists")
    vectors = clustered(3000, seed=19)
    fill(tmp_path / "index", vectors).close()
    [segment] = (tmp_path / "index" / "segments").iterdir()
    flip(segment / "vectors.npy", 3 * BLOCK + 5)
    row = (3 * BLOCK - 128) // (4 * DIM)
    with open_index(tmp_path / "index") as index, pytest.raises(IndexFormatError, match=r"vectors\.npy"):
        index.search(vectors[row][None], 1)
    shutil.rmtree(tmp_path / "index")


class NearMachine(test_model.DenseMachine):
    """Segments of a few vectors are searched by graphs and lists, never flat where these may do, all of them visited:
    the answers are those of the dictionary, but for rounding."""

    rows = st.tuples(*[st.integers(-3, 3)] * test_model.DIM).filter(any).map(lambda row: [row])
    table: ClassVar[tuple[plan.DenseRow, ...]] = (
        plan.DenseRow(3, "flat", Effort(1, 1, 1)),
        plan.DenseRow(9, "graph", ALL),
        plan.DenseRow(1 << 62, "lists", ALL),
    )

    @initialize()
    def create(self) -> None:
        self.patch.setattr(plan, "DENSE_TABLE", self.table)
        self.patch.setattr(graph, "WALKED", 0)
        self.patch.setattr(derived, "FETCHED", 0)
        self.patch.setattr(derived, "SCANNED", 1 << 62)
        super().create()

    def check_ranking(self, query: NDArray[Any], matches: list[Match], passing: set[str], k: int) -> None:
        scores = {id: [self.score(query, window) for window in self.model[id].windows] for id in passing}
        best = {id: max(some) for id, some in scores.items()}
        for match in matches:
            assert match.score == pytest.approx(best[match.id], abs=1e-5)
            assert match.score == pytest.approx(scores[match.id][match.window], abs=1e-5)
            assert match.span == self.model[match.id].spans[match.window]
        assert matches == sorted(matches, key=lambda match: (-match.score, match.id))
        found = {match.id for match in matches}
        assert len(found) == len(matches) == min(k, len(passing))
        assert all(best[id] <= matches[-1].score + 1e-5 for id in passing - found)


def test_an_index_of_graphs_and_lists_is_a_dictionary(counted: Callable[[str], None]) -> None:
    test_model.run(NearMachine, 60, counted)


@pytest.mark.slow
def test_an_index_of_graphs_and_lists_is_a_dictionary_after_many_steps(counted: Callable[[str], None]) -> None:
    test_model.run(NearMachine, 1000, counted)
