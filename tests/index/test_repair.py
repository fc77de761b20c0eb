"""Repair: after any damage an index verifies, and the documents that are left answer as before."""

import contextlib
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.errors import IndexBusyError, IndexFormatError
from mbretrieve.index import DenseIndex, MultiVectorIndex, files, open_index, plan, salvage
from tests.index.faults import dying_at, entry, everything, flip, forget_parity, in_child, make, make_packed
from tests.index.packed import ALL, held, tiny
from tests.index.test_dense_ann import clustered, fill, patch_table
from tests.index.test_joint import both, make_joint
from tests.index.test_packed_reliability import count_steps
from tests.index.test_reliability import path, state

__all__ = ["path"]  # the fixture

Harm = Callable[[Path], object]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that small files have many."""
    monkeypatch.setattr(files, "BLOCK", 256)
    monkeypatch.setattr(salvage, "BLOCK", 256)
    tiny(monkeypatch)


def answers(index: Any, ids: set[str]) -> Any:
    """What the documents with these ids answer: everything but how common words are, which others decide too."""
    documents = [document for document in index.scan() if document.id in ids]
    asked = [np.eye(4), -np.ones((1, 4))]
    words = [sorted(m.id for m in matches if m.id in ids) for matches in index.lexical(["parse", "document 3 py"], 100)]
    some = [{m.id for m in matches if m.id in ids} for matches in index.search(asked, 1000, where={"n": {"gte": 2}})]
    return documents, words, some, index.settings, index.identity


def scores(index: Any, ids: set[str]) -> list[dict[str, float]]:
    found = index.search([np.eye(4), -np.ones((1, 4))], 1000, effort=ALL)
    return [{m.id: m.score for m in matches if m.id in ids} for matches in found]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def one(pattern: str, harm: Harm) -> Harm:
    """Harm the largest file of a name."""
    return lambda path: harm(max(path.glob(pattern), key=lambda file: (file.stat().st_size, file)))


def sql(*statements: str) -> Harm:
    def harm(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as database, database:
            for statement in statements:
                assert database.execute(statement).rowcount

    return harm


def last_byte(file: Path) -> None:
    flip(file, -1)


def two_blocks(file: Path) -> None:
    """What parity cannot restore: a byte of the last block and one of that before it."""
    flip(file, -1)
    flip(file, -1 - files.BLOCK)


def some_bytes(file: Path) -> None:
    """Cut a file short by some bytes, those of its last block."""
    size = file.stat().st_size
    os.truncate(file, size - 1 - (size - 1) % files.BLOCK)


def whole_block(file: Path) -> None:
    """Let a block in the middle of a file be zeros."""
    content = bytearray(file.read_bytes())
    first = (len(content) - 1) // (2 * files.BLOCK) * files.BLOCK
    content[first : first + files.BLOCK] = bytes(len(content[first : first + files.BLOCK]))
    file.write_bytes(content)


def no_parity(harm: Harm) -> Harm:
    """Harm, and take the parity away too."""

    def harmed(path: Path) -> None:
        harm(path)
        forget_parity(path)

    return harmed


# What is done to a packed index, and how many of its twelve documents may be lost (None: all those of one segment).
HARMS: dict[str, tuple[Harm, int | None]] = {
    "lists flipped": (one("segments/*/tokens.faiss", two_blocks), 0),
    "lists cut": (one("segments/*/tokens.faiss", cut), 0),
    "lists gone": (one("segments/*/tokens.faiss", Path.unlink), 0),
    "a byte of the codes": (one("segments/*/codes.npy", last_byte), 0),
    "codes flipped": (one("segments/*/codes.npy", two_blocks), 4),
    "codes flipped, and no parity": (no_parity(one("segments/*/codes.npy", last_byte)), 2),
    "codes cut": (one("segments/*/codes.npy", cut), None),
    "codes gone": (one("segments/*/codes.npy", Path.unlink), None),
    "codes longer": (one("segments/*/codes.npy", lambda file: file.write_bytes(file.read_bytes() + b"\0")), 0),
    "codes' header": (no_parity(one("segments/*/codes.npy", lambda file: flip(file, 20))), 2),
    "assignments flipped": (one("segments/*/assignments.npy", two_blocks), 4),
    "vectors flipped": (no_parity(one("segments/*/tokens.npy", last_byte)), 1),
    "offsets gone": (one("segments/*/offsets.npy", Path.unlink), 0),
    "offsets flipped, and no parity": (no_parity(one("segments/*/offsets.npy", last_byte)), None),
    "offsets gone, and no parity": (no_parity(one("segments/*/offsets.npy", Path.unlink)), None),
    "centroids flipped": (one("codebooks/*/centroids.npy", two_blocks), None),
    "residuals gone": (one("codebooks/*/residuals.npy", Path.unlink), None),
    "a folder gone": (lambda path: shutil.rmtree(max((path / "segments").iterdir())), None),
    "all folders gone": (lambda path: [shutil.rmtree(path / name) for name in ("segments", "codebooks")], None),
    "a text": (sql("UPDATE contents SET text = 'x' WHERE hash = 'h2-2'"), 1),
    "a text of bytes": (sql("UPDATE contents SET text = CAST(x'ff41' AS TEXT) WHERE hash = 'h2-2'"), 1),
    "a document": (sql("UPDATE documents SET metadata = '{' WHERE id = 'd2'"), 1),
    "a document's id": (sql("UPDATE documents SET id = 'e2' WHERE id = 'd2'"), 1),
    "no text": (sql("DELETE FROM contents WHERE hash = 'h2-2'"), 1),
    "no document": (sql("DELETE FROM documents WHERE id = 'd2'"), 1),
    "windows flipped": (no_parity(one("segments/*/windows.npy", last_byte)), 8),
    "windows cut": (one("segments/*/windows.npy", cut), None),
    "windows gone": (one("segments/*/windows.npy", Path.unlink), None),
    "how many windows": (sql("UPDATE contents SET windows = 3 WHERE hash = 'h2-2'"), 1),
    "what is deleted": (sql("UPDATE deleted SET rows = zeroblob(length(rows))"), 0),
    "what is deleted, and its type": (sql("UPDATE deleted SET rows = 'x'"), 0),
    "what is deleted is gone": (sql("DELETE FROM deleted"), 0),
    "what is deleted of nobody": (sql("INSERT INTO deleted VALUES (99, x'', 0)"), 0),
    "a source": (sql("UPDATE sources SET state = '{}'"), 0),
    "a source's name": (sql("UPDATE sources SET name = 't.py'"), 0),
    "filters": (sql("DELETE FROM metadata WHERE value = 2"), 0),
    "filters of others": (sql("INSERT INTO metadata VALUES ('n', 7, 1)"), 0),
    "words": (sql("UPDATE postings SET data = x'00' WHERE word = 'parse'"), 0),
    "no words": (sql("DELETE FROM postings", "DELETE FROM runs"), 0),
    "lengths": (sql("UPDATE lengths SET checksum = 0"), 0),
    "runs": (sql("UPDATE runs SET postings = 1"), 0),
    "counts": (sql("UPDATE segments SET live_rows = live_rows + 1"), 0),
    "a segment's row": (sql("UPDATE segments SET tokens = 1 WHERE key = (SELECT max(key) FROM segments)"), None),
    "a codebook's row": (sql("UPDATE codebooks SET lists = 1 WHERE key = (SELECT min(key) FROM codebooks)"), None),
    "files": (sql("UPDATE files SET checksums = 7 WHERE name = 'codes.npy'"), 0),
    "files' sizes": (sql("UPDATE files SET bytes = 7 WHERE name = 'codes.npy'"), 0),
    "files' parity": (forget_parity, 0),
    "files' checksums": (sql("UPDATE files SET checksum = x'00'"), 0),
    "files' names": (sql("UPDATE files SET name = '../x' WHERE name = 'codes.npy'"), None),
    "files of nobody": (sql("INSERT INTO files VALUES ('x', 'y', 0, x'', x'', x'')"), 0),
}


@pytest.mark.parametrize("name", HARMS)
def test_what_is_left_verifies_and_answers_as_before(path: Path, name: str) -> None:
    harm, most = HARMS[name]
    make_packed(path)
    with open_index(path) as index:
        assert index.repair() == []
        before = {document.id for document in index.scan()}
        generation = index.generation
    shutil.copytree(path, path.with_name("sound"))
    harm(path)
    with open_index(path) as index:
        assert index.verify() != []
        done = index.repair()
        assert done != []
        assert all("\n" not in line for line in done)
        assert index.verify() == []
        assert index.generation == generation + 1
        left = {document.id for document in index.scan()}
        assert left <= before
        assert most is None or len(before) - len(left) <= most
        with open_index(path.with_name("sound")) as sound:
            assert answers(index, left) == answers(sound, left)
            for found, expected in zip(scores(index, left), scores(sound, left), strict=True):
                assert found == pytest.approx(expected, abs=1e-4)
            assert held_equal(path, path.with_name("sound"), left)
        for id in before - left:
            assert any(repr(id) in line or name in ("no document", "a document's id") for line in done)
        assert index.repair() == []
        index.add(["more"], [np.eye(4)])
        index.compact(retrain=True)
        assert index.verify() == []


def make_dense(search: plan.Search) -> Harm:
    def made(path: Path) -> None:
        vectors = clustered(700, seed=1)
        with pytest.MonkeyPatch.context() as patch:
            if search != "flat":  # as so few are anyway
                patch_table(patch, search)
            fill(path, vectors).close()

    return made


def make_joint_with(search: plan.Search) -> Harm:
    def made(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch_table(patch, search, flat=3)
            make_joint(path)

    return made


MADE: dict[str, Harm] = {
    "raw": make,
    "packed": make_packed,
    "joint": make_joint,
    "joint, lists": make_joint_with("lists"),
    "dense": make_dense("flat"),
    "dense, graph": make_dense("graph"),
    "dense, lists": make_dense("lists"),
}
ONE_BLOCK = {"a byte": last_byte, "some bytes": some_bytes, "a block": whole_block}


def all_answers(path: Path) -> Any:
    """All that an index answers, whatever its kind."""
    with open_index(path) as index:
        if isinstance(index, MultiVectorIndex):
            return everything(index)
        dim = index.dim
        asked = np.eye(dim, dtype=np.float32) if isinstance(index, DenseIndex) else [both(np.eye(dim))]
        return list(index.scan()), index.search(asked, 20), index.search(asked, 5, exact=True), index.lexical(["d"], 9)


@pytest.mark.parametrize("harm", ONE_BLOCK)
@pytest.mark.parametrize("made", MADE)
def test_one_damaged_block_of_every_file_costs_nothing(path: Path, made: str, harm: str) -> None:
    MADE[made](path)
    sound = {file: file.read_bytes() for parent in ("segments", "codebooks") for file in path.glob(f"{parent}/*/*")}
    expected = all_answers(path)
    for file in sound:
        ONE_BLOCK[harm](file)
    harmed = {file for file, content in sound.items() if file.read_bytes() != content}
    assert len(harmed) > len(sound) - 3  # but for a block that was all zeros
    with open_index(path) as index:
        said = index.verify()
        assert {file for file in sound if any(line.startswith(f"{file} is damaged") for line in said)} == harmed
        done = index.repair()
        assert sorted(done) == sorted(f"{file.relative_to(path)} was restored, and is as it was" for file in harmed)
        assert index.verify() == []
        assert index.repair() == []
    assert {file: file.read_bytes() for file in sound} == sound
    assert all_answers(path) == expected


def held_equal(path: Path, other: Path, ids: set[str]) -> bool:
    one, two = held(path), held(other)
    return all(np.array_equal(a, b) for id in ids for a, b in zip(one[id], two[id], strict=True))


def test_a_dropped_documents_source_is_read_again_and_others_are_not(path: Path) -> None:
    with MultiVectorIndex.create(path, 4) as index:
        with index.writer() as writer:
            writer.add([entry(i, i, f"s{i}.py") for i in range(6)])
            for i in range(6):
                writer.set_source(f"s{i}.py", {"size": i})
        sql("UPDATE contents SET text = 'x' WHERE hash = 'h2-2'")(path)
        [line, *_] = index.repair()
        assert "1 documents are lost: 'd2'" in line
        assert index.sources() == {f"s{i}.py": {"size": i} if i != 2 else {} for i in range(6)}
        sql("UPDATE documents SET source = 's4.py' WHERE id = 'd5'")(path)  # nobody knows that it was of s5.py
        assert index.repair() != []
        assert set(map(str, index.sources().values())) == {"{}"}


def test_a_dense_index_and_large_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((400, 8)).astype(np.float32)
    with DenseIndex.create(path, 8) as index:
        index.add([f"d{i:03}" for i in range(400)], vectors)
        before = {m.id: m.score for m in index.search(vectors[:1], 400)[0]}
        [file] = path.glob("segments/*/vectors.npy")
        flip(file, files.HEADER + 32 * 100)
        flip(file, files.HEADER + 32 * 200)
        [lost, copied, *_] = index.repair()
        left = {m.id: m.score for m in index.search(vectors[:1], 400)[0]}
        assert before.keys() - left.keys() == {
            f"d{i:03}"
            for first in (100, 196)  # 256 bytes are eight rows
            for i in range(first, first + 8)
        }
        assert "16 documents are lost: 'd100'" in lost
        assert "384 of 400 windows were copied" in copied
        assert left == {id: before[id] for id in left}
        assert index.verify() == []


def test_what_cannot_be_repaired_is_said_in_a_line(path: Path) -> None:
    make(path)
    database = path / "catalog.sqlite"
    sound = database.read_bytes()
    for harmed in (sound[: len(sound) // 2], sound[:4096] + os.urandom(len(sound) - 4096)):
        database.write_bytes(harmed)
        with pytest.raises(IndexFormatError, match=r"restore it from a copy, or index again") as caught:
            repaired(path)
        assert "\n" not in str(caught.value)
        assert database.read_bytes() == harmed
    database.write_bytes(sound)
    with open_index(path) as index, index.writer(), pytest.raises(IndexBusyError, match="being written"):
        repaired(path)


def test_killed_a_repair_can_be_run_again(path: Path, counted: Callable[[str], None]) -> None:
    origin = path.with_name("origin")
    make_packed(origin)
    for name in ("offsets gone", "lists flipped", "codes flipped", "a text", "words", "filters"):
        HARMS[name][0](origin)
    shutil.copytree(origin, path)
    steps = count_steps(lambda: repaired(path))
    expected = state(path)
    tried = np.unique(np.linspace(1, steps, 40).astype(int)).tolist()
    for step in tried:
        shutil.rmtree(path)
        shutil.copytree(origin, path)
        assert in_child(dying_at(step, lambda: repaired(path), effects=True)) == -signal.SIGKILL
        repaired(path)
        assert state(path) == expected
    counted(f"killed at {len(tried)} of {steps} steps")


def repaired(path: Path) -> None:
    with open_index(path) as index:
        index.repair()


@pytest.mark.parametrize("seed", range(60))
def test_any_changed_byte_of_the_catalogue_is_mended_or_said(path: Path, seed: int) -> None:
    make_packed(path)
    with open_index(path) as index:
        before = {document.id: document for document in index.scan()}
        index.compact()
    random = np.random.default_rng(seed)
    database = path / "catalog.sqlite"
    flip(database, int(random.integers(100, database.stat().st_size)))
    try:
        repaired(path)
    except IndexFormatError:
        return
    with open_index(path) as index:
        assert index.verify() == []
        assert all(before[document.id] == document for document in index.scan())
