"""JSON lines, one object each, of files that anyone may have written: what is wrong is named by file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mbretrieve.errors import DataError

MOST_LINE_BYTES = 256 * 2**20
"""Of one line: a file without line ends should not fill the memory."""


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file, each with its place ("FILE:1"). Raises: as ``read_lines`` and ``parse``."""
    for place, line in read_lines(path):
        yield place, parse(line, place)


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a file, gzipped if its name ends so, each with its place.

    Raises: DataError for what cannot be read, and a line of more than ``MOST_LINE_BYTES``.
    """
    with reading(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file, path), 1):
            yield f"{path}:{number}", line


def bounded_lines(file: IO[bytes] | gzip.GzipFile, path: Path) -> Iterator[bytes]:
    """Yield the lines of an open file, which is called ``path``. Raises: DataError for one that is too long."""
    number = 0
    while line := file.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > MOST_LINE_BYTES:
            raise DataError(
                f"{path}:{number}: a line of more than {MOST_LINE_BYTES:,} bytes, expected one JSON object a line"
            )
        yield line


def parse(line: bytes, place: str) -> dict[str, Any]:
    """Read one line. Raises: DataError, with its place, for what is not an object."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not a line of JSON in UTF-8 ({error}): mend or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {line[:60].decode('utf-8', 'replace').strip()}")
    return row


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of what keeps a file from being read which file it is."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): fetch or write it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
