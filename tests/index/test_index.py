"""The index as its users see it: what is refused, search against brute force, what is imported, the examples."""

import doctest
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mbretrieve.errors import DataError, IndexBusyError
from mbretrieve.index import (
    DenseIndex,
    Entry,
    MultiVectorIndex,
    base,
    create_index,
    dense,
    joint,
    multivector,
    open_index,
)
from mbretrieve.index.merging import FAN, LARGEST_RAW, SegmentSize, segments_to_merge


def random_windows(seed: int, documents: int, dim: int, most: int) -> list[list[NDArray[np.float32]]]:
    random = np.random.default_rng(seed)
    return [
        [
            random.standard_normal((random.integers(1, most + 1), dim)).astype(np.float16).astype(np.float32)
            for _ in range(random.integers(1, 4))
        ]
        for _ in range(documents)
    ]


def fill(index: Any, documents: list[list[NDArray[np.float32]]]) -> None:
    with index.writer() as writer:
        for first in range(0, len(documents), 100):  # several segments
            writer.add(
                [
                    Entry(f"{i:05}", windows, [(0, 0)] * len(windows))
                    for i, windows in enumerate(documents[first : first + 100], start=first)
                ]
            )
            writer.commit()


@pytest.mark.parametrize("group", [1, 1 << 24])
def test_multi_vector_search_is_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(base, "GROUP_SCORES", group)
    documents = random_windows(0, 350, 16, most=20)
    queries = [rows[0] * 3 for rows in random_windows(1, 20, 16, most=9)]
    with MultiVectorIndex.create(tmp_path / "index", 16) as index:
        fill(index, documents)
        for query, matches in zip(queries, index.search(queries, 10), strict=True):
            scores = np.array([max((query @ w.T).max(axis=1).sum() for w in windows) for windows in documents])
            order = np.argsort(-scores)[:10]
            assert [match.id for match in matches] == [f"{i:05}" for i in order]
            np.testing.assert_allclose([match.score for match in matches], scores[order], rtol=1e-5)
        assert len(index.search(queries[:1], 10_000)[0]) == 350
        assert index.search([], 3) == []


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_dense_search_is_brute_force_with_many_windows_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(dense, "BLOCK_ROWS", block)
    documents = random_windows(0, 250, 6, most=1)
    documents[3] = [documents[3][0] * (i + 1) for i in range(60)]  # one document's windows crowd the best
    queries = np.concatenate([rows[0] for rows in random_windows(1, 20, 6, most=1)] + [documents[3][0]])
    with DenseIndex.create(tmp_path / "index", 6) as index:
        fill(index, documents)
        unit = [[w[0] / np.linalg.norm(w) for w in windows] for windows in documents]
        for query, matches in zip(queries, index.search(queries, 10), strict=True):
            direction = query / np.linalg.norm(query)
            scores = np.array([max(float(direction @ w) for w in windows) for windows in unit])
            order = np.argsort(-scores)[:10]
            assert [match.id for match in matches] == [f"{i:05}" for i in order]
            np.testing.assert_allclose([match.score for match in matches], scores[order], atol=1e-6)
        assert len(index.search(queries[:1], 10_000)[0]) == 250
        assert {match.score for match in index.search(np.zeros((1, 6)), 3)[0]} == {0.0}


