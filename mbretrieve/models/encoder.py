"""What both encoders share: loading and saving, text to packed batches of tokens, batches through the backbone."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve.errors import MbretrieveWarning, ModelError
from mbretrieve.models.card import TrainingFacts
from mbretrieve.models.checkpoint import load, save
from mbretrieve.models.device import default_dtype, resolve_device, resolve_dtype
from mbretrieve.models.framing import Frame, Prepared
from mbretrieve.models.identity import identify
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.models.packing import pack
from mbretrieve.models.projection import Layer, projection
from mbretrieve.models.settings import Checkpoint
from mbretrieve.models.source import locate
from mbretrieve.models.transfer import OnTheWay, ahead, out_of_memory, to_device
from mbretrieve.types import FloatArray, JointVectors, Kind, ModelIdentity

BATCH_TOKENS = 8192
"""Tokens that go through the backbone at once; a longer text goes alone."""
# Texts are tokenized and sorted by length this many tokens at a time: neighbours of like length, and bounded memory.
_WINDOW_TOKENS = 32 * BATCH_TOKENS
_WINDOW_TEXTS = 256
_TOKENIZED_AHEAD = {"cuda", "mps"}  # a CPU that computes has no core to spare for it
_SCORED_WHERE_COMPUTED = {"cuda"}  # candidates' vectors that would otherwise cross to the CPU, only to be scored
_UNBOUNDED = 1 << 62

Progress = Callable[[int], None]
"""Called with the number of texts finished since the last call."""
Made = TypeVar("Made")


class _Batch(NamedTuple):
    """Texts that go through the backbone together, and their places among all."""

    places: list[int]
    texts: list[Prepared]


class TextEncoder(ABC):
    """A ModernBERT with a head; its subclasses say what becomes of the hidden states."""

    kind: ClassVar[Kind]

    def __init__(
        self,
        checkpoint: Checkpoint,
        identity: ModelIdentity,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        # Without the weights as they were read: in another dtype they would be held twice.
        self._checkpoint = replace(checkpoint, backbone={}, projection=())
        self.identity = identity
        self.backbone = ModernBert(checkpoint.config, checkpoint.backbone).to(device, dtype).eval()
        width = checkpoint.config.hidden_size
        self.projection = projection(checkpoint.projection, width).to(device, dtype).eval()
        settings = checkpoint.settings
        self.queries = Frame(
            checkpoint, settings.queries, identity.query_length, "query_length", expansion=settings.expansion
        )
        self.documents = Frame(
            checkpoint, settings.documents, identity.document_length, "document_length", expansion=None
        )
        self._fits = _UNBOUNDED  # tokens of a batch for which there is memory
        self._said_cut = False

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        dim: int | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a model: a folder, a name on the Hugging Face Hub, or without a name the bundled one, offline.

        ``device``: the first GPU, else the CPU; several are for ``mbretrieve.load_encoder``. ``dtype``: bfloat16 where
        the device computes in it, else float32; ``int8``, on a CPU, quantizes the layers' matrices: faster for large
        models, and for encoding only.
        ``query_length``, ``document_length``: the most tokens, special ones counted; the saved ones if not given.
        ``dim``: only the first so many numbers of each vector (Matryoshka, https://arxiv.org/abs/2205.13147), scaled to
        unit length again. ``revision``: a branch, tag or commit on the Hub. ``local_files_only``: never ask the Hub.
        Raises: ModelError, one line, for a model that is not there, damaged or of another kind than is read, and for
        lengths or a dim beyond the model's.
        """
        source = locate(name, revision, local_files_only)
        saved, identity = identify(
            load(source.folder), source, cls.kind, dim=dim, query_length=query_length, document_length=document_length
        )
        where = resolve_device(device)
        if dtype not in ("int8", torch.int8):
            return cls(saved, identity, where, resolve_dtype(dtype, where, others=["int8"]))
        encoder = cls(saved, identity, where, default_dtype(where))
        encoder.backbone.quantize()
        return encoder

    def save_pretrained(
        self, folder: str | Path, *, layout: str | None = None, card: TrainingFacts | None = None
    ) -> None:
        """Write the model to a folder, weights in the dtype it was loaded in (``dtype="float32"`` rounds nothing).

        ``layout``: late interaction: ``pylate`` (also read by sentence-transformers), ``sentence-transformers`` or
        ``stanford``; not given: the first of these that can express the model. Dense: ``sentence-transformers``.
        ``dim`` is not part of a layout: the whole vectors are saved. ``card``: what README.md, written with the model,
        says of its training; without it a model that was loaded and not changed since keeps the card it had.
        Raises: ModelError naming what the layout cannot express, or why the folder cannot be written; for a model in
        int8, which has no more the weights that it was loaded with.
        """
        if self.dtype == torch.int8:
            raise ModelError("the model was loaded in int8, which is for encoding only: to save it, load it in float32")
        layers = [layer for layer in self.projection if isinstance(layer, Layer)]
        now = replace(
            self._checkpoint, backbone=self.backbone.state_dict(), projection=tuple(layer.record() for layer in layers)
        )
        save(now, Path(folder).expanduser(), layout, card)

    @property
    def dim(self) -> int:
        """The numbers in each vector."""
        return self.identity.dim

    @property
    def query_length(self) -> int:
        """The most tokens of a query, markers and special tokens counted."""
        return self.identity.query_length

    @property
    def document_length(self) -> int:
        """The most tokens of a document, markers and special tokens counted."""
        return self.identity.document_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.embeddings.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights; vectors come as float32 whatever it is."""
        return self.backbone.dtype

    @property
    def document_capacity(self) -> int:
        """How many tokens of its own a document can have beside markers, prompt and special tokens."""
        return self.documents.room - self.documents.prompt_tokens

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Tokenize without special tokens and without a limit: each text's tokens' (tokens, 2) character ranges."""
        return list(self._checkpoint.tokenizer.offsets(texts))

    def query_was_cut(self, query: str) -> bool:
        """Whether a query has more tokens than are encoded."""
        return self.queries.contents([query])[0].cut

    @abstractmethod
    def encode_queries(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> Any:
        """Encode queries."""

    @abstractmethod
    def encode_documents(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> Any:
        """Encode documents."""

    @abstractmethod
    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters of ``text`` behind each row of its vectors: (rows, 2)."""

    @abstractmethod
    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """Score each line of each text (parted at ``\\n``) by what it has to do with the query."""

    @abstractmethod
    def _score(self, query: Any, documents: Any) -> Tensor:
        """Score one encoded query against encoded documents: (D,) float32."""

    @abstractmethod
    def _score_batch(self, query: Tensor, batch: Sequence[Prepared]) -> Tensor:
        """Score one encoded query, (I, dim) or (dim,), against documents that are to be encoded: (D,) float32. Both are
        on the model's device."""

    def rerank(self, queries: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[tuple[int, float]]]:
        """Score each query's candidate texts exactly.

        Returns for each query (position among its candidates, score), best first; equal scores keep their order.
        Raises: ValueError unless there is one list of candidates a query.
        """
        if len(queries) != len(candidates):
            raise ValueError(f"{len(queries)} queries have {len(candidates)} lists of candidates, expected one each")
        ranked = []
        for query, texts in zip(self.encode_queries(queries), candidates, strict=True):
            if self.device.type in _SCORED_WHERE_COMPUTED:
                scores = self._scores_of(query, texts)
            else:
                scores = self._score(query, self.encode_documents(texts)).tolist() if texts else []
            ranked.append(sorted(enumerate(scores), key=lambda pair: -pair[1]))
        return ranked

    def _scores_of(self, query: Any, texts: Sequence[str]) -> list[float]:
        """Score texts batch by batch on the model's device: what comes back of a text is its score."""
        out = [0.0] * len(texts)
        numbers = query.tokens if isinstance(query, JointVectors) else query
        question = to_device(torch.from_numpy(numbers), self.device)

        def compute(batch: list[Prepared]) -> tuple[Tensor]:
            return (self._score_batch(question, batch),)

        def part(_: list[Prepared], scores: FloatArray) -> list[float]:
            found: list[float] = scores.tolist()
            return found

        with torch.inference_mode():
            for place, score in self._each(texts, self.documents, BATCH_TOKENS, None, compute, part):
                out[place] = score
        return out

    def hidden_states(self, batch: Sequence[Prepared], frame: Frame) -> Tensor:
        """Run prepared texts through the backbone, packed: (T, hidden) for their T tokens; differentiable."""
        ids = torch.tensor([token for text in batch for token in text.ids], dtype=torch.int64)
        attended = frame.attended(batch)
        mask = None if attended is None else to_device(torch.from_numpy(attended), self.device)
        states: Tensor = self.backbone(to_device(ids, self.device), [len(text.ids) for text in batch], mask)
        return states

    def _each(
        self,
        texts: Sequence[str],
        frame: Frame,
        batch_tokens: int,
        progress: Progress | None,
        compute: Callable[[list[Prepared]], tuple[Tensor, ...]],
        part: Callable[..., Iterable[Made]],
    ) -> Iterator[tuple[int, Made]]:
        """Compute texts, batch by batch: each one's place in ``texts``, and what becomes of it.

        ``compute`` gives tensors of a batch, ``part`` what each text gets of them, from the batch and the tensors as
        arrays on the CPU, of which it keeps none. While a device computes a batch, the one before it is parted.
        """
        before: tuple[_Batch, OnTheWay] | None = None

        def parted(batch: _Batch, tensors: OnTheWay) -> Iterator[tuple[int, Made]]:
            yield from zip(batch.places, part(batch.texts, *tensors.arrays()), strict=True)
            if progress is not None:
                progress(len(batch.places))

        for batch in self._batches(texts, frame, batch_tokens):
            for fitting, tensors in self._fitting(batch, compute):
                now = fitting, OnTheWay(tensors)
                if before is not None:
                    yield from parted(*before)
                before = now
        if before is not None:
            yield from parted(*before)

    def _fitting(
        self, batch: _Batch, compute: Callable[[list[Prepared]], tuple[Tensor, ...]]
    ) -> Iterator[tuple[_Batch, tuple[Tensor, ...]]]:
        """Compute a batch; where memory ends, in parts of half as many tokens, which is then the bound for all others.

        Raises: ModelError if one text alone is too much.
        """
        waiting = [batch]
        while waiting:
            some = waiting.pop()
            lengths = [len(text.ids) for text in some.texts]
            if len(lengths) > 1 and sum(lengths) > self._fits:
                parts = reversed(pack(lengths, self._fits))
                waiting += [_Batch([some.places[at] for at in one], [some.texts[at] for at in one]) for one in parts]
                continue
            try:
                tensors = compute(some.texts)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            else:
                yield some, tensors
                continue
            # Not where the error is caught: it holds the tensors of the attempt.
            self._halve(lengths)
            waiting.append(some)

    def _halve(self, lengths: list[int]) -> None:
        """Lower the bound on a batch's tokens to half of those that did not fit; say so the first time."""
        tokens = sum(lengths)
        if len(lengths) == 1:
            raise ModelError(
                f"memory of {self.device} ended on a text of {tokens} tokens, which cannot be split: load the model "
                "with a lower document_length or query_length, or on a device with more memory"
            )
        if self._fits == _UNBOUNDED:
            warnings.warn(
                f"memory of {self.device} ended on a batch of {tokens} tokens: going on with half as many, and half of "
                "those if need be; vectors do not depend on it",
                MbretrieveWarning,
                stacklevel=2,
            )
        self._fits = max(1, tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches(self, texts: Sequence[str], frame: Frame, batch_tokens: int) -> Iterator[_Batch]:
        """Cut texts into batches of at most ``batch_tokens`` tokens."""
        if isinstance(texts, str):
            raise TypeError("a single string came, expected a list of texts")
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}, expected at least 1")
        first = 0
        windows = self._windows(texts, frame)
        for window in ahead(windows) if self.device.type in _TOKENIZED_AHEAD else windows:
            for batch in pack([len(text.ids) for text in window], batch_tokens):
                yield _Batch([first + at for at in batch], [window[at] for at in batch])
            if frame is self.documents and any(text.cut for text in window):
                self._say_cut()
            first += len(window)

    def _say_cut(self) -> None:
        """Say once that documents are cut; of a query, ``query_was_cut`` tells."""
        if not self._said_cut:
            self._said_cut = True
            warnings.warn(
                f"a document has more than {self.document_capacity} tokens and is cut there, as longer ones will be: a "
                "Retriever, and `mbretrieve index`, make windows of them",
                MbretrieveWarning,
                stacklevel=2,
            )

    def _windows(self, texts: Sequence[str], frame: Frame) -> Iterator[list[Prepared]]:
        """Tokenize texts, so many at a time that batches can be made of like ones."""
        window = list[Prepared]()
        for start in range(0, len(texts), _WINDOW_TEXTS):
            window += frame.prepare(texts[start : start + _WINDOW_TEXTS])
            last = start + _WINDOW_TEXTS >= len(texts)
            if last or sum(len(text.ids) for text in window) >= _WINDOW_TOKENS:
                yield window
                window = []
