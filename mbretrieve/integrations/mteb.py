"""Our encoders as mteb models (mteb 2), so that any of mteb's tasks runs.

    import mteb
    from mbretrieve import DenseEncoder
    from mbretrieve.integrations.mteb import mteb_model

    mteb.evaluate(mteb_model(DenseEncoder.from_pretrained()), mteb.get_task("STSBenchmark"))

A dense encoder runs every task on text; a late-interaction encoder those that retrieve or rerank, by exact MaxSim.
Documents are cut at ``document_length``, as mteb's other models do: ``mbretrieve eval --truncate`` is the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from mbretrieve.errors import MissingExtraError
from mbretrieve.evaluation import exact
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.types import FloatArray, ModelIdentity

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ModuleNotFoundError as error:
    raise MissingExtraError("mteb", "mteb", "running mteb's tasks") from error

TEXTS_AT_ONCE = 1024


def mteb_model(encoder: ColBERT | DenseEncoder) -> "MtebDense | MtebColBERT":
    """Return an encoder as what ``mteb.evaluate`` takes."""
    return MtebColBERT(encoder) if isinstance(encoder, ColBERT) else MtebDense(encoder)


class MtebDense(AbsEncoder):
    """A dense encoder for mteb, whose ``EncoderProtocol`` this is.

    What mteb calls a query is encoded as one; all else, the texts of symmetric tasks too, as documents.
    """

    def __init__(self, encoder: DenseEncoder) -> None:
        self._encoder = encoder
        self.mteb_model_meta = _meta(encoder.identity, "dense", ScoringFunction.COSINE)

    def encode(
        self, inputs: Iterable[dict[str, Any]], *, prompt_type: PromptType | None = None, **_: Any
    ) -> FloatArray:
        """Encode the batches of a data loader: (n, dim) float32, in their order."""
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type == PromptType.query:
            return self._encoder.encode_queries(texts)
        return self._encoder.encode_documents(texts)


class MtebColBERT:
    """A late-interaction encoder for mteb, whose ``SearchProtocol`` this is: every document is scored."""

    def __init__(self, encoder: ColBERT) -> None:
        self._encoder = encoder
        self.mteb_model_meta = _meta(encoder.identity, "late-interaction", ScoringFunction.MAX_SIM)
        self._corpus: Any = None

    def index(self, corpus: Any, **_: Any) -> None:
        """Take a corpus, a dataset of ``id``, ``text`` and perhaps ``title``; it is encoded by ``search``."""
        self._corpus = corpus

    def search(
        self, queries: Any, *, top_k: int, top_ranked: dict[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return for each query its best documents' scores; of those in ``top_ranked`` only, if that is given."""
        if self._corpus is None:
            raise ValueError("there is no corpus: call index before search")
        ids = [str(id) for id in queries["id"]]
        vectors = self._encoder.encode_queries([_query(row) for row in queries])
        if top_ranked is None:
            ranked = exact.search("colbert", vectors, exact.grouped(self._documents()), top_k)
            return {id: dict(ranking) for id, ranking in zip(ids, ranked, strict=True)}
        wanted = {document for documents in top_ranked.values() for document in documents}
        kept = dict(self._documents(wanted.__contains__))
        results: dict[str, dict[str, float]] = {}
        for id, query in zip(ids, vectors, strict=True):
            candidates = [(document, kept[document]) for document in top_ranked.get(id, ())]
            [ranking] = exact.search("colbert", [query], exact.grouped(candidates), top_k)
            results[id] = dict(ranking)
        return results

    def _documents(self, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Sequence[FloatArray]]]:
        """Encode the corpus, a bounded number of documents at a time."""
        for first in range(0, len(self._corpus), TEXTS_AT_ONCE):
            rows = self._corpus.select(range(first, min(first + TEXTS_AT_ONCE, len(self._corpus))))
            texts = {str(row["id"]): _document(row) for row in rows if wanted(str(row["id"]))}
            for id, vectors in zip(texts, self._encoder.encode_documents(list(texts.values())), strict=True):
                yield id, [vectors]


def _document(row: dict[str, Any]) -> str:
    """A document's title and text, as mteb joins them."""
    return f"{row.get('title') or ''} {row['text']}".strip()


def _query(row: dict[str, Any]) -> str:
    """A query with its instruction behind it, and a conversation in one string, as mteb joins them."""
    text = row["text"]
    if isinstance(text, list):
        return "; ".join(f"{turn['role']}: {turn['content']}" if isinstance(turn, dict) else turn for turn in text)
    return f"{text} {row['instruction']}" if row.get("instruction") else cast(str, text)


def _meta(identity: ModelIdentity, model_type: str, similarity: ScoringFunction) -> ModelMeta:
    """What mteb keeps of a model. Its results are cached by name and revision: a local folder's is its content."""
    path = identity.name.replace("\\", "/")
    name = path if path.count("/") == 1 else f"local/{path.rsplit('/', 1)[-1]}"
    told = {
        "name": name,
        "revision": identity.revision or identity.content_hash,
        "model_type": [model_type],
        "similarity_fn_name": similarity,
        "max_tokens": identity.document_length,
        "embed_dim": identity.dim,
        "framework": ["PyTorch"],
        "modalities": ["text"],
    }
    return ModelMeta.create_empty(overwrites=told)
