"""What can be evaluated: a model through its index in one of three modes, words alone, BM25, a second stage on top.

Each is a `runner.System`: it is told a task and its corpus and makes a `Searcher` of it.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mbretrieve.cutting import passage
from mbretrieve.errors import DataError, IndexFormatError, ModelError
from mbretrieve.evaluation import exact
from mbretrieve.evaluation.bm25 import BM25, K1, B
from mbretrieve.evaluation.encoding import JointFile, Metered, VectorFile
from mbretrieve.evaluation.rerankers import Reranked, Reranker
from mbretrieve.evaluation.runner import System
from mbretrieve.evaluation.suites import Task
from mbretrieve.index import Effort, Match, plan
from mbretrieve.index.multivector import DEFAULT_BITS
from mbretrieve.retriever import LEXICAL_WEIGHT, Mode, Retriever
from mbretrieve.types import (
    Document,
    Encoder,
    FloatArray,
    Head,
    Hit,
    JointVectors,
    Kind,
    ModelIdentity,
    Progress,
    Searcher,
    Where,
    rows_of,
)


class Bm25System:
    """BM25 (`evaluation.bm25`)."""

    name = "bm25"

    def describe(self, task: Task) -> dict[str, Any]:
        """Its parameters; whether identifiers are split is for the corpus to say where the task does not."""
        return {"system": "bm25", "k1": K1, "b": B, "code": task.code}

    def build(
        self,
        task: Task,
        corpus: Sequence[Document],
        folder: Path,  # noqa: ARG002 - kept in memory
        progress: Progress | None,  # noqa: ARG002 - seconds
    ) -> Searcher:
        """Index a corpus."""
        return BM25(corpus, task.code)


class LexicalSystem:
    """The index's own search by words, FTS5: what ``--mode lexical`` and the lexical half of ``hybrid`` do."""

    name = "lexical"

    def describe(self, task: Task) -> dict[str, Any]:  # noqa: ARG002 - the same for every task
        """It has no parameters."""
        return {"system": "lexical"}

    def build(self, task: Task, corpus: Sequence[Document], folder: Path, progress: Progress | None) -> Searcher:  # noqa: ARG002
        """Index a corpus: by its words only, so that no model is loaded."""
        return _built(Metered(_WordsOnly()), "lexical", corpus, folder, progress, None)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens are read of a query and of a document, or of each window of one."""

    query: int
    document: int


class EncoderSystem:
    """A late-interaction, dense or joint model, through `Retriever`.

    Lengths are the task's, see `lengths`; ``query_length`` and ``document_length`` override them. With ``cut``,
    documents are cut at their length as in published protocols; without, they are searched window by window. With
    ``exact``, vectors are kept beside the index while a task runs, for the exact twin. ``bits`` are a dimension's of
    tokens' vectors in an index that is large enough to be packed. ``load`` is `models.load_encoder` with its device and
    dtype. Raises: ModelError.
    """

    def __init__(
        self,
        load: Callable[..., Any],
        kind: Kind,
        model: str | None = None,
        *,
        mode: Mode = "semantic",
        exact: bool = False,
        cut: bool = False,
        query_length: int | None = None,
        document_length: int | None = None,
        bits: int | None = None,
    ) -> None:
        self._load, self._kind, self._model, self._mode = load, kind, model, mode
        self._bits = DEFAULT_BITS if bits is None and kind != "dense" else bits
        self._exact, self._cut, self._query_length, self._document_length = exact, cut, query_length, document_length
        self._encoder = load(kind, model)
        identity: ModelIdentity = self._encoder.identity
        self._own = Lengths(identity.query_length, identity.document_length)
        self._positions: int = self._encoder.backbone.config.max_position_embeddings

    @property
    def name(self) -> str:
        """The model's name, its kind, and the mode, the cut and the bits where they are not the usual ones."""
        unusual = {
            "hybrid": self._mode == "hybrid",
            "cut": self._cut,
            f"{self._bits}bit": self._bits not in (None, DEFAULT_BITS),
        }
        return "-".join([label(self._encoder.identity.name), self._kind, *(name for name, so in unusual.items() if so)])

    def lengths(self, task: Task) -> Lengths:
        """Return the lengths for a task.

        A query has the task's, up to the model's positions: what is cut from a query is lost. A document has the
        task's unless the model's own is lower: that is what it was trained for, and windows lose nothing.
        """
        query = self._query_length or min(task.query_length or self._own.query, self._positions)
        own = self._own.document
        return Lengths(query, self._document_length or min(task.document_length or own, own))

    def describe(self, task: Task) -> dict[str, Any]:
        """The model's identity, lengths, number format, the index's bits and the mode."""
        encoder = self._for(task)
        identity = asdict(encoder.identity)
        return {
            **({} if self._bits is None else {"bits": self._bits}),
            "system": self._kind,
            "model": identity | {"name": label(identity["name"], "/")},
            "beyond_length": "cut" if self._cut else "windows",
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "device": encoder.device.type,
            "search": {
                "mode": self._mode,
                **({"lexical_weight": LEXICAL_WEIGHT} if self._mode == "hybrid" else {}),
                **({"fetched": f"{plan.FETCHED} or more"} if self._kind == "joint" else {}),
            },
        }

    def build(self, task: Task, corpus: Sequence[Document], folder: Path, progress: Progress | None) -> Searcher:
        """Encode and index a corpus, or go on with what an interrupted run left in the folder."""
        encoder = self._for(task)
        kept = _kept(folder / "vectors", encoder.identity) if self._exact else None
        metered = Metered(encoder, cut=self._cut, kept=kept)
        return _built(metered, self._mode, corpus, folder, progress, kept, self._bits)

    def _for(self, task: Task) -> Any:
        """Return the encoder at a task's lengths: the loaded one if it has them."""
        wanted = self.lengths(task)
        held = self._encoder.identity
        if Lengths(held.query_length, held.document_length) != wanted:
            self._encoder = self._load(
                self._kind, self._model, query_length=wanted.query, document_length=wanted.document
            )
        return self._encoder


