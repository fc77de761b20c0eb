"""BM25 as a searcher, by bm25s: the baseline that every suite is read against.

k1=0.9 and b=0.4 as in Anserini; lower-cased runs of [a-z0-9], English stop words, Snowball stems. For code, identifiers
are also cut at their humps (`parseJSONFile` -> parse, JSON, File); underscores separate anyway.
"""

import importlib
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.types import Document, FloatArray, Hit

K1 = 0.9
B = 0.4
_WORD = r"[a-z0-9]+"
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_CODE_MARK = re.compile(r"[(){}\[\]=_;<>|$\\]")
# The median document has at most 1.6% such characters in three prose sets (meeting transcripts have the most) and at
# least 5.6% in four code sets (shell commands have the fewest).
_CODE_SHARE = 0.03
_SAMPLE = 1_000


def looks_like_code(documents: Sequence[Document]) -> bool:
    """Tell code from prose by the share of brackets, operators and underscores in the median of the first documents."""
    shares = [
        len(_CODE_MARK.findall(document.text)) / len(document.text) for document in documents[:_SAMPLE] if document.text
    ]
    return bool(shares) and statistics.median(shares) > _CODE_SHARE


class BM25:
    """A corpus indexed for BM25, a `types.Searcher`.

    ``code`` says whether identifiers are cut at their humps; None looks at the corpus. Raises: DataError for an empty
    corpus or one without words; MissingExtraError.
    """

    def __init__(self, documents: Sequence[Document], code: bool | None = None) -> None:
        if not documents:
            raise DataError("the corpus is empty: BM25 needs at least one document")
        try:
            self._bm25s = importlib.import_module("bm25s")
            self._stemmer = importlib.import_module("Stemmer").Stemmer("english")
        except ModuleNotFoundError as error:
            raise MissingExtraError("bm25s with PyStemmer", "eval", "BM25") from error
        self.code = looks_like_code(documents) if code is None else code
        self._documents = documents
        began = time.perf_counter()
        tokens = self._tokens([f"{document.context} {document.text}" for document in documents])
        if not any(tokens):
            raise DataError("no document has a word for BM25: it indexes runs of a-z and 0-9 that are not stop words")
        self._index = self._bm25s.BM25(k1=K1, b=B)
        self._index.index(tokens, show_progress=False)
        self._seconds = time.perf_counter() - began

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return for each query its best ``k`` documents, best first; only documents that share a word with it.

        Raises: ValueError for k below 1.
        """
        if k < 1:
            raise ValueError(f"k is at least 1, not {k}")
        if not queries:
            return []
        depth = min(k, len(self._documents))
        found, scores = self._index.retrieve(
            self._tokens(queries), k=depth, show_progress=False, backend_selection="numpy"
        )
        return [
            [self._hit(int(row), float(score)) for row, score in zip(rows, values, strict=True) if score > 0]
            for rows, values in zip(found, scores, strict=True)
        ]

    def scores(self, query: str) -> FloatArray:
        """Score every document for one query: (documents,) float32, 0 for one that shares no word with it."""
        [tokens] = self._tokens([query])
        found: FloatArray = self._index.get_scores_from_ids(self._index.get_tokens_ids(tokens))
        return found

    def report(self) -> dict[str, Any]:
        """Return the seconds of indexing, the bytes of the postings, and the parameters."""
        postings = ("data", "indices", "indptr")
        return {
            "seconds": {"index": self._seconds},
            "bytes": sum(self._index.scores[name].nbytes for name in postings),
            "documents": len(self._documents),
            "parameters": {"k1": K1, "b": B, "code": self.code},
        }

    def _tokens(self, texts: Sequence[str]) -> Any:
        if self.code:
            texts = [_HUMP.sub(" ", text) for text in texts]
        return self._bm25s.tokenize(
            list(texts),
            lower=True,
            token_pattern=_WORD,
            stopwords="en",
            stemmer=self._stemmer,
            show_progress=False,
            return_ids=False,
        )

    def _hit(self, row: int, score: float) -> Hit:
        document = self._documents[row]
        return Hit(document.id, score, document.text, document.metadata, (0, len(document.text)))
