"""What data holds, as a short string: a run goes on only with the rows that it began with.

A file is hashed whole up to a gibibyte, JSON lines unpacked; of a longer one its size and 1,024 blocks, evenly
spread, so that an edit between them that leaves the size as it is goes unseen. Of a dataset of the Hub it is how many
rows there are and 64 of them, evenly spread; of one that is streamed, its first 16 rows.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

_WHOLE = 2**30  # bytes
_BLOCKS, _BLOCK_BYTES = 1024, 2**16
_ROWS, _FIRST_ROWS = 64, 16


def of_file(path: Path) -> str:
    """Hash a file's bytes. Raises: OSError."""
    with path.open("rb") as file:
        return of_open(file)


def of_open(file: IO[bytes]) -> str:
    """Hash the bytes of an open file, which is then at its beginning again. Raises: OSError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = _new(f"{size} bytes")
    if size <= _WHOLE:
        while block := file.read(2**20):
            digest.update(block)
    else:
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    file.seek(0)
    return str(digest.hexdigest())


def of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hash a table's rows."""
    count = len(rows)
    places = sorted({count * number // _ROWS for number in range(_ROWS)} | {count - 1}) if count else []
    return joined([f"{count} rows", *(_said(rows[at]) for at in places)])


def of_first_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash the first rows of a stream."""
    return joined([_said(row) for row in islice(rows, _FIRST_ROWS)])


def joined(parts: Iterable[str]) -> str:
    """Hash several parts, in their order."""
    digest = _new("")
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode("utf-8", "replace"))
    return str(digest.hexdigest())


def _new(salt: str) -> Any:
    return hashlib.blake2b(salt.encode(), digest_size=16)


def _said(row: Mapping[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=str)
