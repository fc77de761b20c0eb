"""Which window each row is: look-up by content, what opening reads, and what is told of damage."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import DenseIndex, MultiVectorIndex, open_index
from mbretrieve.index.arrays import distinct, is_among, spread
from mbretrieve.index.catalogue import Catalogue
from mbretrieve.index.packing import runs
from mbretrieve.index.view import load_view
from mbretrieve.index.windows import Places, is_complete
from tests.index.faults import entry, flip, make, make_packed
from tests.index.packed import tiny

NUMBERS = st.lists(st.integers(0, 50), max_size=30)


def integers(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@given(NUMBERS, NUMBERS)
def test_sets_of_numbers(some: list[int], others: list[int]) -> None:
    assert distinct(integers(some)).tolist() == sorted(set(some))
    assert is_among(integers(some), integers(others)).tolist() == [number in others for number in some]
    starts, counts = integers(some[: len(others)]), integers(others[: len(some)])
    expected = [number for start, count in zip(starts, counts, strict=True) for number in range(start, start + count)]
    assert spread(starts, starts + counts).tolist() == expected


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 4)), unique_by=lambda pair: pair[0]),
    st.sets(st.integers(1, 99)),
)
def test_the_rows_of_contents(written: list[tuple[int, int]], wanted: set[int]) -> None:
    contents = [content for content, count in written for _ in range(count)]
    rows = Places(integers(contents)).rows(integers(sorted(wanted)))
    assert rows.tolist() == [row for row, content in enumerate(contents) if content in wanted]
    table = np.array([(content, i, 0, 0) for content, count in written for i in range(count)], np.uint32).reshape(-1, 4)
    assert is_complete(table)
    if len(table) > 1:
        assert not is_complete(np.concatenate([table, table[:1]]))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1), st.integers(1, 30), st.data())
def test_no_run_cuts_a_content(written: list[tuple[int, int]], tokens: int, data: st.DataObject) -> None:
    """written: how many windows a content has, and how many tokens each."""
    table = np.array(
        [(content, i, 0, 0) for content, (count, _) in enumerate(written) for i in range(count)], np.uint32
    )
    lengths = integers([length for count, length in written for _ in range(count)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = data.draw(st.sets(st.integers(0, len(written) - 1), min_size=1))
    rows = np.flatnonzero(np.isin(table[:, 0], list(kept)))
    parts = list(runs(offsets, table, rows, tokens))
    assert np.concatenate(parts).tolist() == rows.tolist()
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        assert following is None or not set(table[part, 0]) & set(table[following, 0])
        assert lengths[part].sum() <= tokens or len(set(table[part, 0])) == 1


@pytest.mark.parametrize("kind", [MultiVectorIndex, DenseIndex])
def test_opening_reads_no_row_of_a_window_or_a_document(
    kind: type[MultiVectorIndex] | type[DenseIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = Catalogue.rows

    def counted(self: Catalogue, *arguments: Any) -> list[tuple[Any, ...]]:
        found = rows(self, *arguments)
        read.append(len(found))
        return found

    monkeypatch.setattr(Catalogue, "rows", counted)
    opened = []
    for count in (10, 300):
        with kind.create(tmp_path / str(count), 4) as index:
            index.add(
                [str(i) for i in range(count)], np.ones((count, 1, 4) if kind is MultiVectorIndex else (count, 4))
            )
            index.delete(["3"])
            read.clear()
            load_view(index._catalogue)
            opened.append(sum(read))
    assert opened[0] == opened[1]


@pytest.mark.parametrize("name", ["windows.npy", "offsets.npy"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_changed_byte_is_not_searched_over(name: str, packed: bool, tmp_path: Path) -> None:
    (make_packed if packed else make)(tmp_path / "index")
    for file in (tmp_path / "index").glob(f"segments/*/{name}"):
        flip(file, -8)
    with open_index(tmp_path / "index") as index:
        assert any(name in line for line in index.verify())
        with pytest.raises(IndexFormatError, match=rf"{name} is damaged"):
            index.search([np.eye(4)], 100)


def test_what_is_deleted_does_not_come_back_where_its_mark_is_lost(tmp_path: Path) -> None:
    make(tmp_path / "index")
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "catalog.sqlite")) as database, database:
        assert database.execute("DELETE FROM deleted").rowcount
    with open_index(tmp_path / "index") as index:
        assert index.verify() != []
        with pytest.raises(IndexFormatError, match="what is deleted"):
            index.search([np.eye(4)], 100)
        assert index.repair() != []
        assert "d1" not in {match.id for match in index.search([np.eye(4)], 100)[0]}
        assert index.verify() == []


def test_a_content_is_never_packed_in_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch)
    long = entry(0, 1)
    long.vectors[:] = [np.random.default_rng(i).standard_normal((30, 4)) for i in range(8)]  # type: ignore[index]
    long.spans[:] = [(i, i + 2) for i in range(8)]  # type: ignore[index]
    with MultiVectorIndex.create(tmp_path / "index", 4) as index:
        with index.writer() as writer:
            writer.add([long, entry(1, 5)])
        assert index.status()["packed_tokens"]
        assert index.verify() == []
        [[match]] = index.search([np.asarray(long.vectors[6])], 1)
        assert (match.id, match.window, match.span) == ("d0", 6, (6, 8))
        [[match]] = index.lexical(["parse arguments"], 1, ids=["d0"])
        assert (match.window, match.span) == (-1, (0, 9))
