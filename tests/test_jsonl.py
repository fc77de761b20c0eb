"""JSON lines: every fault has its file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve import jsonl
from mbretrieve.errors import DataError

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), last=st.booleans())
def test_what_was_written_is_read(tmp_path_factory: Any, suffix: str, rows: list[dict[str, Any]], last: bool) -> None:
    path = tmp_path_factory.mktemp("lines") / f"rows.jsonl{suffix}"
    text = "\n".join(json.dumps(row) for row in rows) + "\n" * (last and bool(rows))
    content = text.encode()
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert list(jsonl.read_objects(path)) == [(f"{path}:{at}", row) for at, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{\n', r"rows.jsonl:2: not a line of JSON"),
        (b'{"a": 1}\n\n', r"rows.jsonl:2: not a line of JSON"),
        (b"\xff\n", r"rows.jsonl:1: not a line of JSON"),
        (b"[" * 100_000, r"rows.jsonl:1: not a line of JSON"),
        (b'{"a": 1}\n[1]\n', r"rows.jsonl:2: expected a JSON object, got \[1\]"),
        (b'{"a": "' + b"x" * 100 + b'"}\n', r"rows.jsonl:1: a line of more than 64 bytes"),
        (None, r"rows.jsonl cannot be read \(No such file or directory\)"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    if "64 bytes" in message:
        monkeypatch.setattr(jsonl, "MOST_LINE_BYTES", 64)
    with pytest.raises(DataError, match=message):
        list(jsonl.read_objects(path))


@pytest.mark.parametrize("harm", [lambda packed: packed[:-9], lambda packed: b"plain\n", lambda packed: packed[:20]])
def test_half_a_gzip_file_is_named(tmp_path: Path, harm: Any) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(harm(gzip.compress(b'{"a": 1}\n' * 1000)))
    with pytest.raises(DataError, match=r"rows.jsonl.gz is not a whole gzip file"):
        list(jsonl.read_objects(path))
