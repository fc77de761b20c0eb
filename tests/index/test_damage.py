"""What must hold when bytes change: damage is named, and no answer changes in silence but where that is said."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbretrieve.errors import IndexFormatError, MbretrieveError
from mbretrieve.index import open_index
from tests.index.faults import READS, everything, make, make_packed
from tests.index.test_reliability import path, state

__all__ = ["path"]  # the fixture


def harm_places(path: Path) -> list[Path]:
    return [path / "catalog.sqlite", *sorted(path.glob("segments/*/*")), *sorted(path.glob("codebooks/*/*"))]


@pytest.mark.parametrize("made", [make, make_packed])
@pytest.mark.parametrize("how", ["remove", "empty", "truncate", "lengthen", "garbage"])
def test_a_file_that_is_not_what_it_was_is_named(path: Path, how: str, made: Callable[[Path], None]) -> None:
    made(path)
    for file in harm_places(path):
        content = file.read_bytes()
        if how == "remove":
            file.unlink()
        else:
            harmed = {
                "empty": b"",
                "truncate": content[: len(content) * 2 // 3],
                "lengthen": content + b"\0",
                "garbage": bytes(255 - byte for byte in content),
            }
            file.write_bytes(harmed[how])
        problems = all_that_is_said(path)
        if not (how == "lengthen" and file.suffix == ".sqlite"):  # SQLite knows its length, and ignores what follows
            assert any(file.name in problem for problem in problems), (file, problems)
        file.write_bytes(content)
    assert all_that_is_said(path) == []


def all_that_is_said(path: Path) -> list[str]:
    try:
        with open_index(path) as index:
            said = index.verify()
            try:
                everything(index)
            except MbretrieveError as error:
                said.append(str(error))
            assert all("\n" not in problem for problem in said)
            return said
    except MbretrieveError as error:
        return [str(error)]


@pytest.mark.parametrize("made", [make, make_packed])
def test_a_changed_byte_is_found_or_changes_nothing(
    path: Path, made: Callable[[Path], None], counted: Callable[[str], None]
) -> None:
    """Of any file, the catalogue included. What a search may overlook is one thing: a row of words, of filters or of
    documents that is not found under its key. It then misses what that row would have found; ``verify`` says so."""
    made(path)
    expected, rows = state(path), rows_by_key(path)
    counts: Counter[str] = Counter()

    # So many that chance alone does not reach the bound below: 1 in 100 is missed, give or take a third.
    @settings(max_examples=1200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 1 << 32), which=st.integers(0, 9))
    def harm(seed: int, which: int) -> None:
        random = np.random.default_rng(seed)
        files = harm_places(path)
        file = files[0 if which < 6 else random.integers(1, len(files))]  # the catalogue, where most can go wrong
        original = file.read_bytes()
        content = bytearray(original)
        at = int(random.choice(np.flatnonzero(np.frombuffer(original, np.uint8)))) if which % 2 else -1
        at = at if at >= 0 else int(random.integers(len(content)))
        content[at] ^= int(random.integers(1, 256))
        file.write_bytes(content)
        try:
            where = f"byte {at} of {file}"
            found = each_answer(path)
            other = {name for name, answer in found.items() if answer not in (SAID, expected[name])}
            counts["missed" if other else "said" if SAID in found.values() else "no change"] += 1
            if file != files[0]:
                assert any(str(file) in problem for problem in all_that_is_said(path)), where
                assert not other, where
            elif other:
                assert not other & {"semantic", "documents", "sources", "settings", "identity"}, f"{where}: {other}"
                assert all_that_is_said(path), where
                assert any(not is_there(path, *row) for row in rows), f"{where}: {other}, and all rows are there"
        finally:
            for extra in path.glob("catalog.sqlite-*"):
                extra.unlink()
            file.write_bytes(original)

    harm()
    counted(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    assert counts["said"] > 0
    assert counts["no change"] > 0
    assert counts["missed"] <= sum(counts.values()) // 50


SAID = "an error"
KEYED = [
    ("postings", "run, word, contents, data, checksum"),
    ("metadata", "name, value, document"),
    ("documents", "key, id, content"),
    ("documents", "id"),  # by the index of ids
]


def each_answer(path: Path) -> dict[str, Any]:
    """What an index answers to each of ``READS``, asked alone; ``SAID`` where it says that it is damaged."""
    found = dict.fromkeys(READS, SAID)
    for name, read in READS.items():
        with contextlib.suppress(MbretrieveError), open_index(path) as index:
            found[name] = read(index)
    return found


def rows_by_key(path: Path) -> list[tuple[str, str, tuple[Any, ...]]]:
    """The rows of words, of filters and of documents, each with its table and the names of its columns."""
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database:
        return [
            (table, names, row) for table, names in KEYED for row in database.execute(f"SELECT {names} FROM {table}")
        ]


def is_there(path: Path, table: str, names: str, row: tuple[Any, ...]) -> bool:
    """Say whether a row is found by its key, and as it was."""
    same = " AND ".join(f"{name} = ?" for name in names.split(", "))
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database:
        return database.execute(f"SELECT count(*) FROM {table} WHERE {same}", row).fetchone() == (1,)
    return False


def test_a_search_notices_changed_vectors_among_its_hits(path: Path) -> None:
    make(path)
    for file in (path / "segments").glob("*/tokens.npy"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with open_index(path) as index, pytest.raises(IndexFormatError, match=r"tokens\.npy is damaged"):
        index.search([np.eye(4)], 100)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE documents SET metadata = '{' WHERE id = 'd2'", "the row of document 'd2' was changed"),
        ("UPDATE contents SET text = 'x' WHERE hash = 'h2-2'", "the text of (content 3|document 'd2') was changed"),
        ("UPDATE sources SET state = '{}'", "the state of a source was changed"),
        ("UPDATE deleted SET rows = zeroblob(length(rows))", "what is deleted of a segment was changed"),
    ],
)
def test_a_changed_row_is_neither_read_nor_written_over(path: Path, sql: str, message: str) -> None:
    make(path)
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database, database:
        database.execute(sql)
    with open_index(path) as index:
        assert index.verify() != []
        with pytest.raises(IndexFormatError, match=message):
            everything(index)
        if "'d2'" in sql or "h2-2" in sql:
            with pytest.raises(IndexFormatError, match=message):
                index.delete(["d2"])


# What a search looks up and does not read whole: each is changed to what makes it answer otherwise.
LOOKED_UP = {
    "UPDATE metadata SET document = 9 WHERE name = 'n' AND value = 2": "document 'd8' was found by a filter",
    "UPDATE metadata SET value = 2 WHERE name = 'n' AND value = 8": "document 'd8' was found by a filter",
    "INSERT INTO metadata VALUES ('n', 2, 99)": "a number is none",
    "UPDATE postings SET run = 3 - run WHERE word = 'file3'": "contents that have the word 'file3' was changed",
    "UPDATE postings SET word = 'gone' WHERE word = 'file3'": "contents that have the word 'gone' was changed",
    "UPDATE runs SET deleted = 0": "the lengths of contents are not those of the runs of words",
    "UPDATE contents SET start = 1 WHERE hash = 'h2-2'": "the row of content 3 was changed",
    "UPDATE documents SET content = 4 WHERE id = 'd2'": "the row of document 'd2' was changed",
}


@pytest.mark.parametrize("sql", LOOKED_UP)
def test_what_is_looked_up_is_checked(path: Path, sql: str) -> None:
    make(path)
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database, database:
        assert database.execute(sql).rowcount
    with open_index(path) as index:
        assert index.verify() != []
        with pytest.raises(IndexFormatError, match="run `mbretrieve repair`") as caught:
            look_up(index)
        assert LOOKED_UP[sql] in str(caught.value)
        assert index.repair() != []
        assert index.verify() == []
        look_up(index)


def look_up(index: Any) -> None:
    index.search([np.eye(4)], 3, where={"n": 2})
    index.lexical(["file3 gone"], 100)
