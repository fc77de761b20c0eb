"""Reading documents out of a catalogue, each row checked against its checksum."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from mbretrieve.index.arrays import is_among, to_array
from mbretrieve.index.catalogue import CONTENT_COLUMNS, Catalogue, Integers, checksum, damaged, span_checksum
from mbretrieve.index.filters import compile_where, stored_value
from mbretrieve.types import Document, Metadata, Where

SCAN_ROWS = 1000
FILTERED_ROWS = 64  # documents whose entries are compared with a filter by one statement

DOCUMENT_COLUMNS = "key, id, content, source, metadata, checksum"


def keys_by_id(catalogue: Catalogue, ids: Collection[str]) -> dict[str, int]:
    """Return the keys of the documents that are there."""
    return dict(catalogue.rows_among("SELECT id, key FROM documents WHERE id", ids))


def ids_by_key(catalogue: Catalogue, keys: Collection[int]) -> dict[int, str]:
    """Return the ids of the documents that are there."""
    return {key: id for key, id, *_ in _documents(catalogue, "key", keys)}


def owners(
    catalogue: Catalogue, contents: Collection[int], passed: Integers | None = None
) -> defaultdict[int, list[str]]:
    """Return the ids of the documents that have each of some contents; with ``passed`` (n, 2), of those among them.

    Each has one. Raises: IndexFormatError if it is not found.
    """
    found: defaultdict[int, list[str]] = defaultdict(list)
    keys = None if passed is None else set(passed[is_among(passed[:, 1], to_array(contents)), 0].tolist())
    for key, id, content, _ in _documents(catalogue, "content", contents):
        if keys is None or key in keys:
            found[content].append(id)
    if missing := set(contents) - found.keys():
        raise damaged(catalogue.index, f"content {min(missing)} has no document")
    return found


def _documents(
    catalogue: Catalogue, column: Literal["key", "id", "content"], values: Collection[int | str]
) -> Iterator[tuple[int, str, int, str]]:
    """Yield key, id, content and metadata (JSON) of some documents, each row checked, and that it is one of these and
    comes once: SQLite does not check that an index leads to the row it names."""
    select = f"SELECT {DOCUMENT_COLUMNS} FROM documents WHERE {column}"  # noqa: S608 - constants
    asked, seen, place = set(values), set(), DOCUMENT_COLUMNS.split(", ").index(column)
    for row in catalogue.rows_among(select, asked):
        key, *fields, kept = row
        if checksum(*fields) != kept:
            raise damaged(catalogue.index, f"the row of document {fields[0]!r} was changed")
        if key in seen or row[place] not in asked:
            raise damaged(catalogue.index, f"document {fields[0]!r} was found by an index that it is not in")
        seen.add(key)
        yield key, fields[0], fields[1], fields[3]


def named(catalogue: Catalogue, ids: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return key and content of the documents with these ids that are there."""
    rows = catalogue.rows_among("SELECT id, key, content FROM documents WHERE id", ids)
    return {id: (key, content) for id, key, content in rows}


def passing(catalogue: Catalogue, where: Where | None, ids: Collection[str] | None) -> Integers | None:
    """Return (n, 2) key and content of the documents that a filter and a set of ids let pass, by key; None for all.

    Raises: DataError for a filter that does not parse; IndexFormatError if what it finds is no document.
    """
    if where is None and ids is None:
        return None
    select, parameters = compile_where(where or {})
    documents = catalogue.integers(
        # Not the documents among those that it finds: one that is not there must be noticed, and is NULL here.
        f"WITH found (number) AS ({select}) SELECT DISTINCT number, content FROM found"  # noqa: S608 - by parameters
        " LEFT JOIN documents ON key = number ORDER BY number",
        parameters,
        columns=2,
    )
    if ids is None:
        return documents
    keys = keys_by_id(catalogue, ids)
    found = documents[is_among(documents[:, 0], to_array(keys.values()))]
    if not where and len(found) != len(keys):
        raise damaged(catalogue.index, "the index of ids names documents that are not there")
    return found


