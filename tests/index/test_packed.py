"""A packed index against brute force over the vectors as it holds them, and what packing must not change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.errors import DataError, IndexBusyError
from mbretrieve.index import Effort, Entry, Match, MultiVectorIndex, open_index
from tests.index.packed import ALL, Windows, held, score, tiny
from tests.index.test_index import BAD_ENTRIES

DIM = 12  # no multiple of 8: packed vectors are padded


def documents(count: int, seed: int = 0) -> list[Entry]:
    """Documents of one to three windows, about a few subjects; the last repeats the text of the first."""
    random = np.random.default_rng(seed)
    subjects = random.standard_normal((12, DIM)).astype(np.float32)
    entries = []
    for i in range(count):
        windows = [
            subjects[random.integers(0, 12, random.integers(1, 7))]
            + 0.3 * random.standard_normal(DIM).astype(np.float32)
            for _ in range(random.integers(1, 4))
        ]
        spans = [(w, w + 1) for w in range(len(windows))]
        metadata = {"n": i, "even": i % 2 == 0}
        entries.append(Entry(f"d{i:04}", windows, spans, f"text {i}", "", metadata, f"s{i % 7}", f"h{i}"))
    return entries


def queries(count: int, seed: int = 1) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((random.integers(1, 6), DIM)).astype(np.float32) for _ in range(count)]


def filled(path: Path, entries: list[Entry], bits: int | None = None, batch: int = 60) -> MultiVectorIndex:
    """An index of several commits: packed segments, where the test lets codebooks age of more than one of them, and raw
    ones beside them."""
    index = MultiVectorIndex.create(path, DIM, bits=bits)
    for first in range(0, len(entries), batch):
        with index.writer() as writer:
            writer.add(entries[first : first + batch])
    with index.writer() as writer:
        writer.add_same("copy", "h1", "text 1", "", {"n": -1, "even": False})
    return index


def assert_best(matches: list[Match], expected: dict[str, float], k: int) -> None:
    """Hold a ranking against every document's true score: sorted, ties by id, and none better left out."""
    assert matches == sorted(matches, key=lambda match: (-match.score, match.id))
    assert len({match.id for match in matches}) == len(matches) == min(k, len(expected))
    for match in matches:
        assert match.score == pytest.approx(expected[match.id], abs=1e-4)
    if matches:
        left_out = max((expected[id] for id in expected.keys() - {match.id for match in matches}), default=-np.inf)
        assert left_out <= matches[-1].score + 1e-4


def assert_true(query: Any, matches: list[Match], windows: dict[str, Windows]) -> None:
    """Each match is scored as the window it names; which of a document's windows are looked at, the effort decides."""
    assert matches == sorted(matches, key=lambda match: (-match.score, match.id))
    for match in matches:
        assert match.score == pytest.approx(score(query, [windows[match.id][match.window]]), abs=1e-4)


def truth(query: Any, windows: dict[str, Windows]) -> dict[str, float]:
    return {id: score(query, some) for id, some in windows.items()}


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_looking_everywhere_is_brute_force_over_the_decoded_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300, DRIFT_TOKENS=600, PACK_TOKENS=1000)
    with filled(tmp_path / "index", documents(350), bits) as index:
        status = index.status()
        assert 0 < status["packed_tokens"] < status["tokens"]
        windows = held(index.path)
        assert len(windows) == 351
        asked = queries(12)
        for k in (1, 10, 1000):
            exact = index.search(asked, k, exact=True)
            everywhere = index.search(asked, k, effort=ALL)
            for query, one, other in zip(asked, exact, everywhere, strict=True):
                expected = truth(query, windows)
                assert_best(one, expected, k)
                assert_best(other, expected, k)
                assert [(match.window, match.span) for match in one] == [(match.window, match.span) for match in other]
        # Documents of one content score the same to the last bit: their order is that of their ids.
        for matches in index.search(asked, 1000, effort=ALL):
            scores = {match.id: match.score for match in matches}
            assert scores["copy"] == scores["d0001"]
        named = index.score(asked, [["d0003", "copy", "none"]] * len(asked))
        for query, matches in zip(asked, named, strict=True):
            assert_best(matches, truth(query, {id: windows[id] for id in ("d0003", "copy")}), 3)