class RerankingSystem:
    """A first stage, and a reranker over its best hits, as many as the task ranks."""

    def __init__(self, first: System, reranker: Reranker, identity: dict[str, Any]) -> None:
        self._first, self._reranker, self._identity = first, reranker, identity

    @property
    def name(self) -> str:
        """Both stages' names."""
        return f"{self._first.name}+{label(self._identity['name'])}"

    def describe(self, task: Task) -> dict[str, Any]:
        """The first stage's description, and the second's."""
        first = self._first.describe(task)
        rerank = self._identity | {"name": label(self._identity["name"], "/"), "depth": task.depth}
        return first | {"search": first.get("search", {}) | {"rerank": rerank}}

    def build(self, task: Task, corpus: Sequence[Document], folder: Path, progress: Progress | None) -> Searcher:
        """Index a corpus for the first stage."""
        return Reranked(self._first.build(task, corpus, folder, progress), self._reranker, task.depth)


def label(name: str, separator: str = "__") -> str:
    """Spell a model's name for a folder or a result: of a local folder only its own name, a Hub name whole."""
    path = Path(name)
    if path.is_absolute():
        return path.name
    return name.removeprefix("mbretrieve/").replace("/", separator)


class RetrieverSearcher:
    """A `Retriever` in one mode (`types.Searcher`), with what it cost to build."""

    def __init__(self, retriever: Retriever, mode: Mode, cost: dict[str, Any], twin: Retriever | None = None) -> None:
        self._retriever, self._mode, self._cost, self._twin = retriever, mode, cost, twin

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return for each query its best ``k`` documents, best first."""
        return self._retriever.search(queries, k, mode=self._mode)

    def report(self) -> dict[str, Any]:
        """Return seconds by phase, tokens encoded, documents and windows, and bytes.

        Those of vectors and codebooks, and beside them the catalogue's, which is texts, metadata and words; by words
        alone the catalogue is the index.
        """
        status = self._retriever.status()
        catalogue = status["bytes"]["catalogue"]
        vectors = status["bytes"]["total"] - catalogue
        sizes = {"bytes": catalogue} if self._mode == "lexical" else {"bytes": vectors, "catalogue_bytes": catalogue}
        return self._cost | sizes | {name: status[name] for name in ("documents", "windows")}

    def exact_twin(self) -> Searcher:
        """Return the same search over every vector; by words alone that is itself.

        Raises: ValueError if the system was not told to keep vectors.
        """
        if self._mode == "lexical":
            return self
        if self._twin is None:
            raise ValueError("exact search needs the vectors: make the system with exact=True")
        return RetrieverSearcher(self._twin, self._mode, {})

    def close(self) -> None:
        """Let go of the index's files."""
        self._retriever.close()


