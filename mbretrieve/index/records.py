"""What goes into an index and what comes out, and the checks that an entry passes before any of it is written."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mbretrieve.errors import DataError
from mbretrieve.types import JointVectors, Kind, Metadata


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A document to be stored: ``vectors`` holds one (tokens, dim) float array for each window of its text (of one row
    if the index is dense, ``JointVectors`` if it is joint), ``spans`` the windows' character ranges, ``content_hash``
    whatever names text and context for ``Writer.add_same`` (empty: nothing). Documents of one ``source`` are deleted
    together."""

    id: str
    vectors: Sequence[NDArray[Any] | JointVectors]
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
    pooled_dim: int = 0
    """The numbers of the one vector that a window has beside its tokens', in DENSE_FILE, by which it is fetched; 0: it
    has none, and is fetched by its tokens."""


DENSE_FILE = "vectors.npy"
"""One unit vector a window, float32: of a dense index all there is, of a joint one what stands beside the tokens."""

# A dense vector is small beside its text, and FAISS reads float32 as it lies; token vectors are the bulk of an index.
LAYOUTS: dict[Kind, Layout] = {
    "colbert": Layout("tokens.npy", np.float16, many_rows=True),
    "dense": Layout(DENSE_FILE, np.float32, many_rows=False),
    "joint": Layout("tokens.npy", np.float16, many_rows=True),
}


class Stored(NamedTuple):
    """A window as it is stored: its (tokens, dim) vectors, and its (pooled_dim,) one in a joint index."""

    vectors: NDArray[Any]
    pooled: NDArray[np.float32] | None


def stored_vectors(entry: Entry, layout: Layout, dim: int) -> list[Stored]:
    """Check an entry whole and return its vectors as they are stored, one for each window.

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


def _stored(name: str, number: int, window: NDArray[Any] | JointVectors, layout: Layout, dim: int) -> Stored:
    name = f"window {number} of {name}"
    if layout.pooled_dim:
        both = both_heads(name, window, dim, layout.pooled_dim, layout.dtype)
        return Stored(both.tokens, _unit_row(f"the pooled vector of {name}", both.pooled[None])[0])
    checked = one_head(name, window, dim, layout.dtype)
    return Stored(checked if layout.many_rows else _unit_row(name, checked), None)


def one_head(name: str, vectors: NDArray[Any] | JointVectors, dim: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return checked vectors (tokens, dim) for an index of one head. Raises: DataError starting with ``name``."""
    if isinstance(vectors, JointVectors):
        raise DataError(f"{name} has vectors of both heads; only a joint index takes those")
    return check_rows(name, vectors, dim, dtype)


def both_heads(
    name: str, vectors: NDArray[Any] | JointVectors, dim: int, pooled_dim: int, dtype: DTypeLike = np.float32
) -> JointVectors:
    """Return checked vectors for a joint index. Raises: DataError starting with ``name``."""
    if not isinstance(vectors, JointVectors):
        raise DataError(f"{name} has vectors of one head; a joint index takes both, as JointVectors")
    [row] = check_rows(f"the pooled vector of {name}", np.asarray(vectors.pooled)[None], pooled_dim)
    return JointVectors(check_rows(name, vectors.tokens, dim, dtype), row)


def _unit_row(name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Return a dense vector (1, dim) at unit length. Raises: DataError starting with ``name``."""
    if len(rows) != 1:
        raise DataError(f"{name} has {len(rows)} vectors; a dense index takes one a window")
    norm = float(np.linalg.norm(rows))
    if norm == 0:
        raise DataError(f"{name} is a zero vector; its cosine is undefined: leave it out")
    return np.asarray(rows / norm, dtype=np.float32)


def check_rows(name: str, rows: NDArray[Any], dim: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return vectors as a (tokens, dim) array of finite numbers of a type. Raises: DataError starting with ``name``."""
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != dim or array.dtype.kind not in "fiu":
        raise DataError(f"{name} has shape {array.shape} of {array.dtype}; the index takes (tokens, {dim}) numbers")
    if not len(array):
        raise DataError(f"{name} has no tokens; at least one is needed")
    with np.errstate(over="ignore"):
        kept = array.astype(dtype, copy=False)
    if not np.isfinite(kept).all():
        if np.isfinite(array).all():
            raise DataError(f"{name} has values too large for {np.dtype(dtype).name}")
        raise DataError(f"{name} holds NaN or infinite values; the model that made it is at fault")
    return kept


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
