"""Checking an index whole: every row's checksum, every file's blocks, and that the parts fit each other."""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from mbretrieve.errors import MbretrieveError
from mbretrieve.index.catalogue import CONTENT_COLUMNS, FILE, Catalogue, checksum, file_checksum
from mbretrieve.index.files import MappedFolder, StoredFile
from mbretrieve.index.filters import SqlValue, stored_value
from mbretrieve.index.postings import checked, decode, read_lengths, word_crc
from mbretrieve.index.segments import CODEBOOKS, SEGMENTS, CodebookRecord, SegmentRecord, open_codebook, open_segment
from mbretrieve.index.view import load_view
from mbretrieve.index.windows import WINDOWS, is_complete
from mbretrieve.index.words import content_words
from mbretrieve.types import Metadata

DOCUMENTS = "SELECT key, id, content, source, metadata, checksum FROM documents"
FILES = "SELECT folder, name, bytes, checksums, parity, checksum FROM files"

# What must hold between the tables: each query counts the rows that break a rule.
RULES = {
    "documents without a text": "SELECT count(*) FROM documents WHERE content NOT IN (SELECT key FROM contents)",
    "texts without a document": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT content FROM documents)",
    "words of no run": "SELECT count(*) FROM postings WHERE run NOT IN (SELECT run FROM runs)",
    "runs with a wrong count of postings": (
        "SELECT count(*) FROM runs WHERE postings !="
        " (SELECT coalesce(sum(contents), 0) FROM postings WHERE postings.run = runs.run)"
    ),
    "files of no folder": (
        "SELECT count(*) FROM files WHERE folder NOT IN (SELECT name FROM segments UNION SELECT name FROM codebooks)"
    ),
    "segments that are not there, of which something is deleted": (
        "SELECT count(*) FROM deleted WHERE segment NOT IN (SELECT key FROM segments)"
    ),
    "segments without their codebook": (
        "SELECT count(*) FROM segments WHERE codebook IS NOT NULL AND codebook NOT IN (SELECT key FROM codebooks)"
    ),
}


def verify(catalogue: Catalogue) -> list[str]:
    """Return what is wrong with the generation that ``catalogue`` reads, one line each."""
    checks = (_database, _rows, _rules, wrong_filters, wrong_words, _segments, _windows)
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(catalogue)
        except MbretrieveError as error:
            problems.append(str(error))
        except FileNotFoundError as error:
            problems.append(f"{error.filename} is missing")
    said: dict[str, str] = {}
    for problem in problems:
        said.setdefault(problem.partition(" is damaged: ")[0], problem)  # of a file what was said first: the bytes
    return list(said.values())