class _ExactIndex:
    """An index in which the nearest documents are found by `exact.search`; in all else the index it is given.

    Of a joint model's documents as many are fetched by their dense vectors as the index would fetch.
    """

    def __init__(self, retriever: Retriever, corpus: Sequence[Document], kept: VectorFile | JointFile) -> None:
        self._retriever, self._corpus, self._kept = retriever, corpus, kept

    def search(
        self,
        queries: Sequence[FloatArray | JointVectors],
        k: int,
        *,
        where: Where | None = None,
        ids: Collection[str] | None = None,
        effort: Effort | None = None,
        exact: bool = False,  # noqa: ARG002 - it always is
    ) -> list[list[Match]]:
        """Score every document of the corpus; a filter is nothing that an evaluation asks for."""
        if where is not None or ids is not None:
            raise ValueError("exact search of an evaluation ranks the whole corpus, without a filter")
        kind = self._retriever.identity.kind
        if kind != "joint":
            return self._ranked(kind, queries, self._corpus, k)
        depth = (effort or self._retriever.index.effort(k)).rescore
        fetched = self._ranked("dense", queries, self._corpus, depth)
        ranked = self.score(queries, [{match.id for match in matches} for matches in fetched])
        return [matches[:k] for matches in ranked]

    def score(self, queries: Sequence[FloatArray | JointVectors], ids: Sequence[Collection[str]]) -> list[list[Match]]:
        """Score for each query the documents named for it."""
        named = {id for some in ids for id in some}
        corpus = [document for document in self._corpus if document.id in named]
        head: Head = "dense" if self._retriever.identity.kind == "dense" else "colbert"
        return self._ranked(head, queries, corpus, max(1, *map(len, ids)), list(map(set, ids)))

    def search_both(
        self,
        queries: Sequence[FloatArray | JointVectors],
        texts: Sequence[str],
        k: int,
        join: Callable[[Mapping[str, float], Mapping[str, float]], Mapping[str, float]],
        *,
        depth: int,
        where: Where | None = None,
        ids: Collection[str] | None = None,
        effort: Effort | None = None,
        exact: bool = False,  # noqa: ARG002 - it always is
    ) -> list[list[Match]]:
        """Join, as the index does, what is exact with what it finds by words."""
        results = []
        nearest = self.search(queries, depth, where=where, ids=ids, effort=effort)
        words = self._retriever.index.lexical(texts, depth)
        also = [{match.id for match in matches[: max(1, depth // 2)]} for matches in words]
        scored = self.score(queries, also)
        for by_meaning, by_words, others in zip(nearest, words, scored, strict=True):
            meaning = {match.id: match.score for match in [*others, *by_meaning]}
            joined = join(meaning, {match.id: match.score for match in by_words if match.id in meaning})
            best = sorted(joined.items(), key=lambda one: (-one[1], one[0]))[:k]
            results.append([Match(id, score, -1, (0, 0)) for id, score in best])
        return results

    def _ranked(
        self,
        head: Head,
        queries: Sequence[FloatArray | JointVectors],
        corpus: Sequence[Document],
        k: int,
        among: Sequence[Collection[str]] | None = None,
    ) -> list[list[Match]]:
        rows = [rows_of(query, head) for query in queries]
        found = exact.search(head, rows, exact.grouped(self._documents(head, corpus)), k, among)
        return [[Match(id, score, -1, (0, 0)) for id, score in ranking] for ranking in found]

    def _documents(self, head: Head, corpus: Sequence[Document]) -> Any:
        for first in range(0, len(corpus), _EXACT_DOCUMENTS):
            some = corpus[first : first + _EXACT_DOCUMENTS]
            for document, (context, spans) in zip(some, self._retriever.windows(some), strict=True):
                texts = [passage(context, document.text[start:end]) for start, end in spans]
                self._retriever.model.encode_documents([text for text in texts if text not in self._kept])
                yield document.id, [rows_of(self._kept.rows(text), head) for text in texts]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._retriever.index, name)


_EXACT_DOCUMENTS = 256


class _WordsOnly:
    """An encoder for an index that nobody searches by meaning: one number a text, whatever it says."""

    identity = ModelIdentity("dense", "words only", None, "", 1, 1, 1)
    document_capacity = 1 << 62

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        return [np.empty((0, 2), dtype=np.int64) for _ in texts]

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return np.ones((len(texts), 1), dtype=np.float32)

    def encode_documents(self, texts: Sequence[str]) -> FloatArray:
        return np.ones((len(texts), 1), dtype=np.float32)

    def token_spans(self, text: str) -> NDArray[np.int64]:
        return np.array([[0, len(text)]])

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:  # noqa: ARG002 - no line is better
        return [np.zeros(text.count("\n") + 1, dtype=np.float32) for text in texts]


def _kept(folder: Path, identity: ModelIdentity) -> VectorFile | JointFile:
    if identity.kind == "joint":
        return JointFile(folder, identity.dim, identity.pooled_dim)
    return VectorFile(folder, identity.dim)


def _built(
    encoder: Metered,
    mode: Mode,
    corpus: Sequence[Document],
    folder: Path,
    progress: Progress | None,
    kept: VectorFile | JointFile | None,
    bits: int | None = None,
) -> RetrieverSearcher:
    """Index a corpus in a folder, going on with what is there if it is this encoder's."""
    retriever = _opened(folder / "index", cast(Encoder, encoder), bits)
    before = len(retriever.index)
    ledger = folder / "cost.json"
    spent: dict[str, float] = json.loads(ledger.read_text()) if ledger.is_file() else {}
    began = time.perf_counter()
    try:
        retriever.add(corpus, progress=progress)
    finally:
        # After Ctrl-C too: what an interrupted run spent is part of what building cost.
        whole = time.perf_counter() - began
        now = {"encode": encoder.seconds, "index": whole - encoder.seconds - encoder.counting, "tokens": encoder.tokens}
        total = {name: spent.get(name, 0.0) + value for name, value in now.items()}
        ledger.write_text(json.dumps(total | {"documents": _documents(retriever)}))
    cost: dict[str, Any] = {
        "seconds": {"encode": total["encode"], "index": total["index"]},
        "tokens": int(total["tokens"]),
    }
    if before > spent.get("documents", 0):  # a killed run wrote these, but not what it spent on them
        cost["uncounted"] = before - int(spent.get("documents", 0))
    twin = None
    if kept is not None:
        twin = Retriever(cast(Any, _ExactIndex(retriever, corpus, kept)), cast(Encoder, encoder))
    return RetrieverSearcher(retriever, mode, cost, twin)


def _documents(retriever: Retriever) -> int:
    retriever.index.refresh()
    return len(retriever.index)


def _opened(place: Path, encoder: Encoder, bits: int | None) -> Retriever:
    if place.exists():
        try:
            return Retriever.open(place, encoder)
        except (IndexFormatError, ModelError, DataError):  # begun by something else, or damaged when it was killed
            shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    return Retriever.create(place, encoder, bits=bits)
