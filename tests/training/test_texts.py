"""Texts from every kind of source, and their tokens on disk: in order, all of them, and the same ones after a stop."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from mbretrieve.corpus.records import Skipped
from mbretrieve.errors import DataError
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.training.pretrain_config import TextConfig
from mbretrieve.training.texts import read_texts
from mbretrieve.training.token_store import TokenStore
from tests.models import small

ROWS = [{"title": "One", "text": "the first"}, {"title": None, "text": " \n"}, {"title": "", "text": "the third"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of each kind, a file of text, one that is binary and one that git ignores."""
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, "utf-8")
    (folder / "deep" / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a column", "title": "P"}]), folder / "rows.parquet")
    (folder / "code.py").write_text("def f():\n    return 1\n", "utf-8")
    (folder / "photo.bin").write_bytes(bytes(range(256)) * 8)
    (folder / "left.txt").write_text("ignored", "utf-8")
    (folder / ".gitignore").write_text("left.txt\n", "utf-8")
    return folder


def texts(skipped: Skipped | None = None, **source: object) -> list[str]:
    return list(read_texts(TextConfig(**source), Skipped() if skipped is None else skipped))


def test_rows_files_and_folders(folder: Path) -> None:
    assert texts(path=str(folder / "rows.jsonl")) == ["the first", "the third"]
    assert texts(path=str(folder / "deep" / "rows.jsonl.gz"), fields=("title", "text")) == [
        "One\nthe first",
        "the third",
    ]
    assert texts(path=str(folder / "rows.parquet"), fields=("text", "title")) == ["a column\nP"]
    assert texts(path=str(folder / "code.py")) == ["def f():\n    return 1\n"]
    skipped = Skipped()
    found = texts(skipped, path=str(folder))
    assert found == ["def f():\n    return 1\n", "the first", "the third", "the first", "the third", "a column"]
    assert skipped.counts["blank"] == 2
    assert "left.txt" in str(skipped.examples)
    assert "photo.bin" in str(skipped.examples)
    assert texts(path=str(folder), limit=2) == found[:2]


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: no field 'body', it has title, text"):
        texts(path=str(folder / "rows.jsonl"), fields=("body",))
    (folder / "rows.jsonl").write_text('{"text": 5}\n', "utf-8")
    with pytest.raises(DataError, match=r"rows.jsonl:1: 'text' is a int, expected text"):
        texts(path=str(folder / "rows.jsonl"))
    with pytest.raises(DataError, match="nowhere is not there"):
        texts(path=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no file to read texts from"):
        texts(path=str(tmp_path / "empty"))


def test_tokens_come_back_from_disk(folder: Path, tmp_path: Path) -> None:
    small.tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    sources = [TextConfig(path=str(folder / "code.py")), TextConfig(path=str(folder / "rows.jsonl"), name="rows")]
    store = TokenStore.open(tmp_path / "tokens", sources, tokenizer)
    expected = ["def f():\n    return 1\n", "the first", "the third"]
    ids = [content.ids for content in tokenizer.first_tokens(expected, 10**6)]
    assert store.sources == {"code.py": range(1), "rows": range(1, 3)}
    assert store.skipped == [f"1 blank: {folder / 'rows.jsonl'}:2"]
    assert store.lengths.tolist() == [len(own) for own in ids]
    for text, own in enumerate(ids):
        assert store.tokens(text, 0, len(own)).tolist() == own
        assert store.tokens(text, 1, 2).tolist() == own[1:3]
    assert store.tokens(0, 0, 1).dtype == np.int64


def test_a_store_is_kept_while_its_texts_are_the_same(folder: Path, tmp_path: Path) -> None:
    small.tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    source, place = TextConfig(path=str(folder / "code.py")), tmp_path / "tokens"
    first = TokenStore.open(place, [source], tokenizer)
    written = (place / "starts.npy").stat().st_mtime_ns
    assert TokenStore.open(place, [source], tokenizer).identity == first.identity
    assert (place / "starts.npy").stat().st_mtime_ns == written
    assert Tokenizer.load(place).fingerprint() == tokenizer.fingerprint()
    status = (folder / "code.py").stat()
    (folder / "code.py").write_text("x = 1\n".ljust(status.st_size), "utf-8")
    os.utime(folder / "code.py", ns=(status.st_atime_ns, status.st_mtime_ns))  # no time and no size tells
    again = TokenStore.open(place, [source], tokenizer)
    assert again.identity != first.identity
    assert len(again.lengths) == 1


def test_sources_without_a_text_are_refused(tmp_path: Path) -> None:
    small.tokenizer(tmp_path / "tokenizer")
    (tmp_path / "blank.txt").write_text(" \n", "utf-8")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    with pytest.raises(DataError, match=r"blank.txt has no text"):
        TokenStore.open(tmp_path / "tokens", [TextConfig(path=str(tmp_path / "blank.txt"))], tokenizer)
