"""Checking an index whole: every row's checksum, every file's blocks, and that the parts fit each other."""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

from mbretrieve.errors import MbretrieveError
from mbretrieve.index.catalogue import FILE, Catalogue, checksum
from mbretrieve.index.filters import SqlValue, stored_value
from mbretrieve.index.records import LAYOUTS
from mbretrieve.index.segments import open_codebook, open_segment
from mbretrieve.index.view import load_view
from mbretrieve.index.words import content_words
from mbretrieve.types import Metadata

DOCUMENTS = "SELECT key, id, content, source, metadata, checksum FROM documents"

# What must hold between the tables: each query counts the rows that break a rule.
RULES = {
    "documents without a text": "SELECT count(*) FROM documents WHERE content NOT IN (SELECT key FROM contents)",
    "texts without a document": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT content FROM documents)",
    "texts without a window": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT content FROM windows)",
    "windows without a text": "SELECT count(*) FROM windows WHERE content NOT IN (SELECT key FROM contents)",
    "windows that share their vectors": "SELECT count(*) - count(DISTINCT segment || '/' || row) FROM windows",
    "segments with a wrong count of live windows": (
        "SELECT count(*) FROM segments WHERE live_rows != (SELECT count(*) FROM windows WHERE segment = key)"
        " OR live_tokens != (SELECT coalesce(sum(tokens), 0) FROM windows WHERE segment = key)"
    ),
    "files of no folder": (
        "SELECT count(*) FROM files WHERE folder NOT IN (SELECT name FROM segments UNION SELECT name FROM codebooks)"
    ),
    "segments without their codebook": (
        "SELECT count(*) FROM segments WHERE codebook IS NOT NULL AND codebook NOT IN (SELECT key FROM codebooks)"
    ),
}


def verify(catalogue: Catalogue) -> list[str]:
    """Return what is wrong with the generation that ``catalogue`` reads, one line each."""
    checks = (_database, _rows, _rules, _filters, _words, _segments, _view)
    problems: list[str] = []
    for check in checks:
        try:
            problems += check(catalogue)
        except MbretrieveError as error:
            problems.append(str(error))
        except FileNotFoundError as error:
            problems.append(f"{error.filename} is missing")
    return list(dict.fromkeys(problems))


def _database(catalogue: Catalogue) -> Iterator[str]:
    for (line,) in catalogue.rows("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"{FILE}: {' '.join(line.split())}"


def _rows(catalogue: Catalogue) -> Iterator[str]:
    for key, *fields, kept in catalogue.stream("SELECT key, hash, context, text, checksum FROM contents"):
        if checksum(*fields) != kept:
            yield f"{FILE}: content {key} was changed"
    for key, *fields, kept in catalogue.stream(DOCUMENTS):
        if checksum(*fields) != kept:
            yield f"{FILE}: the row of document {fields[0] or key!r} was changed"
    for name, state, kept in catalogue.stream("SELECT name, state, checksum FROM sources"):
        if checksum(name, state) != kept:
            yield f"{FILE}: the state of source {name!r} was changed"


def _rules(catalogue: Catalogue) -> Iterator[str]:
    for what, sql in RULES.items():
        [(count,)] = catalogue.rows(sql)
        if count:
            yield f"{FILE}: {count} {what}"


def _filters(catalogue: Catalogue) -> Iterator[str]:
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


def _words(catalogue: Catalogue) -> Iterator[str]:
    """Compare the full-text index with the texts: each one's length, and a sum over its words and their places."""
    stored: defaultdict[int, int] = defaultdict(int)
    for word, content, place in catalogue.word_places():
        stored[content] += (place + 1) * _word_crc(word)
    texts = total = 0
    for key, context, text, size in catalogue.stream(
        "SELECT key, context, text, sz FROM contents LEFT JOIN words_docsize ON id = key"
    ):
        words = content_words(context, text)
        texts, total = texts + 1, total + len(words)
        expected = sum((place + 1) * _word_crc(word) for place, word in enumerate(words))
        if stored.pop(key, 0) != expected or size != _varint(len(words)):
            yield f"{FILE}: the words of content {key} were changed"
    if stored:
        yield f"{FILE}: {len(stored)} contents that are not there have words"
    averages = catalogue.rows("SELECT block FROM words_data WHERE id = 1")
    if texts and averages != [(_varint(texts) + _varint(total),)]:
        yield f"{FILE}: the average length of texts was changed"


@lru_cache(maxsize=1 << 16)
def _word_crc(word: str) -> int:
    return zlib.crc32(word.encode())


def _varint(number: int) -> bytes:
    """Return a number of at most 56 bits as SQLite's variable-length integer, in which FTS5 keeps its lengths."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(0x80 | number & 0x7F)
    return bytes(reversed(groups))


def _segments(catalogue: Catalogue) -> Iterator[str]:
    codebooks = {}
    for book in catalogue.codebooks():
        try:
            codebooks[book.key] = open_codebook(catalogue.index, book, catalogue.dim)
        except MbretrieveError as error:
            yield str(error)
        except FileNotFoundError as error:
            yield f"{error.filename} is missing"
    for record in catalogue.segments():
        if record.codebook is not None and record.codebook not in codebooks:
            continue  # said above, or by the rules
        try:
            open_segment(catalogue.index, record, LAYOUTS[catalogue.kind], catalogue.dim, codebooks).verify()
        except MbretrieveError as error:
            yield str(error)
        except FileNotFoundError as error:
            yield f"{error.filename} is missing"


def _view(catalogue: Catalogue) -> Iterator[str]:
    load_view(catalogue)
    return iter(())
