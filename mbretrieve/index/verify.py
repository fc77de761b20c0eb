"""Checking an index whole: every row's checksum, every file's blocks, and that the parts fit each other."""

import json
import zlib
from collections import defaultdict
from collections.abc import Iterator

from mbretrieve.errors import MbretrieveError
from mbretrieve.index.catalogue import FILE, Catalogue, checksum
from mbretrieve.index.filters import stored_value
from mbretrieve.index.records import LAYOUTS
from mbretrieve.index.segments import Segment
from mbretrieve.index.view import load_view
from mbretrieve.index.words import content_words

PAGE = 1000

# What must hold between the tables: each query counts the rows that break a rule.
RULES = {
    "documents without a text": "SELECT count(*) FROM documents WHERE content NOT IN (SELECT key FROM contents)",
    "texts without a document": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT content FROM documents)",
    "texts without a window": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT content FROM windows)",
    "windows without a text": "SELECT count(*) FROM windows WHERE content NOT IN (SELECT key FROM contents)",
    "windows that share their vectors": "SELECT count(*) - count(DISTINCT segment || '/' || row) FROM windows",
    "texts without words": "SELECT count(*) FROM contents WHERE key NOT IN (SELECT id FROM words_docsize)",
    "words without a text": "SELECT count(*) FROM words_docsize WHERE id NOT IN (SELECT key FROM contents)",
    "metadata without a document": "SELECT count(*) FROM metadata WHERE document NOT IN (SELECT key FROM documents)",
    "segments with a wrong count of live windows": (
        "SELECT count(*) FROM segments WHERE live_rows != (SELECT count(*) FROM windows WHERE segment = key)"
        " OR live_tokens != (SELECT coalesce(sum(tokens), 0) FROM windows WHERE segment = key)"
    ),
    "filter entries too many": (
        "SELECT count(*) - (SELECT count(*) FROM documents, json_each(documents.metadata)) FROM metadata"
    ),
    "files of no segment": "SELECT count(*) FROM files WHERE segment NOT IN (SELECT key FROM segments)",
}


def verify(catalogue: Catalogue) -> list[str]:
    """Return what is wrong with the generation that ``catalogue`` reads, one line each."""
    checks = (_database, _rows, _rules, _words, _segments, _view)
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
    yield from _pages(catalogue, "contents", "hash, context, text", "the text of content")
    yield from _pages(catalogue, "documents", "id, content, source, metadata", "the row of document")
    for name, state, sum in catalogue.rows("SELECT name, state, checksum FROM sources"):
        if checksum(name, state) != sum:
            yield f"{FILE}: the state of source {name!r} was changed"


def _pages(catalogue: Catalogue, table: str, columns: str, what: str) -> Iterator[str]:
    last = -1
    while page := catalogue.rows(
        f"SELECT key, {columns}, checksum FROM {table} WHERE key > ? ORDER BY key LIMIT ?",  # noqa: S608 - constants
        (last, PAGE),
    ):
        for key, *fields, sum in page:
            if checksum(*fields) != sum:
                yield f"{FILE}: {what} {fields[0] or key!r} was changed"
            elif table == "documents":
                yield from _metadata(catalogue, key, fields)
        last = page[-1][0]


def _metadata(catalogue: Catalogue, key: int, fields: list[str]) -> Iterator[str]:
    for name, value in json.loads(fields[3]).items():
        parameters = (name, stored_value(value), key)
        if not catalogue.rows("SELECT 1 FROM metadata WHERE name = ? AND value = ? AND document = ?", parameters):
            yield f"{FILE}: the filter entry {name!r} of document {fields[0]!r} is missing"


def _rules(catalogue: Catalogue) -> Iterator[str]:
    for what, sql in RULES.items():
        [(count,)] = catalogue.rows(sql)
        if count:
            yield f"{FILE}: {count} {what}"


def _words(catalogue: Catalogue) -> Iterator[str]:
    """Compare the full-text index with the texts: for each text a sum over its words and their places."""
    stored: defaultdict[int, int] = defaultdict(int)
    for word, content, place in catalogue.word_places():
        stored[content] += _word_sum(word, place)
    last = -1
    while page := catalogue.rows(
        "SELECT key, context, text FROM contents WHERE key > ? ORDER BY key LIMIT ?", (last, PAGE)
    ):
        for key, context, text in page:
            if stored[key] != sum(_word_sum(word, place) for place, word in enumerate(content_words(context, text))):
                yield f"{FILE}: the words of content {key} were changed"
        last = page[-1][0]


def _word_sum(word: str, place: int) -> int:
    return (place + 1) * zlib.crc32(word.encode())


def _segments(catalogue: Catalogue) -> Iterator[str]:
    for record in catalogue.segments():
        try:
            Segment(catalogue.index, record, LAYOUTS[catalogue.kind], catalogue.dim).verify()
        except MbretrieveError as error:
            yield str(error)
        except FileNotFoundError as error:
            yield f"{error.filename} is missing"


def _view(catalogue: Catalogue) -> Iterator[str]:
    load_view(catalogue)
    yield from ()
