"""Files to Documents: formats, encodings, ids and metadata, and what a bad file does."""

import gzip
import io
import json
import os
from contextlib import suppress
from pathlib import Path

import pypdf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbretrieve.corpus.decode import _MARKS, content_hash, decode
from mbretrieve.corpus.formats import code_language
from mbretrieve.corpus.read import read_documents
from mbretrieve.corpus.records import SkipFile, Skipped, SourceFile, WalkOptions
from mbretrieve.corpus.walk import walk
from mbretrieve.types import Document

WHOLE = WalkOptions(unit="document")


def source(folder: Path, name: str, content: str | bytes) -> SourceFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return SourceFile(path, name, path.stat().st_size, path.stat().st_mtime_ns)


def read(
    folder: Path,
    name: str,
    content: str | bytes,
    options: WalkOptions | None = None,
    skipped: Skipped | None = None,
) -> list[Document]:
    return list(read_documents(source(folder, name, content), options or WalkOptions(), skipped))


def pdf(*pages: str) -> bytes:
    """Write a PDF by hand, a line of text a page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        kids.append(f"{len(objects) + 1} 0 R")
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {len(objects) + 2} 0 R /Resources {font} >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} /MediaBox [0 0 612 792] >>"
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = (
        f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n"
    )
    return out + trailer.encode() + b"%%EOF\n"


def test_code_comes_with_its_place(tmp_path: Path) -> None:
    text = "import os\nimport sys\n\n\nclass Foo(Bar):\n    x = 1\n\n    def go(self):\n        return os\n"
    head, foo, go = read(tmp_path, "src/deep/down/in/app.py", text)
    assert (head.id, foo.id, go.id) == tuple(f"src/deep/down/in/app.py::{name}" for name in ("block", "Foo", "Foo.go"))
    assert go.text == "    def go(self):\n        return os\n"
    assert go.context == "deep/down/in/app.py\nclass Foo(Bar)"
    assert go.metadata == {
        "path": "src/deep/down/in/app.py",
        "start_line": 8,
        "end_line": 9,
        "language": "python",
        "unit": "method",
        "name": "Foo.go",
    }


def test_ids_are_unique_and_stay_when_lines_move(tmp_path: Path) -> None:
    text = "def f(): pass\ndef f(): pass\nx = 1\ny = 2\ndef g(): pass\nclass A:\n    def f(self): pass\nz = 3\n"
    ids = [document.id for document in read(tmp_path, "a.py", text)]
    assert ids == ["a.py::f", "a.py::f#2", "a.py::block", "a.py::g", "a.py::A", "a.py::A.f", "a.py::block#2"]
    assert [document.id for document in read(tmp_path, "a.py", "\n\n# more\n\n" + text)] == ids
    titles = [document.id for document in read(tmp_path, "a.md", "# A\nx\n# A#2\nx\n# A\nx\n")]
    assert titles == ["a.md::A", "a.md::A#2", "a.md::A#3"]


@pytest.mark.parametrize(
    ("name", "language", "unit"),
    [
        ("a.md", "markdown", "section"),
        ("a.rst", "restructuredtext", "section"),
        ("a.txt", "text", "section"),
        ("README", "text", "section"),
        ("a.yaml", "yaml", "block"),
        ("Dockerfile", "dockerfile", "block"),
        ("a.unknown", "text", "block"),
        ("a.KT", "kotlin", "block"),
        ("a.html", "html", "section"),
        ("rows.jsonl", "jsonl", "block"),
    ],
)
def test_text_of_each_format(tmp_path: Path, name: str, language: str, unit: str) -> None:
    text = "Title one\n\nsome words\n"
    (document,) = read(tmp_path, name, text)
    assert (document.metadata["language"], document.metadata["unit"]) == (language, unit)
    (whole,) = read(tmp_path, name, text, WHOLE)
    assert (whole.id, whole.metadata["unit"]) == (f"{name}::document", "document")
    if language != "html":
        assert document.text == whole.text == text
        assert (whole.metadata["start_line"], whole.metadata["end_line"]) == (1, 3)


def test_the_unit_option_leaves_code_in_functions(tmp_path: Path) -> None:
    assert [document.id for document in read(tmp_path, "a.py", "def f(): pass\ndef g(): pass\n", WHOLE)] == [
        *("a.py::f", "a.py::g"),
    ]


@pytest.mark.parametrize(
    ("first_line", "language"),
    [
        ("#!/bin/sh", "bash"),
        ("#!/usr/bin/env python3.11", "python"),
        ("#! /usr/bin/python3", "python"),
        ("#!/usr/bin/env -S A=1 node --flag", "javascript"),
        ("#!/usr/bin/env", None),
        ("#!/usr/bin/awk -f", None),
        ("plain", None),
    ],
)
def test_scripts_are_known_by_their_first_line(first_line: str, language: str | None) -> None:
    found = code_language("run", f"{first_line}\nx=1\n")
    assert (found.name if found else None) == language
    assert code_language("run.txt", f"{first_line}\n") is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\r\nlines\r\n", "plain\r\nlines\r\n"),
        ("עברית, 中文, 😀\n".encode(), "עברית, 中文, 😀\n"),
        (b"\xef\xbb\xbfmarked\n", "marked\n"),
        (b"\xff\xfe" + "déjà\r\n".encode("utf-16-le"), "déjà\r\n"),
        (b"\xfe\xff" + "déjà".encode("utf-16-be"), "déjà"),
        (b"\xff\xfe\0\0" + "x\n".encode("utf-32-le"), "x\n"),
        (b"/* caf\xe9 \x93quoted\x94 \x81 */ int x;\n", "/* café “quoted” \x81 */ int x;\n"),
        (b"null\0 bytes\0 here\n", "null\0 bytes\0 here\n"),
    ],
)
def test_bytes_are_decoded(data: bytes, text: str) -> None:
    assert decode(data) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes(range(256)) * 4, "binary"),
        (b"\x7fELF" + b"\0" * 60, "binary"),
        ("no mark".encode("utf-16-le") * 9, "binary"),
        ("кириллица".encode("cp1251"), "not decodable"),
        (b"\xff\xfea", "not decodable"),
        (b"caf\xe9 \0", "not decodable"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(SkipFile) as refusal:
        decode(data)
    assert refusal.value.reason == reason


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    with suppress(SkipFile):
        assert decode(data).encode("utf-8") or data in (b"", *(mark for mark, _ in _MARKS))


def test_null_bytes_and_windows_lines_are_kept(tmp_path: Path) -> None:
    documents = read(tmp_path, "a.py", "def f():\r\n    return '\0'\r\n\r\ndef g():\r\n    pass\r\n")
    assert [document.text for document in documents] == [
        "def f():\r\n    return '\0'\r\n\r\n",
        "def g():\r\n    pass\r\n",
    ]
    assert documents[1].metadata["start_line"] == 4


ROWS = """{"_id": "a", "title": "Paris", "text": "is in France", "year": 1999, "lang": "fr", "tags": [], "path": "no"}
not json
{"_id": 7, "text": "seven", "score": NaN, "huge": 99999999999999999999, "ok": true, "half": "\\ud800"}