def metadata_of(catalogue: Catalogue, ids: Collection[str]) -> list[tuple[str, Metadata]]:
    """Return the ids and metadata of the documents that are there."""
    return [(id, json.loads(text)) for _, id, _, text in _documents(catalogue, "id", ids)]


def check_passing(catalogue: Catalogue, where: Where, documents: Sequence[tuple[str, Metadata]]) -> None:
    """Check that documents found by a filter pass it by their own metadata: the filters' table has no checksums.

    A document that is not found, because its entries there were changed, is not noticed so; ``verify`` names it.
    Raises: IndexFormatError.
    """
    select, parameters = compile_where(where)
    for first in range(0, len(documents), FILTERED_ROWS):
        some = documents[first : first + FILTERED_ROWS]
        entries = [
            (name, stored_value(metadata[name]), number)
            for number, (_, metadata) in enumerate(some)
            for name in where.keys() & metadata.keys()
        ]
        # The same filter, over these entries instead of the table: so that both mean the same.
        own = f"WITH metadata (name, value, document) AS (VALUES {', '.join(['(?, ?, ?)'] * len(entries))}) {select}"
        passed = {number for (number,) in catalogue.rows(own, [*chain(*entries), *parameters])} if entries else set()
        for number, (id, _) in enumerate(some):
            if number not in passed:
                raise damaged(catalogue.index, f"document {id!r} was found by a filter that it does not pass")


def spans(catalogue: Catalogue, contents: Collection[int]) -> dict[int, tuple[int, int]]:
    """Return which characters the windows of some contents span in all, checked without their texts."""
    found = {}
    rows = catalogue.rows_among("SELECT key, start, stop, span_checksum FROM contents WHERE key", contents)
    for key, start, stop, kept in rows:
        if not isinstance(start, int) or not isinstance(stop, int) or span_checksum(start, stop) != kept:
            raise damaged(catalogue.index, f"the row of content {key} was changed")
        found[key] = start, stop
    if missing := set(contents) - found.keys():
        raise damaged(catalogue.index, f"content {min(missing)} is not there")
    return found


def read_documents(catalogue: Catalogue, keys: Collection[int]) -> list[Document]:
    """Return the documents with these keys, in their order."""
    ids = ids_by_key(catalogue, keys)
    rows = catalogue.rows_among(
        f"SELECT documents.key, metadata, {CONTENT_COLUMNS}, contents.checksum FROM documents"  # noqa: S608 - constants
        " JOIN contents ON contents.key = documents.content WHERE documents.key",
        keys,
    )
    for key, _, *fields, kept in rows:
        if checksum(*fields) != kept:
            raise damaged(catalogue.index, f"the text of document {ids[key]!r} was changed")
    found = {key: Document(ids[key], text, json.loads(data), context) for key, data, *_, context, text, _ in rows}
    if missing := set(keys) - found.keys():
        raise damaged(catalogue.index, f"document {ids.get(min(missing), min(missing))!r} has no text")
    return [found[key] for key in keys]


def scan_documents(catalogue: Catalogue, where: Where | None) -> Iterator[Document]:
    """Yield the documents that pass a filter, a bounded number read at a time."""
    if where:
        passed = passing(catalogue, where, None)
        assert passed is not None
        keys = passed[:, 0]
    else:
        keys = catalogue.integers("SELECT key FROM documents ORDER BY key", columns=1)[:, 0]
        if (np.diff(keys) <= 0).any():  # or one would be read twice, and another not at all
            raise damaged(catalogue.index, "the key of a document was changed")
    for first in range(0, len(keys), SCAN_ROWS):
        documents = read_documents(catalogue, keys[first : first + SCAN_ROWS].tolist())
        if where:
            check_passing(catalogue, where, [(document.id, document.metadata) for document in documents])
        yield from documents
