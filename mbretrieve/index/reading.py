"""Reading documents out of a catalogue, each row checked against its checksum."""

import json
from collections.abc import Collection, Iterator

import numpy as np

from mbretrieve.index.catalogue import Catalogue, Integers, checksum, damaged
from mbretrieve.index.filters import compile_where
from mbretrieve.types import Document, Where

SCAN_ROWS = 1000


def keys_by_id(catalogue: Catalogue, ids: Collection[str]) -> dict[str, int]:
    """Return the keys of the documents that are there."""
    return dict(catalogue.rows_among("SELECT id, key FROM documents WHERE id", ids))


def ids_by_key(catalogue: Catalogue, keys: Collection[int]) -> dict[int, str]:
    """Return the ids of the documents that are there."""
    rows = catalogue.rows_among("SELECT key, id, content, source, metadata, checksum FROM documents WHERE key", keys)
    for _, *fields, kept in rows:
        if checksum(*fields) != kept:
            raise damaged(catalogue.index, f"the row of document {fields[0]!r} was changed")
    return {row[0]: row[1] for row in rows}


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
    return documents[np.isin(documents[:, 0], list(keys_by_id(catalogue, ids).values()))]


def read_documents(catalogue: Catalogue, keys: Collection[int]) -> list[Document]:
    """Return the documents with these keys, in their order."""
    ids = ids_by_key(catalogue, keys)
    rows = catalogue.rows_among(
        "SELECT documents.key, metadata, hash, context, text, contents.checksum FROM documents"
        " JOIN contents ON contents.key = documents.content WHERE documents.key",
        keys,
    )
    for key, _, *fields, kept in rows:
        if checksum(*fields) != kept:
            raise damaged(catalogue.index, f"the text of document {ids[key]!r} was changed")
    found = {key: Document(ids[key], text, json.loads(data), context) for key, data, _, context, text, _ in rows}
    if missing := set(ids) - set(found):
        raise damaged(catalogue.index, f"document {ids[min(missing)]!r} has no text")
    return [found[key] for key in keys if key in found]


def scan_documents(catalogue: Catalogue, where: Where | None) -> Iterator[Document]:
    """Yield the documents that pass a filter, a bounded number read at a time."""
    keys = passing(catalogue, where or {}, None)
    assert keys is not None
    for first in range(0, len(keys), SCAN_ROWS):
        yield from read_documents(catalogue, keys[first : first + SCAN_ROWS, 0].tolist())