{"text": "no id"}
[1]
{"_id": "e", "text": "", "title": ""}
{"_id": "t", "title": "only a title", "text": null}
"""


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
@pytest.mark.parametrize("options", [WalkOptions(), WHOLE])
def test_rows_in_beirs_layout(tmp_path: Path, name: str, options: WalkOptions) -> None:
    data = gzip.compress(ROWS.encode()) if name.endswith(".gz") else ROWS.encode()
    skipped = Skipped()
    paris, seven, title = read(tmp_path, name, data, options, skipped)
    assert (paris.id, paris.text, paris.context) == (f"{name}::a", "is in France", "Paris")
    assert paris.metadata == {
        "path": name,
        "start_line": 1,
        "end_line": 1,
        "language": "jsonl",
        "unit": "document",
        "name": "a",
        "title": "Paris",
        "year": 1999,
        "lang": "fr",
    }
    assert seven.id == f"{name}::7"
    assert {key: seven.metadata.get(key) for key in ("score", "huge", "ok", "half")} == {
        "score": None,
        "huge": "99999999999999999999",
        "ok": True,
        "half": "?",
    }
    assert (title.text, title.context) == ("only a title", "")
    assert skipped.examples == {
        "malformed JSON line": [f"{name}:2", f"{name}:5", f"{name}:6"],
        "JSON line without text": [f"{name}:7"],
    }


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    file = source(tmp_path, "corpus.jsonl", "")
    with file.path.open("w") as rows:
        for number in range(50_000):
            rows.write(json.dumps({"_id": str(number), "text": "word " * 20}) + "\n")
    documents = read_documents(file, WalkOptions())
    assert next(documents).id == "corpus.jsonl::0"
    assert sum(1 for _ in documents) == 49_999


def test_a_row_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbretrieve.corpus.jsonl.ROW_BYTES", 50)
    long = json.dumps({"_id": "long", "text": "x" * 500})
    rows = f'{{"_id": "a", "text": "x"}}\n{long}\n{{"_id": "b", "text": "y"}}\n{long}'
    skipped = Skipped()
    found = read(tmp_path, "c.jsonl", rows, skipped=skipped)
    assert [(row.id, row.metadata["start_line"]) for row in found] == [("c.jsonl::a", 1), ("c.jsonl::b", 3)]
    assert skipped.counts == {"malformed JSON line": 2}


def test_a_truncated_archive_gives_the_rows_before_the_break(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"_id": str(n), "text": os.urandom(30).hex()}) + "\n" for n in range(1000))
    data = gzip.compress(rows.encode())
    skipped = Skipped()
    found = read(tmp_path, "c.jsonl.gz", data[: len(data) // 2], skipped=skipped)
    assert 100 < len(found) < 1000
    assert list(skipped.counts) == ["unreadable"]
    with pytest.raises(SkipFile, match="unreadable \\(Not a gzipped file"):
        read(tmp_path, "d.jsonl.gz", b"no archive")


def test_json_lines_of_another_layout_are_lines(tmp_path: Path) -> None:
    rows = '{"question": "a"}\n{"question": "b"}\n'
    (document,) = read(tmp_path, "q.jsonl", rows)
    assert (document.text, document.metadata["unit"]) == (rows, "block")
    with pytest.raises(SkipFile, match="over the size limit"):
        read(tmp_path, "q.jsonl", rows * 100_000)


def test_pdf_pages(tmp_path: Path) -> None:
    data = pdf("The first page.", "", "The third page.")
    first, third = read(tmp_path, "a.pdf", data)
    assert (first.id, first.text, first.metadata["page"]) == ("a.pdf::page 1", "The first page.", 1)
    assert (third.id, third.metadata["page"], third.metadata["language"]) == ("a.pdf::page 3", 3, "pdf")
    (whole,) = read(tmp_path, "a.pdf", data, WHOLE)
    assert whole.text == "The first page.\n\nThe third page."


def test_pdfs_without_text_are_skipped(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    blank, locked = io.BytesIO(), io.BytesIO()
    writer.write(blank)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(locked)
    reasons = {blank.getvalue(): "no text", locked.getvalue(): "encrypted", b"%PDF-1.4 x": "malformed"}
    for data, reason in reasons.items():
        with pytest.raises(SkipFile) as refusal:
            read(tmp_path, "a.pdf", data)
        assert refusal.value.reason == reason
        assert "\n" not in str(refusal.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_broken_pdfs_are_read_or_skipped(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(pdf("One page of text.", "And another."))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(SkipFile):
        assert read(tmp_path, "a.pdf", bytes(content[: data.draw(st.integers(0, len(content)))]))


def test_notebooks(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "x = 1\ny = 2", "outputs": [{"text": "unseen"}]},
        {"cell_type": "code", "source": ""},
    ]
    title, code = read(tmp_path, "a.ipynb", json.dumps({"cells": cells}))
    assert (title.text, title.metadata["unit"], title.metadata["cell"]) == ("# Title\nwords", "section", 1)
    assert (code.text, code.metadata["start_line"], code.metadata["end_line"]) == ("x = 1\ny = 2", 4, 5)
    for broken in ("{}", "[]", "{", '{"cells": [1]}', "[" * 100_000):
        with pytest.raises(SkipFile, match="malformed"):
            read(tmp_path, "a.ipynb", broken)


def test_machine_made_lines_are_refused(tmp_path: Path) -> None:
    packed = "var a=1;" * 5000
    for name in ("a.js", "a.css", "a.json"):
        with pytest.raises(SkipFile, match="minified"):
            read(tmp_path, name, packed)
    assert read(tmp_path, "a.md", "A paragraph in one line. " * 500)  # prose may be written so
    assert read(tmp_path, "a.py", "x = 1\n" * 500 + f"data = '{'x' * 9000}'\n")


def test_files_that_are_not_what_they_were(tmp_path: Path) -> None:
    gone = source(tmp_path, "gone.py", "x = 1\n")
    gone.path.unlink()
    folder = SourceFile(tmp_path, "folder.py", 1, 0)
    pipe = source(tmp_path, "pipe.py", "x")
    pipe.path.unlink()
    os.mkfifo(pipe.path)
    dangling = SourceFile(tmp_path / "link.py", "link.py", 1, 0)
    dangling.path.symlink_to("nothing")
    grown = source(tmp_path, "grown.py", "x = 1\n")
    grown.path.write_text("x = 1\n" * 500_000)
    for file, reason in (
        (gone, "unreadable"),
        (folder, "unreadable"),
        (pipe, "not a regular file"),
        (dangling, "unreadable"),
        (grown, "over the size limit"),
        (source(tmp_path, "empty.py", ""), "empty"),
        (source(tmp_path, "blank.md", " \n\n"), "empty"),
        (source(tmp_path, "empty.jsonl", ""), "empty"),
        (source(tmp_path, "empty.pdf", ""), "malformed"),
    ):
        with pytest.raises(SkipFile) as refusal:
            read_documents(file, WalkOptions())
        assert refusal.value.reason == reason, file.name
    for file in (gone, pipe):
        with pytest.raises(SkipFile):
            content_hash(file)


def test_content_hashes_tell_contents_apart(tmp_path: Path) -> None:
    one, same = source(tmp_path, "a", b"x" * 3_000_000), source(tmp_path, "b", b"x" * 3_000_000)
    other = source(tmp_path, "c", b"x" * 2_999_999 + b"y")
    assert content_hash(one) == content_hash(same) != content_hash(other)
    assert len(content_hash(one)) == 32


def test_a_walk_and_its_documents_go_together(tmp_path: Path) -> None:
    for name in ("a.py", "sub/line\nbreak.md", os.fsdecode(b"caf\xe9.txt")):
        source(tmp_path, name, "some text\n")
    source(tmp_path, "bad.py", b"\0" * 100)
    skipped = Skipped()
    ids = []
    for file in walk(tmp_path, WalkOptions(), skipped):
        try:
            ids += [document.id for document in read_documents(file, WalkOptions(), skipped)]
        except SkipFile as refusal:
            skipped.add(refusal.reason, file.name)
    assert ids == ["a.py::block", "caf\\xe9.txt::section", "sub/line\nbreak.md::section"]
    assert skipped.lines() == ["1 binary: bad.py"]
