"""Texts to pre-train on: rows of JSON lines and parquet, plain files, folders of these; one text at a time."""

from collections.abc import Iterator
from pathlib import Path

from mbretrieve.corpus.decode import decode, read_bytes
from mbretrieve.corpus.records import SkipFile, Skipped, SourceFile, WalkOptions
from mbretrieve.corpus.walk import walk
from mbretrieve.errors import DataError
from mbretrieve.training.config import SourceConfig
from mbretrieve.training.data.tables import Row, open_stream
from mbretrieve.training.pretrain_config import TextConfig

_TABLES = (".jsonl", ".jsonl.gz", ".parquet")


def read_texts(source: TextConfig, skipped: Skipped) -> Iterator[str]:
    """Yield a source's texts that are not blank, in one order: rows in theirs, files by name.

    Of a folder, files that hold no text are added to ``skipped``; so are blank texts.
    Raises: DataError naming the file, and the line of a row that is no JSON or lacks one of the ``fields``.
    """
    return (text for _, text in placed_texts(source, skipped))


def placed_texts(source: TextConfig, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Yield the same texts, each behind the place where it stands: a file's name, or a table's and the row."""
    count = 0
    for place, text in _texts(source, skipped):
        if source.limit is not None and count >= source.limit:
            return
        if text.strip():
            count += 1
            yield place, text
        else:
            skipped.add("blank", place)


def files_of(source: TextConfig) -> list[Path]:
    """Return the files that a source is read from, in order. Raises: DataError if it is not there."""
    return [file.path for file in _files(source, Skipped())]


def _files(source: TextConfig, skipped: Skipped) -> list[SourceFile]:
    path = Path(source.path).expanduser()
    if path.is_file():
        status = path.stat()
        return [SourceFile(path, path.name, status.st_size, status.st_mtime_ns)]
    if not path.is_dir():
        raise DataError(f"{source.path} is not there: expected a file or a folder of texts")
    found = [file for file in walk(path, WalkOptions(), skipped) if not _is_table(file.path)]
    # By their suffixes the walk takes packed tables for archives, which an index has no use for.
    for table in sorted(file for file in path.rglob("*") if _is_table(file) and file.is_file()):
        status = table.stat()
        found.append(SourceFile(table, table.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns))
    if not found:
        raise DataError(f"{source.path} has no file to read texts from: expected text, .jsonl, .jsonl.gz or .parquet")
    return found


def _texts(source: TextConfig, skipped: Skipped) -> Iterator[tuple[str, str]]:
    for file in _files(source, skipped):
        if _is_table(file.path):
            stream = open_stream(SourceConfig(path=str(file.path), streaming=True))
            for at, row in stream.rows():
                yield stream.place(at), _joined(row, source.fields, stream.place(at))
            continue
        try:
            yield file.name, decode(read_bytes(file, WalkOptions()))
        except SkipFile as error:
            skipped.add(error.reason, file.name)


def _joined(row: Row, fields: tuple[str, ...], place: str) -> str:
    """Return a row's fields, one below the other; a field may be null or empty, but not missing."""
    parts = []
    for field in fields:
        if field not in row:
            raise DataError(f"{place}: no field {field!r}, it has {', '.join(row)}: set fields of its [[text]]")
        if not isinstance(row[field], str | None):
            raise DataError(f"{place}: {field!r} is a {type(row[field]).__name__}, expected text")
        parts.append(row[field] or "")
    return "\n".join(part for part in parts if part)


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith(_TABLES)