ROWS = np.ones((2, 4), np.float32)
BAD_ENTRIES = {
    "dim": (Entry("bad", [np.ones((2, 3))], [(0, 0)]), r"'bad' has shape \(2, 3\).*\(tokens, 4\)"),
    "flat": (Entry("bad", [np.ones(4)], [(0, 0)]), "'bad' has shape"),
    "type": (Entry("bad", [np.array([["a"] * 4])], [(0, 0)]), "'bad' has shape"),
    "tokens": (Entry("bad", [ROWS[:0]], [(0, 0)]), "'bad' has no tokens"),
    "windows": (Entry("bad", [], []), "'bad' has 0 windows"),
    "nan": (Entry("bad", [ROWS * np.nan], [(0, 0)]), "'bad' holds NaN"),
    "inf": (Entry("bad", [ROWS * np.inf], [(0, 0)]), "infinite"),
    "large": (Entry("bad", [ROWS * 1e6], [(0, 0)]), "too large for float16"),
    "spans": (Entry("bad", [ROWS, ROWS], [(0, 0)]), "2 windows of vectors and 1 spans"),
    "span": (Entry("bad", [ROWS], [(0, 5)], "text"), "outside its text of 4 characters"),
    "id": (Entry("", [ROWS], [(0, 0)]), "not empty"),
    "surrogate": (Entry("bad", [ROWS], [(0, 1)], "\udc80"), "the text of document 'bad' holds half"),
    "metadata": (Entry("bad", [ROWS], [(0, 0)], metadata={"a": None}), "'a' of document 'bad'"),  # type: ignore[dict-item]
    "metadata nan": (Entry("bad", [ROWS], [(0, 0)], metadata={"a": float("nan")}), "finite"),
    "metadata int": (Entry("bad", [ROWS], [(0, 0)], metadata={"a": 2**64}), "64 bits"),
    "twice": (Entry("good", [ROWS], [(0, 0)]), "'good' comes twice"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_refused_by_name_and_the_rest_untouched(tmp_path: Path, name: str) -> None:
    bad, message = BAD_ENTRIES[name]
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        index.add(["kept"], [ROWS])
        generation = index.generation
        with index.writer() as writer, pytest.raises(DataError, match=message) as caught:
            writer.add([Entry("good", [ROWS], [(0, 0)]), bad])
        assert "\n" not in str(caught.value)
        assert index.generation == generation
        assert [document.id for document in index.scan()] == ["kept"]


def test_a_dense_index_takes_one_vector_a_window_and_no_zero(tmp_path: Path) -> None:
    with DenseIndex.create(tmp_path / "index", 4) as index, index.writer() as writer:
        with pytest.raises(DataError, match="one a window"):
            writer.add([Entry("bad", [ROWS], [(0, 0)])])
        with pytest.raises(DataError, match="zero vector"):
            writer.add([Entry("bad", [ROWS[:1] * 0], [(0, 0)])])


def test_bad_queries_and_calls_are_refused(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        index.add(["a"], [ROWS])
        with pytest.raises(ValueError, match="k is 0"):
            index.search([ROWS], 0)
        with pytest.raises(ValueError, match="k is -1"):
            index.lexical(["x"], -1)
        with pytest.raises(DataError, match=r"query 1 has shape \(1, 3\)"):
            index.search([ROWS, np.ones((1, 3))], 1)
        with pytest.raises(DataError, match="query 0 holds NaN"):
            index.search([ROWS * np.nan], 1)
        with pytest.raises(ValueError, match="1 queries and 2 collections"):
            index.score([ROWS], [["a"], ["a"]])
        with pytest.raises(ValueError, match=r"^2 ids, 1 vectors: as many of each were expected$"):
            index.add(["a", "b"], [ROWS])
        with pytest.raises(ValueError, match=r"^1 ids, 1 vectors, metadata for 2: as many of each were expected$"):
            index.add(["a"], [ROWS], [{}, {}])
        with index.writer() as writer:
            with pytest.raises(DataError, match="'x' names the content 'none', which is not here"):
                writer.add_same("x", "none", "", "", {})
            writer.add([Entry("y", [ROWS], [(0, 1)], "t", content_hash="h")])
            with pytest.raises(ValueError, match="another text or context"):
                writer.add_same("x", "h", "u", "", {})
        assert [document.id for document in index.scan()] == ["a", "y"]
    with pytest.raises(ValueError, match="at least 1"):
        create_index(tmp_path / "other", "dense", 0)


def test_the_order_of_documents_is_the_callers(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        index.add(["a", "b", "c"], [ROWS] * 3)
        assert [document.id for document in index.documents(["c", "x", "a", "c"])] == ["c", "a"]


def test_writing_nothing_commits_nothing(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        assert index.delete(["none"]) == 0
        assert index.generation == 0
        assert index.search([ROWS], 3) == [[]]
        assert index.lexical(["x"], 3) == [[]]
        assert index.verify() == []


def test_an_unchanged_text_is_stored_once(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        with index.writer() as writer:
            writer.add([Entry("a", [ROWS], [(0, 1)], "t", content_hash="h", metadata={"line": 1}, source="s")])
        tokens = index.status()["tokens"]
        with index.writer() as writer:
            writer.delete_source("s")
            writer.add_same("a", "h", "t", "", {"line": 2}, "s")
            writer.add_same("b", "h", "t", "", {"line": 9}, "s")
        status = index.status()
        assert (status["documents"], status["tokens"], status["segments"]) == (2, tokens, 1)
        assert [match.id for match in index.search([ROWS], 5)[0]] == ["a", "b"]
        assert [match.id for match in index.search([ROWS], 5, where={"line": 9})[0]] == ["b"]
        assert index.source_ids("s") == {"a", "b"}


def test_small_commits_leave_few_segments_and_deletes_give_the_disk_back(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        with index.writer() as writer:
            for i in range(3 * FAN):
                writer.add([Entry(f"{i:02}", [np.full((1, 4), i)], [(0, 0)])])
                writer.commit()
        status = index.status()
        assert status["segments"] <= FAN
        assert [match.id for match in index.search([np.ones((1, 4))], 3)[0]] == ["23", "22", "21"]
        index.delete([f"{i:02}" for i in range(3 * FAN) if i % 4])
        smaller = index.status()
        assert smaller["windows"] == 6
        assert smaller["bytes"]["segments"] < status["bytes"]["segments"]
        assert index.verify() == []


SIZES = st.tuples(st.integers(1, 2 * LARGEST_RAW), st.floats(0, 1), st.sampled_from([None, 1, 2]))


@given(st.lists(SIZES, max_size=60))
def test_merging_ends(sizes: list[tuple[int, float, int | None]]) -> None:
    """What is merged becomes one segment; after a few commits nothing more is, and little is left small or dead."""
    segments = [SegmentSize(i, tokens, int(tokens * share), book) for i, (tokens, share, book) in enumerate(sizes)]
    new = itertools.count(100)
    for _ in range(10):
        groups = segments_to_merge(segments)
        for keys in groups:
            merged = [size for size in segments if size.key in keys]
            [codebook] = {size.codebook for size in merged}
            tokens = sum(size.live_tokens for size in merged)
            segments = [size for size in segments if size.key not in keys]
            segments.append(SegmentSize(next(new), tokens, tokens, codebook))
        if not groups:
            break
    assert not groups
    for codebook in (None, 1, 2):
        small = [size for size in segments if size.codebook == codebook and 0 < size.live_tokens <= LARGEST_RAW]
        assert len(small) < 4 * FAN
    assert all(2 * size.live_tokens >= size.tokens or not size.live_tokens for size in segments)


@pytest.mark.parametrize("module", [multivector, dense, joint])
def test_the_examples_in_the_docstrings(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.attempted > 0
    assert result.failed == 0


def test_status_and_words_need_neither_torch_nor_faiss(tmp_path: Path) -> None:
    with create_index(tmp_path / "index", "dense", 2) as index:
        index.add(["a"], np.ones((1, 2)))
    code = (
        "import sys; from mbretrieve.index import open_index\n"
        f"index = open_index({str(tmp_path / 'index')!r})\n"
        "assert index.status()['documents'] == 1; index.lexical(['x'], 1); assert index.verify() == []\n"
        "assert not {'torch', 'faiss'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_writer_that_is_open_twice_in_one_process_is_refused(tmp_path: Path) -> None:
    with create_index(tmp_path / "index", "dense", 2) as index, index.writer():
        with pytest.raises(IndexBusyError), open_index(tmp_path / "index").writer():
            pass
        assert len(index) == 0
