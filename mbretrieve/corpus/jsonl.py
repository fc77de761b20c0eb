"""JSON lines in BEIR's layout to passages: a row with `_id`, `text`, perhaps `title`, and further keys as metadata."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from mbretrieve.corpus.lines import Passage
from mbretrieve.corpus.records import Skipped
from mbretrieve.types import MetadataValue

ROW_BYTES = 16 << 20
_LOOK_AT = 100  # rows among which the first readable one shows the layout
_LARGEST = 1 << 63  # a database's integer
_OURS = frozenset({"path", "start_line", "end_line", "unit", "name"})
MALFORMED = "malformed JSON line"
EMPTY = "JSON line without text"


def unpacked(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return the stream to read rows from: unpacked if the name says that it is packed."""
    return cast(IO[bytes], gzip.open(stream)) if name.lower().endswith(".gz") else stream


def is_beir(stream: IO[bytes]) -> bool:
    """Tell from its first readable row whether a stream is in BEIR's layout."""
    for _ in range(_LOOK_AT):
        row = _row(stream.readline(ROW_BYTES))
        if row is not None:
            return "_id" in row and ("text" in row or "title" in row)
    return False


def read_jsonl(stream: IO[bytes], name: str, skipped: Skipped) -> Iterator[Passage]:
    """Yield a passage for each row, one row in memory at a time; ``name`` is its `_id`, its lines are the row's.

    A row that is not JSON, has no `_id`, or no text is added to ``skipped`` with its number; so is the rest of a file
    that breaks off (a truncated archive, a failing disk). Two rows may have the same `_id`.
    """
    number = 0
    try:
        while line := stream.readline(ROW_BYTES):
            number += 1
            whole = line.endswith(b"\n") or len(line) < ROW_BYTES
            while not whole:  # a row over the limit is passed over in pieces
                whole = (rest := stream.readline(ROW_BYTES)).endswith(b"\n") or not rest
                line = b"{"
            if not line.strip():
                continue
            row = _row(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            found = _passage(row, number) if row is not None else None
            if found is None:
                skipped.add(MALFORMED, f"{name}:{number}")
            elif not found.text:
                skipped.add(EMPTY, f"{name}:{number}")
            else:
                yield found
    except (OSError, EOFError, zlib.error) as error:
        skipped.add("unreadable", f"{name}, from line {number + 1} on ({error})")


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _passage(row: dict[str, Any], number: int) -> Passage | None:
    key, title, text = row.get("_id"), row.get("title") or "", row.get("text") or ""
    if (
        isinstance(key, bool)
        or not isinstance(key, str | int)
        or not isinstance(title, str)
        or not isinstance(text, str)
    ):
        return None
    known = _OURS | {"_id", "title", "text"}
    extra = {
        clean(name): value for name, raw in row.items() if name not in known and (value := _scalar(raw)) is not None
    }
    title, text = clean(title), clean(text)
    if title.strip():
        extra["title"] = title
    # A title alone is a text too.
    return Passage(text or title, number, number, "document", clean(str(key)), title if text else "", extra)


def _scalar(value: object) -> MetadataValue | None:
    """Return a value that metadata can hold, or None."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -_LARGEST <= value < _LARGEST else str(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def clean(text: str) -> str:
    """Replace lone surrogates, which JSON can spell and no encoder or database takes, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
