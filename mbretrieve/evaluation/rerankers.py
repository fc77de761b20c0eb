"""Second stages: what reads a query and a text together, or encodes both, and ranks a first stage's hits anew."""

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mbretrieve.errors import MissingExtraError, ModelError
from mbretrieve.types import Hit, Searcher


class Reranker(Protocol):
    """What scores texts for a query: `CrossEncoder` here, and our encoders."""

    def rerank(self, queries: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[tuple[int, float]]]:
        """Return for each query (position among its candidates, score), best first."""


@runtime_checkable
class Twinned(Protocol):
    """A searcher that has an exact twin: the same ranking without what its index leaves out."""

    def exact_twin(self) -> Searcher:
        """Return the twin."""


class CrossEncoder:
    """A sentence-transformers cross-encoder; a text is cut at its limit. Raises: MissingExtraError; ModelError."""

    def __init__(self, name: str, device: str | None = None) -> None:
        try:
            library: Any = importlib.import_module("sentence_transformers")
        except ModuleNotFoundError as error:
            raise MissingExtraError("sentence-transformers", "rerank", "reranking with a cross-encoder") from error
        safe = {"use_safetensors": True}  # anything else is a pickle
        try:
            self._model = library.CrossEncoder(name, device=device, model_kwargs=safe, num_labels=1)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"{name} cannot be loaded as a cross-encoder ({first}): expected a folder or a name on the Hugging "
                "Face Hub, of a sequence classifier with one label in safetensors"
            ) from error
        folder = Path(name) if Path(name).is_dir() else None
        self.identity = {
            "kind": "cross-encoder",
            "name": name if folder is None else str(folder.resolve()),
            "revision": getattr(self._model.model.config, "_commit_hash", None),
            "content_hash": None if folder is None else _content_hash(folder),
        }

    def rerank(self, queries: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[tuple[int, float]]]:
        """Score each query with each of its candidates; best first, equal scores keep their order."""
        ranked = []
        for query, texts in zip(queries, candidates, strict=True):
            pairs = [(query, text) for text in texts]
            scores = self._model.predict(pairs, show_progress_bar=False).tolist() if pairs else []
            ranked.append(sorted(enumerate(scores), key=lambda pair: -pair[1]))
        return ranked


def _content_hash(folder: Path) -> str:
    """Hash a local model's weights: what a commit says of one on the Hub."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class Reranked:
    """A first stage whose best ``depth`` hits a reranker puts in its own order (`types.Searcher`)."""

    def __init__(self, first: Searcher, reranker: Reranker, depth: int) -> None:
        self._first, self._reranker, self._depth = first, reranker, depth

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Return for each query the best ``k`` of what the first stage found."""
        found = self._first.search(queries, max(k, self._depth))
        heads = [hits[: self._depth] for hits in found]
        ranked = self._reranker.rerank(queries, [[hit.text for hit in hits] for hits in heads])
        return [
            [replace(hits[at], score=score) for at, score in order][:k]
            for hits, order in zip(heads, ranked, strict=True)
        ]

    def report(self) -> dict[str, Any]:
        """Return what the first stage cost; the second keeps nothing."""
        return self._first.report()

    def exact_twin(self) -> Searcher:
        """Return the same second stage over the first one's twin; itself if the first stage is exact."""
        twin = self._first.exact_twin() if isinstance(self._first, Twinned) else self._first
        return self if twin is self._first else Reranked(twin, self._reranker, self._depth)

    def close(self) -> None:
        """Let go of the first stage's files."""
        if callable(close := getattr(self._first, "close", None)):
            close()
