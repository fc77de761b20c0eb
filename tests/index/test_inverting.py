"""The inverted index's runs: what is written is read, few runs are kept, and what is deleted goes."""

import random
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.index import Entry, MultiVectorIndex, inverting
from mbretrieve.index import postings as postings_module
from mbretrieve.index.inverting import FAN, LARGEST, runs_to_merge
from mbretrieve.index.postings import SMALL, Postings, Run, decode, encode, joined, summed

CONTENT = st.integers(1, 300) | st.integers(1, 2**32 - 1)
POSTINGS = st.dictionaries(CONTENT, st.integers(1, 300) | st.integers(1, 2**31), min_size=1, max_size=90)


def postings(counts: dict[int, int]) -> Postings:
    contents = sorted(counts)
    return Postings(np.array(contents, dtype=np.int64), np.array([counts[c] for c in contents], dtype=np.int64))


def as_counts(found: Postings) -> dict[int, int]:
    return dict(zip(found.contents.tolist(), found.counts.tolist(), strict=True))


@given(POSTINGS)
def test_what_is_encoded_is_decoded(counts: dict[int, int]) -> None:
    data = encode(postings(counts))
    assert as_counts(decode(len(counts), data)) == counts
    assert len(data) <= 8 * len(counts) or len(counts) > SMALL


@given(st.lists(POSTINGS, min_size=1, max_size=4))
def test_counts_of_words_are_summed(parts: list[dict[int, int]]) -> None:
    expected = sum(map(Counter, parts), Counter())
    assert as_counts(summed([postings(part) for part in parts])) == expected
    assert as_counts(joined([])) == {}


def test_few_runs_are_kept_and_a_posting_is_rarely_copied() -> None:
    rng = random.Random(0)
    runs: list[Run] = []
    written = copied = 0
    for i in range(3000):
        size = rng.choice([1, 10, 100, 1000])
        written += size
        runs.append(Run(i, i, i, 1, size, 0))
        if merged := runs_to_merge(runs):
            assert merged == runs[-len(merged) :]
            total = sum(run.postings for run in merged)
            copied += total
            runs[-len(merged) :] = [Run(i, merged[0].first, i, 1, total, 0)]
        assert len(runs) <= FAN + np.log2(written)
    assert copied <= written * np.log2(written)


def test_a_run_that_is_half_deleted_is_merged() -> None:
    runs = [Run(1, 1, 100, 100, 5000, 49), Run(2, 101, 200, 100, 500, 50), Run(3, 201, 300, 100, 50, 0)]
    assert runs_to_merge(runs) == []
    runs[1] = runs[1]._replace(deleted=51)
    assert runs_to_merge(runs) == runs[1:]


def test_large_runs_are_left_alone_while_they_live() -> None:
    runs = [Run(0, 1, 9, 9, LARGEST + 1, 4), *(Run(i, 10, 20, 11, LARGEST, 0) for i in range(FAN - 1))]
    assert runs_to_merge(runs) == []
    small = Run(FAN, 21, 21, 1, 1, 0)
    assert runs_to_merge([*runs, small]) == [*runs[1:], small]
    assert runs_to_merge([runs[0]._replace(deleted=5), *runs[1:]])[0].deleted == 5


def entry(id: str, text: str) -> Entry:
    return Entry(id, [[[1.0]]], [(0, len(text))], text)  # type: ignore[list-item]


def rows(index: MultiVectorIndex, sql: str) -> list[tuple[int, ...]]:
    with sqlite3.connect(index.path / "catalog.sqlite") as database:
        return database.execute(sql).fetchall()


@pytest.mark.parametrize("block", [8, 4096])
def test_what_is_deleted_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(inverting, "BLOCK", block)
    monkeypatch.setattr(postings_module, "BLOCK", block)
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        for i in range(40):
            with index.writer() as writer:
                writer.add([entry(f"{i}.{j}", ["one", "two", "three"][i % 3] + " every text") for j in range(5)])
        assert len(rows(index, "SELECT * FROM runs")) <= FAN + np.log2(40)
        for i in reversed(range(40)):
            index.delete([f"{i}.{j}" for j in range(5)])
            [(postings,)] = rows(index, "SELECT coalesce(sum(contents), 0) FROM postings")
            assert postings <= 2 * 3 * 5 * i
            assert [len(some) for some in index.lexical(["every"], 1000)] == [5 * i]
            assert index.verify() == []
        assert rows(index, "SELECT count(*) FROM postings") == [(0,)]
        assert rows(index, "SELECT count(*) FROM runs") == [(0,)]
        assert rows(index, "SELECT count(*) FROM lengths") == [(0,)]


def test_compacting_leaves_one_run_of_what_lives(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        for i in range(3):
            with index.writer() as writer:
                writer.add([entry(f"{i}.{j}", "every text") for j in range(5)])
        index.delete(["0.0", "2.4"])
        for _ in range(2):
            with index.writer() as writer:
                writer.compact()
            assert rows(index, "SELECT contents, postings, deleted FROM runs") == [(13, 26, 0)]
            assert len(index.lexical(["every"], 100)[0]) == 13
            assert index.verify() == []


def test_a_transaction_larger_than_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverting, "RUN_POSTINGS", 64)
    monkeypatch.setattr(inverting, "FETCHED", 3)
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add([entry(str(i), f"{chr(256 + i)} {chr(97 + i % 7)}x three") for i in range(500)])
            writer.delete([str(i) for i in range(0, 500, 2)])
        assert [len(found) for found in index.lexical(["three", "ax", "absent"], 1000)] == [250, 36, 0]
        assert index.verify() == []