@pytest.mark.parametrize("bits", [2, 8])
def test_kept_vectors_are_the_decoded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300, DRIFT_TOKENS=600, PACK_TOKENS=1000)
    entries = documents(350)
    with filled(tmp_path / "index", entries, bits) as index:
        windows = held(index.path)
        asked = [(entry.id, span) for entry in entries for span in entry.spans]
        for (id, (number, _)), rows in zip(asked, index.vectors(asked), strict=True):
            np.testing.assert_allclose(rows, windows[id][number], atol=1e-5)


WHERE: dict[str, tuple[dict[str, Any], Any]] = {
    "half": ({"even": True}, lambda n: n >= 0 and n % 2 == 0),
    "tenth": ({"n": {"gte": 100, "lt": 200}}, lambda n: 100 <= n < 200),
    "thousandth": ({"n": {"gte": 700, "lt": 702}}, lambda n: 700 <= n < 702),
    "nothing": ({"n": 5000}, lambda n: False),
}


def test_filters_return_k_documents_and_only_those_that_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300, PACK_TOKENS=2000, DRIFT=100.0)
    with filled(tmp_path / "index", documents(2000), batch=450) as index:
        windows = held(index.path)
        numbers = {document.id: document.metadata["n"] for document in index.scan()}
        asked = queries(10)
        for where, passes in WHERE.values():
            passing = {id: some for id, some in windows.items() if passes(numbers[id])}
            for effort in (ALL, Effort(1, 4, 30), None):
                for query, matches in zip(asked, index.search(asked, 10, where=where, effort=effort), strict=True):
                    assert len(matches) == min(10, len(passing))
                    assert {match.id for match in matches} <= passing.keys()
                    assert_true(query, matches, passing)
                    if effort is ALL:
                        assert_best(matches, truth(query, passing), 10)
            ids = [*sorted(passing)[:2], "none"]
            [few] = index.search(asked[:1], 5, ids=ids, where=where)
            assert {match.id for match in few} == set(ids) & passing.keys()


@pytest.mark.parametrize("effort", [Effort(1, 1, 1), Effort(2, 3, 4), None])
def test_a_small_effort_scores_what_it_finds_by_the_window_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: Effort | None
) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300)
    with filled(tmp_path / "index", documents(300)) as index:
        windows = held(index.path)
        asked = queries(10)
        for k in (1, 20, 301, 5000):
            for query, matches in zip(asked, index.search(asked, k, effort=effort), strict=True):
                assert 0 < len({match.id for match in matches}) == len(matches) <= min(k, 301)
                assert len(matches) == min(k, 301) or effort is not None  # who says how far to look looks no further
                assert_true(query, matches, windows)


def test_how_queries_are_grouped_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300)
    with filled(tmp_path / "index", documents(300)) as index:
        asked = [*queries(300), np.ones((200, DIM), np.float32)]  # more tokens than are looked up together
        together = index.search(asked, 5)
        for query, matches in zip(asked, together, strict=True):
            [alone] = index.search([query], 5)
            assert [match.id for match in alone] == [match.id for match in matches]
            np.testing.assert_allclose([m.score for m in alone], [m.score for m in matches], rtol=1e-4)


def test_a_deleted_content_comes_back_from_a_packed_segment_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, EXACT_TOKENS=300, RAW_TOKENS=200)
    with filled(tmp_path / "index", documents(100)) as index:
        before, tokens = held(index.path), index.status()["tokens"]
        with index.writer() as writer:
            assert writer.delete_source("s3") > 10
            for i in range(3, 100, 7):
                writer.add_same(f"d{i:04}", f"h{i}", f"text {i}", "", {"line": i}, "s3")
        after = held(index.path)
        assert after.keys() == before.keys()
        assert all(np.array_equal(a, b) for id in before for a, b in zip(after[id], before[id], strict=True))
        assert index.status()["tokens"] == tokens
        assert index.verify() == []


def files(count: int, kind: int, seed: int) -> list[Entry]:
    """Windows of one file after the other, of a kind; some files' are much harder to compress than others'."""
    random = np.random.default_rng(seed)
    subjects = np.random.default_rng(kind).standard_normal((12, DIM)).astype(np.float32)
    entries = []
    for file in range(count):
        spread = np.float32(0.1 * random.lognormal(0, 0.5))
        for i in range(20):
            tokens = subjects[random.integers(0, 12, 8)] + spread * random.standard_normal((8, DIM)).astype(np.float32)
            entries.append(
                Entry(f"{kind}-{seed}-{file}-{i}", [tokens], [(0, 1)], f"{seed} {file} {i}", "", {}, "s", "")
            )
    return entries


