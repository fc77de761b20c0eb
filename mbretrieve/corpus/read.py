"""A file to its Documents: which format it is in, and the one place where units become Documents."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from mbretrieve.corpus.code import split_code
from mbretrieve.corpus.decode import content_hash, decode, read_bytes
from mbretrieve.corpus.languages import BY_SUFFIX
from mbretrieve.corpus.lines import Unit, pieces, split_lines
from mbretrieve.corpus.records import Skipped, SourceFile, WalkOptions
from mbretrieve.types import Document

__all__ = ["content_hash", "read_documents"]

_PATH_PARTS = 4  # of a long path, the folders nearest to the file say the most


def read_documents(file: SourceFile, options: WalkOptions, skipped: Skipped | None = None) -> Iterator[Document]:
    """Read a file and cut it into Documents; every line of it is in exactly one. Raises: SkipFile, and nothing else."""
    data = read_bytes(file, options)
    text = decode(data)
    lines = split_lines(text)
    language = BY_SUFFIX.get(PurePosixPath(file.name).suffix)
    if language:
        yield from _documents(file, lines, split_code(text, lines, language), language.name)
    else:
        yield from _documents(file, lines, [Unit(a, b, "block") for a, b in pieces(lines, 0, len(lines))], "text")


def _documents(file: SourceFile, lines: Sequence[str], units: Iterable[Unit], language: str) -> Iterator[Document]:
    used: set[str] = set()
    path = "/".join(PurePosixPath(file.name).parts[-_PATH_PARTS:])
    for unit in units:
        base = unit.name or unit.kind
        key, number = base, 1
        while key in used:
            number += 1
            key = f"{base}#{number}"
        used.add(key)
        yield Document(
            id=f"{file.name}::{key}",
            text="".join(lines[unit.start : unit.end]),
            metadata={
                "path": file.name,
                "start_line": unit.start + 1,
                "end_line": unit.end,
                "language": language,
                "unit": unit.kind,
                "name": unit.name,
            },
            context=f"{path}\n{unit.context}".strip(),
        )
