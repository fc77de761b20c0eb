"""Reading documents out of a catalogue, each row checked against its checksum."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Literal

from mbretrieve.index.arrays import is_among, to_array
from mbretrieve.index.catalogue import CONTENT_COLUMNS, Catalogue, Integers, checksum, damaged
from mbretrieve.index.filters import compile_where
from mbretrieve.types import Document, Where

SCAN_ROWS = 1000

DOCUMENT_COLUMNS = "key, id, content, source, metadata, checksum"


def keys_by_id(catalogue: Catalogue, ids: Collection[str]) -> dict[str, int]:
    """Return the keys of the documents that are there."""
    return dict(catalogue.rows_among("SELECT id, key FROM documents WHERE id", ids))


def ids_by_key(catalogue: Catalogue, keys: Collection[int]) -> dict[int, str]:
    """Return the ids of the documents that are there."""
    return {key: id for key, id, _ in _documents(catalogue, "key", keys)}


def owners(
    catalogue: Catalogue, contents: Collection[int], passed: Integers | None = None
) -> defaultdict[int, list[str]]:
    """Return the ids of the documents that have each of some contents; with ``passed`` (n, 2), of those among them."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    keys = None if passed is None else set(passed[is_among(passed[:, 1], to_array(contents)), 0].tolist())
    for key, id, content in _documents(catalogue, "content", contents):
        if keys is None or key in keys:
            found[content].append(id)
    return found


def _documents(
    catalogue: Catalogue, column: Literal["key", "content"], values: Collection[int]
) -> Iterator[tuple[int, str, int]]:
    """Yield key, id and content of some documents, each row checked."""
    select = f"SELECT {DOCUMENT_COLUMNS} FROM documents WHERE {column}"  # noqa: S608 - constants
    for key, *fields, kept in catalogue.rows_among(select, values):
        if checksum(*fields) != kept:
            raise damaged(catalogue.index, f"the row of document {fields[0]!r} was changed")
        yield key, fields[0], fields[1]


def named(catalogue: Catalogue, ids: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return key and content of the documents with these ids that are there."""
    rows = catalogue.rows_among("SELECT id, key, content FROM documents WHERE id", ids)
    return {id: (key, content) for id, key, content in rows}


def passing(catalogue: Catalogue, where: Where | None, ids: Collection[str] | None) -> Integers | None:
    """Return (n, 2) key and content of the documents that a filter and a set of ids let pass, by key; None for all.

    Raises: DataError for a filter that does not parse.
    """
    if where is None and ids is None:
        return None
    select, parameters = compile_where(where or {})
    documents = catalogue.integers(
        f"SELECT key, content FROM documents WHERE key IN ({select}) ORDER BY key",  # noqa: S608 - values are parameters
        parameters,
        columns=2,
    )
    if ids is None:
        return documents
    return documents[is_among(documents[:, 0], to_array(keys_by_id(catalogue, ids).values()))]


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
    if missing := set(ids) - set(found):
        raise damaged(catalogue.index, f"document {ids[min(missing)]!r} has no text")
    return [found[key] for key in keys if key in found]


def scan_documents(catalogue: Catalogue, where: Where | None) -> Iterator[Document]:
    """Yield the documents that pass a filter, a bounded number read at a time."""
    keys = passing(catalogue, where or {}, None)
    assert keys is not None
    for first in range(0, len(keys), SCAN_ROWS):
        yield from read_documents(catalogue, keys[first : first + SCAN_ROWS, 0].tolist())