@pytest.mark.parametrize("seed", range(5))
def test_a_codebook_is_trained_for_another_kind_of_vectors_not_for_files_that_are_harder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    tiny(monkeypatch, EXACT_TOKENS=3000, RAW_TOKENS=1000, DRIFT_TOKENS=1000, LEAST_HELD_OUT=100, PACK_TOKENS=1 << 20)
    with MultiVectorIndex.create(tmp_path / "index", DIM) as index:
        for batch in range(12):
            with index.writer() as writer:
                writer.add(files(60 if batch == 0 else 20, kind=1, seed=100 * seed + batch))
        assert len(index.status()["lists"]) == 1
        with index.writer() as writer:
            writer.add(files(10, kind=2, seed=seed))
        assert len(index.status()["lists"]) == 2


def test_compacting_gives_the_disk_back_and_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, EXACT_TOKENS=900, RAW_TOKENS=300, DRIFT_TOKENS=600, FAN=50)
    entries = documents(600)
    with filled(tmp_path / "index", entries) as index:
        index.delete([f"d{i:04}" for i in range(600) if i % 3])
        index.compact()  # what was still raw is packed; from now on nothing changes
        asked, full = queries(8), index.status()
        assert full["packed_tokens"] == full["tokens"] == stored_tokens(index.path)
        before = index.search(asked, 1000, effort=ALL)
        index.compact()
        assert index.status()["bytes"]["segments"] == full["bytes"]["segments"]
        index.delete([f"d{i:04}" for i in range(600) if i % 2])
        index.compact()
        few = index.status()
        assert few["tokens"] == stored_tokens(index.path) < 0.6 * full["tokens"]
        assert few["bytes"]["segments"] < full["bytes"]["segments"]
        kept = [
            [(m.id, pytest.approx(m.score, abs=1e-4)) for m in matches if m.id == "copy" or int(m.id[1:]) % 2 == 0]
            for matches in before
        ]
        assert [[(m.id, m.score) for m in matches] for matches in index.search(asked, 1000, effort=ALL)] == kept
        index.compact(retrain=True)
        status = index.status()
        assert len(status["lists"]) == 1
        assert status["packed_tokens"] == status["tokens"]
        assert len(list((index.path / "codebooks").iterdir())) == 1
        assert index.verify() == []


def stored_tokens(path: Path) -> int:
    return sum(len(np.load(file)) for file in path.glob("segments/*/codes.npy"))


def test_everything_deleted_leaves_an_index_that_packs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, EXACT_TOKENS=300, RAW_TOKENS=200)
    entries = documents(100)
    with filled(tmp_path / "index", entries) as index:
        index.delete([document.id for document in index.scan()])
        assert index.search(queries(2), 3) == [[], []]
        index.compact(retrain=True)
        assert index.status()["bytes"]["segments"] == 0
        with index.writer() as writer:
            writer.add(entries)
        assert index.status()["packed_tokens"] > 0
        assert index.verify() == []
        assert len(index.search(queries(1), 1000, effort=ALL)[0]) == 100


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_refused_by_name_and_the_packed_rest_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tiny(monkeypatch)
    bad, message = BAD_ENTRIES[name]
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        index.add([f"d{i}" for i in range(8)], [rows + i for i in range(8)])
        assert index.status()["packed_tokens"] == 64
        before, generation = index.search([rows], 100), index.generation
        with index.writer() as writer, pytest.raises(DataError, match=message):
            writer.add([Entry("good", [rows[:2]], [(0, 0)]), bad])
        with pytest.raises(DataError, match="query 0 has shape"):
            index.search([rows[:, :3]], 3)
        assert index.generation == generation
        assert index.search([rows], 100) == before
        assert index.verify() == []


def test_two_writers_of_a_packed_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, EXACT_TOKENS=300)
    with filled(tmp_path / "index", documents(60)) as index, open_index(index.path) as other:
        with index.writer() as writer:
            writer.delete(["d0002"])
            for work in (lambda: other.compact(), lambda: other.add(["x"], [np.eye(DIM)])):
                with pytest.raises(IndexBusyError, match="being written by process"):
                    work()
        assert index.documents(["d0002", "x"]) == []
        other.compact(retrain=True)
        assert [document.id for document in other.documents(["d0002", "d0003"])] == ["d0003"]
        assert other.verify() == []