def _database(catalogue: Catalogue) -> Iterator[str]:
    for (line,) in catalogue.rows("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"{FILE}: {' '.join(line.split())}"


def _rows(catalogue: Catalogue) -> Iterator[str]:
    for key, *fields, kept in catalogue.stream(f"SELECT key, {CONTENT_COLUMNS}, checksum FROM contents"):  # noqa: S608
        if checksum(*fields) != kept:
            yield f"{FILE}: content {key} was changed"
    for key, *fields, kept in catalogue.stream(DOCUMENTS):
        if checksum(*fields) != kept:
            yield f"{FILE}: the row of document {fields[0] or key!r} was changed"
    for name, state, kept in catalogue.stream("SELECT name, state, checksum FROM sources"):
        if checksum(name, state) != kept:
            yield f"{FILE}: the state of source {name!r} was changed"
    for row in catalogue.stream(FILES):
        if stored_file(row) is None:
            yield f"{FILE}: what it says of the file {row[1]!r} of {row[0]!r} was changed"


def stored_file(row: tuple[Any, ...]) -> StoredFile | None:
    """Return what a row of ``FILES`` says of its file, None if it was changed."""
    folder, name, size, checksums, parity, kept = row
    if not isinstance(size, int) or not isinstance(checksums, bytes) or not isinstance(parity, bytes):
        return None
    file = StoredFile(name, size, checksums, parity)
    return file if file_checksum(folder, file) == kept else None


def _rules(catalogue: Catalogue) -> Iterator[str]:
    for what, sql in RULES.items():
        [(count,)] = catalogue.rows(sql)
        if count:
            yield f"{FILE}: {count} {what}"


def wrong_filters(catalogue: Catalogue) -> Iterator[str]:
    """Compare the filters' table with the documents' metadata: for each document a sum over its entries."""
    stored: defaultdict[int, int] = defaultdict(int)
    for name, value, document in catalogue.stream("SELECT name, value, document FROM metadata"):
        stored[document] += _entry_crc(name, value)
    for key, *fields, kept in catalogue.stream(DOCUMENTS):
        if checksum(*fields) != kept:
            stored.pop(key, None)  # said by _rows
        elif stored.pop(key, 0) != _entries_sum(json.loads(fields[-1])):
            yield f"{FILE}: the filter entries of document {fields[0]!r} were changed"
    if stored:
        yield f"{FILE}: {len(stored)} documents that are not there have filter entries"


def _entries_sum(metadata: Metadata) -> int:
    return sum(_entry_crc(name, stored_value(value)) for name, value in metadata.items())


def _entry_crc(name: str, value: SqlValue) -> int:
    return zlib.crc32(repr((name, value)).encode())


def wrong_words(catalogue: Catalogue) -> Iterator[str]:
    """Compare the inverted index with the texts: each one's length, and a sum over its words and how often it has them.

    Postings of deleted contents stay until their run is merged; nothing finds them, for their length is 0.
    """
    lengths = read_lengths(catalogue).words
    sums = np.zeros(len(lengths), dtype=np.uint64)
    for run, word, size, data, kept in catalogue.stream(
        "SELECT run, word, contents, data, checksum FROM postings WHERE run IN (SELECT run FROM runs)"
    ):
        contents, counts = decode(size, checked(catalogue.index, run, word, size, data, kept))
        near = contents < len(sums)
        sums[contents[near]] += counts[near].astype(np.uint64) * np.uint64(word_crc(word))
    live = np.zeros(len(lengths), dtype=np.bool_)
    for key, context, text in catalogue.stream("SELECT key, context, text FROM contents"):
        words = content_words(context, text)
        if not words:
            continue
        expected = sum(map(word_crc, words)) % 2**64
        if key >= len(lengths) or lengths[key] != len(words) or sums[key] != expected:
            yield f"{FILE}: the words of content {key} were changed"
        if key < len(lengths):
            live[key] = True
    if strays := int(np.count_nonzero(lengths[~live])):
        yield f"{FILE}: {strays} contents that are not there have words"


def _segments(catalogue: Catalogue) -> Iterator[str]:
    index, codebooks = catalogue.index, {}
    records: list[CodebookRecord | SegmentRecord] = [*catalogue.codebooks(), *catalogue.segments()]
    for record in records:
        folder = index / (CODEBOOKS if isinstance(record, CodebookRecord) else SEGMENTS) / record.name
        try:
            problems = list(MappedFolder(folder, record.files).problems())
            yield from problems
            if problems:
                continue
            if isinstance(record, CodebookRecord):
                codebooks[record.key] = open_codebook(index, record, catalogue.dim)
            elif record.codebook is None or record.codebook in codebooks:  # or it was said above, or by the rules
                open_segment(index, record, catalogue.layout, catalogue.dim, codebooks)
        except MbretrieveError as error:
            yield str(error)
        except FileNotFoundError as error:
            yield f"{error.filename} is missing"


def _windows(catalogue: Catalogue) -> Iterator[str]:
    """Compare the segments' windows with the texts: those of a text live, all of them in their order, and no others."""
    view = load_view(catalogue)
    texts = catalogue.integers("SELECT key, windows FROM contents ORDER BY key", columns=2)
    found = np.zeros(len(texts), dtype=np.int64)
    tokens = dict(catalogue.rows("SELECT key, live_tokens FROM segments"))
    for segment, live in zip(view.segments, view.live, strict=True):
        table, name = segment.windows.table, segment.record.name
        here = np.isin(table[:, 0], texts[:, 0])
        if (here != live).any():
            yield f"{FILE}: what is deleted of segments/{name} is not what has no text"
        if tokens[segment.record.key] != segment.lengths(np.flatnonzero(live)).sum():
            yield f"{FILE}: the count of live tokens of segments/{name} is wrong"
        if not is_complete(table):
            yield f"segments/{name}/{WINDOWS}: the windows of a text do not follow each other"
        np.add.at(found, np.searchsorted(texts[:, 0], table[here, 0]), 1)
    if wrong := int(np.count_nonzero(found != texts[:, 1])):
        yield f"{FILE}: {wrong} texts without their windows"
