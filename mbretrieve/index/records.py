"""What goes into an index and what comes out, and the checks that an entry passes before any of it is written."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbretrieve.errors import DataError
from mbretrieve.types import Kind, Metadata


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A document to be stored: ``vectors`` holds one (tokens, dim) float array for each window of its text (of one row
    if the index is dense), ``spans`` the windows' character ranges, ``content_hash`` whatever names text and context
    for ``Writer.add_same`` (empty: nothing). Documents of one ``source`` are deleted together."""

    id: str
    vectors: Sequence[NDArray[Any]]
    spans: Sequence[tuple[int, int]]
    text: str = ""
    context: str = ""
    metadata: Metadata = field(default_factory=dict)
    source: str | None = None
    content_hash: str = ""


class Match(NamedTuple):
    """A document found: ``window`` and ``span`` (characters) say which window scored best; a match by words alone names
    no window (-1) and spans them all."""

    id: str
    score: float
    window: int
    span: tuple[int, int]


def best_first(match: Match) -> tuple[float, str]:
    """Sort key of a ranking: the highest score first, equal scores by id."""
    return -match.score, match.id


class Layout(NamedTuple):
    """How the vectors of a kind of index are stored in a segment."""

    file: str
    dtype: type[np.floating[Any]]
    many_rows: bool
    """Whether a window has many vectors, so that offsets.npy says where each begins."""


# A dense vector is small beside its text, and FAISS reads float32 as it lies; token vectors are the bulk of an index.
LAYOUTS: dict[Kind, Layout] = {
    "colbert": Layout("tokens.npy", np.float16, many_rows=True),
    "dense": Layout("vectors.npy", np.float32, many_rows=False),
}


def stored_vectors(entry: Entry, layout: Layout, dim: int) -> list[NDArray[Any]]:
    """Check an entry whole and return its vectors as they are stored, one (tokens, dim) array a window.

    Raises: DataError naming the id and what is wrong with it.
    """
    check_document(entry.id, entry.text, entry.context, entry.metadata, entry.source)
    name = f"document {entry.id!r}"
    if not entry.vectors or len(entry.vectors) != len(entry.spans):
        raise DataError(
            f"{name} has {len(entry.vectors)} windows of vectors and {len(entry.spans)} spans; give one span a window"
        )
    for start, end in entry.spans:
        if not 0 <= start <= end <= len(entry.text):
            raise DataError(f"{name} has the span ({start}, {end}), outside its text of {len(entry.text)} characters")
    return [_stored(name, window, rows, layout, dim) for window, rows in enumerate(entry.vectors)]


def _stored(name: str, window: int, rows: NDArray[Any], layout: Layout, dim: int) -> NDArray[Any]:
    checked = check_rows(f"window {window} of {name}", rows, dim)
    if not layout.many_rows:
        if len(checked) != 1:
            raise DataError(f"window {window} of {name} has {len(checked)} vectors; a dense index takes one a window")
        norm = float(np.linalg.norm(checked))
        if norm == 0:
            raise DataError(f"window {window} of {name} is a zero vector; its cosine is undefined: leave it out")
        checked = checked / norm
    with np.errstate(over="ignore"):
        stored = checked.astype(layout.dtype)
    if not np.isfinite(stored).all():
        raise DataError(f"window {window} of {name} has values too large for {np.dtype(layout.dtype).name}")
    return stored


def check_rows(name: str, rows: NDArray[Any], dim: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return vectors as a (tokens, dim) array of finite numbers. Raises: DataError starting with ``name``."""
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != dim or array.dtype.kind not in "fiu":
        raise DataError(f"{name} has shape {array.shape} of {array.dtype}; the index takes (tokens, {dim}) numbers")
    if not len(array):
        raise DataError(f"{name} has no tokens; at least one is needed")
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds NaN or infinite values; the model that made it is at fault")
    return array.astype(dtype, copy=False)


def check_document(id: Any, text: str, context: str, metadata: Metadata, source: str | None) -> None:
    """Check what SQLite is to keep. Raises: DataError naming the id."""
    if not isinstance(id, str) or not id:
        raise DataError(f"a document's id is {id!r}; a string that is not empty was expected")
    for what, string in (("id", id), ("text", text), ("context", context)):
        check_text(f"the {what} of document {id!r}", string)
    if source is not None:
        check_text(f"the source of document {id!r}", source)
    for key, value in metadata.items():
        name = f"metadata {key!r} of document {id!r}"
        check_text(name, key)
        if isinstance(value, str):
            check_text(name, value)
        else:
            check_number(name, value)


def check_text(name: str, value: Any) -> None:
    """Refuse what is not Unicode text, lone surrogates included. Raises: DataError starting with ``name``."""
    if not isinstance(value, str):
        raise DataError(f"{name} is of type {type(value).__name__}; a string was expected")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half of a surrogate pair; decode it properly first") from None


def check_number(name: str, value: Any) -> None:
    """Refuse what is not a boolean, a finite float or a 64-bit integer. Raises: DataError starting with ``name``."""
    if not isinstance(value, bool | int | float):
        raise DataError(f"{name} is of type {type(value).__name__}; a string, number or boolean was expected")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{name} is {value}; a finite number was expected")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise DataError(f"{name} is {value}; an integer of at most 64 bits was expected")


def check_batch(ids: Collection[str]) -> None:
    """Refuse an id that comes twice. Raises: DataError naming it."""
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise DataError(f"document id {id!r} comes twice in one batch; which of the two is meant?")
        seen.add(id)


def to_json(values: Mapping[str, Any]) -> str:
    """Write a mapping as the catalogue keeps it."""
    return json.dumps(dict(values), ensure_ascii=False, allow_nan=False)
