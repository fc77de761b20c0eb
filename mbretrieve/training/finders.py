"""Where negatives come from: an encoder and its index, or BM25. Each ranks texts for queries, and scores given ones."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.evaluation.bm25 import BM25, K1, B
from mbretrieve.evaluation.rerankers import Reranker
from mbretrieve.retriever import Retriever
from mbretrieve.training.pairs import Found, Scores, text_id
from mbretrieve.types import Document, Encoder, Progress, rows_of


def of_reranker(reranker: Reranker) -> Scores:
    """Score by what ranks texts for a query: a cross-encoder."""

    def scores(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[score for _, score in sorted(ranked)] for ranked in reranker.rerank(queries, texts)]

    return scores


def of_encoder(encoder: Encoder) -> Scores:
    """Score by an encoder's vectors, exactly: MaxSim, a joint model's too, or the cosine. A text of many queries is
    encoded once."""

    def scores(queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        import torch

        from mbretrieve import scoring

        distinct = list(dict.fromkeys(chain.from_iterable(texts)))
        places = {text: place for place, text in enumerate(distinct)}
        vectors = [torch.from_numpy(rows_of(found, "colbert")) for found in encoder.encode_documents(distinct)]
        out: list[list[float]] = []
        for query, some in zip(encoder.encode_queries(queries), texts, strict=True):
            rows = [vectors[places[text]] for text in some]
            question = torch.from_numpy(rows_of(query, "colbert"))
            if not rows:
                out.append([])
            elif encoder.identity.kind == "dense":
                out.append(scoring.cosine(question, torch.cat(rows))[0].tolist())
            else:
                offsets = torch.from_numpy(np.cumsum([0, *map(len, rows)]))
                out.append(scoring.maxsim_ragged(question, torch.cat(rows), offsets).tolist())
        return out

    return scores


class _Uncut:
    """An encoder for which each document is one window, which it cuts itself (`types.Encoder`)."""

    document_capacity = 1 << 62

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.identity = encoder.identity
        self.encode_queries, self.encode_documents = encoder.encode_queries, encoder.encode_documents
        self.line_scores = encoder.line_scores

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """No token is looked for: whatever their number, there is one window."""
        return [np.empty((0, 2), dtype=np.int64)] * len(texts)


class EncoderFinder:
    """A late-interaction, dense or joint encoder, through an index of its own.

    A text is cut at the encoder's length, as training cuts it: no windows. Ranks are the index's: those of exact search
    in one that keeps vectors as they came, near it in one that is large enough to be packed. With ``stored``, scores
    are of the index's vectors, which are rounded if they are a token's; without, texts are encoded again and scored
    exactly.
    """

    def __init__(self, encoder: Encoder, *, stored: bool = False) -> None:
        self._encoder, self._stored = encoder, stored
        self.scored = stored or encoder.identity.kind == "dense"  # whose vectors an index keeps as they are
        self._exact = of_encoder(encoder)
        self._retriever: Retriever | None = None
        self._asked: dict[str, Any] = {}  # the vectors of the queries searched last

    @property
    def identity(self) -> dict[str, Any]:
        """The encoder's, and where scores come from."""
        return asdict(self._encoder.identity) | {"scores": "index" if self._stored else "model"}

    def build(self, texts: Iterable[Document], folder: Path, progress: Progress | None) -> None:
        """Encode and index texts in a folder, or what of them an interrupted run left to do."""
        encoder = cast(Encoder, _Uncut(self._encoder))
        place = folder / "index"
        try:
            self._retriever = Retriever.open(place, encoder)
        except IndexFormatError:  # not begun, or killed while it was
            shutil.rmtree(place, ignore_errors=True)
            self._retriever = Retriever.create(place, encoder)
        self._retriever.add(texts, progress=progress)

    def search(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        """Return for each query its best ``k`` texts, best first."""
        self._asked = dict(zip(queries, self._encoder.encode_queries(queries), strict=True))
        matches = self._built().index.search([self._asked[query] for query in queries], k)
        return [[(match.id, match.score) for match in of_query] for of_query in matches]

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Return texts by their ids."""
        return {document.id: document.text for document in self._built().index.documents(set(ids))}

    def scores(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score texts for each query that was searched last; where ``scored`` only those that were indexed."""
        if not self.scored:
            return self._exact(queries, texts)
        ids = [[text_id(text) for text in some] for some in texts]
        found = self._built().index.score([self._asked[query] for query in queries], ids)
        known = [{match.id: match.score for match in matches} for matches in found]
        return [[of_query[id] for id in some] for of_query, some in zip(known, ids, strict=True)]

    def close(self) -> None:
        """Let go of the index's files."""
        if self._retriever is not None:
            self._retriever.close()

    def _built(self) -> Retriever:
        if self._retriever is None:
            raise ValueError("search comes after build")
        return self._retriever


class Bm25Finder:
    """BM25 (`evaluation.bm25`), which holds all texts in memory. A text that shares no word with a query scores 0."""

    scored = True

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._documents: list[Document] = []
        self._bm25: BM25 | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Its parameters."""
        return {"kind": "bm25", "k1": K1, "b": B}

    def build(self, texts: Iterable[Document], folder: Path, progress: Progress | None) -> None:  # noqa: ARG002
        """Index texts, in memory."""
        self._documents = list(texts)
        self._rows = {document.id: row for row, document in enumerate(self._documents)}
        self._bm25 = BM25(self._documents)

    def search(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        """Return for each query its best ``k`` texts, best first; only those that share a word with it."""
        return [[(hit.id, hit.score) for hit in hits] for hits in self._built().search(queries, k)]

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Return texts by their ids."""
        return {id: self._documents[self._rows[id]].text for id in ids}

    def scores(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score texts, which were indexed, for each query."""
        out = []
        for query, some in zip(queries, texts, strict=True):
            of_query = self._built().scores(query)
            out.append([float(of_query[self._rows[text_id(text)]]) for text in some])
        return out

    def close(self) -> None:
        """There are no files."""

    def _built(self) -> BM25:
        if self._bm25 is None:
            raise ValueError("search comes after build")
        return self._bm25
