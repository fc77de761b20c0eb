"""The records that pass between rooms, and the protocols that let one room stand in for another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

MetadataValue = str | int | float | bool
Metadata = Mapping[str, MetadataValue]
Where = Mapping[str, Any]
"""A metadata filter: ``{"lang": "en"}``, ``{"lang": ["en", "fr"]}``, ``{"year": {"gte": 2000, "lt": 2010}}``; a
document passes if every key says so."""

Run = dict[str, dict[str, float]]
"""What a search gave: query id -> document id -> score."""
Qrels = dict[str, dict[str, int]]
"""What people judged: query id -> document id -> relevance."""

Head = Literal["colbert", "dense"]
"""What becomes of a text: a vector a token, or one vector."""
Kind = Literal["colbert", "dense", "joint"]
"""What an encoder gives and an index holds: by one head, or by both from one forward."""
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class JointVectors:
    """A text by both heads of a joint model: ``tokens`` (n, dim) and ``pooled`` (pooled_dim,), float32."""

    tokens: FloatArray
    pooled: FloatArray


def as_window(vectors: FloatArray | JointVectors) -> FloatArray | JointVectors:
    """Return what an encoder gives of a text as an index takes a window: a dense vector is an array of one row."""
    return vectors if isinstance(vectors, JointVectors) else np.atleast_2d(vectors)


def rows_of(vectors: FloatArray | JointVectors, head: Head) -> FloatArray:
    """Return what an encoder gives of a text by one head, (n, dim); an encoder of one head has no other."""
    if isinstance(vectors, JointVectors):
        return vectors.tokens if head == "colbert" else vectors.pooled[None]
    return np.atleast_2d(vectors)


@dataclass(frozen=True, slots=True)
class Document:
    """A text to be found, under an id of the caller's.

    ``context`` (a title, a path, the enclosing class) is encoded and searched in front of the text, of each of its
    windows if it is long, but is not part of the text that a hit shows.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)
    context: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found: its score, its text, and in ``span`` the character range of the window that scored."""

    id: str
    score: float
    text: str
    metadata: Metadata
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What an index must know of the model that made its vectors: two encoders with equal ``content_hash``, ``kind``,
    ``dim`` and ``document_length`` give the same document vectors. ``pooled_dim``: a joint model's, else 0."""

    kind: Kind
    name: str
    revision: str | None
    content_hash: str
    dim: int
    query_length: int
    document_length: int
    pooled_dim: int = 0


@runtime_checkable
class Encoder(Protocol):
    """What turns texts into vectors: ``ColBERT``, ``DenseEncoder`` and ``JointEncoder``, or anything of that shape."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""

    @property
    def document_capacity(self) -> int:
        """How many tokens of its own a document can have beside the markers and special tokens put around it."""

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Tokenize without special tokens and without a limit: each text's tokens' (tokens, 2) character ranges."""

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Encode queries: a list of (tokens_i, dim) float32 arrays (ColBERT), of ``JointVectors``, or an (n, dim) array
        (dense)."""

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """Encode documents, as ``encode_queries`` does queries."""

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters of a text behind each row of what ``encode_documents`` gives of it: (rows, 2), an empty
        range for a row of no character."""

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """Score each line of each text (parted at ``\\n``) by what it has to do with the query, for marking lines."""


@runtime_checkable
class Searcher(Protocol):
    """What answers queries; ``evaluation.runner`` drives anything of this shape, BM25 included."""

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return for each query its best ``k`` documents, best first."""

    def report(self) -> dict[str, Any]:
        """Return what building and searching cost: seconds by phase, bytes, tokens."""


class Progress(Protocol):
    """Where long work says how far it is; the command line draws a bar from it."""

    def start(self, description: str, total: int | None) -> None:
        """Begin a phase of ``total`` steps (None: not known beforehand)."""

    def advance(self, steps: int, *, tokens: int = 0) -> None:
        """Say that so many more steps are done, in which so many tokens were encoded."""

    def finish(self) -> None:
        """End the phase."""
