"""Who encodes: mbretrieve, and beside it transformers and sentence-transformers, all from one model folder.

Each takes texts and gives float32 rows on the host, tokenisation and copies included. Peers get batches of texts of
like length, padded to the longest: as many texts as come to ``batch_tokens``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mbretrieve.bench.works import Documents
from mbretrieve.errors import DataError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.device import default_dtype
from mbretrieve.types import FloatArray

OURS: dict[str, tuple[str | None, ...]] = {"cpu": (None, "int8")}
"""The dtypes in which mbretrieve runs on a kind of device, as ``from_pretrained`` takes them; None: as shipped, the
device's best, and that alone where nothing is said."""
DTYPES = ("bfloat16", "float16", "float32", "int8")
"""Those that can be asked for."""


def parse(names: str | None) -> tuple[str, ...] | None:
    """Read a list of dtypes parted by commas; None: those that mbretrieve runs in by itself.

    Raises: DataError for a name that is none.
    """
    if names is None:
        return None
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen or not set(chosen) <= set(DTYPES):
        raise DataError(f"dtype is {names!r}, expected some of {','.join(DTYPES)}")
    return chosen


class Place(NamedTuple):
    """A model folder, the device it runs on, and how many tokens go through it at once."""

    folder: Path
    device: torch.device
    batch_tokens: int


class Engine(ABC):
    """What encodes documents; ``attention`` says how, where that makes a difference."""

    name: str
    dtype: str
    attention: str

    @abstractmethod
    def encode(self, documents: Documents) -> list[FloatArray]:
        """Encode documents: one (tokens_i, dim) float32 array a text."""

    @abstractmethod
    def at_once(self, texts: Sequence[str]) -> None:
        """Encode all documents in one batch. Raises: torch.OutOfMemoryError if there is too little memory for it."""


class Ours(Engine):
    """mbretrieve."""

    name, attention = "mbretrieve", "packed"

    def __init__(self, place: Place, dtype: str | None) -> None:
        self._batch_tokens = place.batch_tokens
        self.model = ColBERT.from_pretrained(place.folder, device=place.device, dtype=dtype)
        self.dtype = dtype or _name(self.model.dtype)

    def encode(self, documents: Documents) -> list[FloatArray]:
        """See ``Engine``."""
        return self.model.encode_documents(documents.texts, batch_tokens=self._batch_tokens)

    def at_once(self, texts: Sequence[str]) -> None:
        """See ``Engine``."""
        with torch.inference_mode():
            self.model.project(self.model.documents.prepare(texts), self.model.documents)


class Peer(Engine):
    """Another library: batches of so many texts of like length, padded to the longest."""

    def __init__(self, place: Place, dtype: torch.dtype) -> None:
        self._place, self.dtype = place, _name(dtype)

    def encode(self, documents: Documents) -> list[FloatArray]:
        """See ``Engine``."""
        return self._encode(documents.texts, max(1, self._place.batch_tokens // max(documents.lengths)))

    def at_once(self, texts: Sequence[str]) -> None:
        """See ``Engine``."""
        self._encode(texts, len(texts))

    @abstractmethod
    def _encode(self, texts: Sequence[str], count: int) -> list[FloatArray]:
        """Encode texts, ``count`` at a time."""


class Transformers(Peer):
    """transformers' ModernBertModel, with the tokens and the projection that mbretrieve has."""

    name = "transformers"

    def __init__(self, place: Place, dtype: torch.dtype) -> None:
        from transformers import ModernBertModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        super().__init__(place, dtype)
        kernel, self.attention = _attention(place.device, dtype)
        model: Any = ModernBertModel.from_pretrained(place.folder, dtype=dtype, attn_implementation=kernel)
        self._model = model.to(place.device).eval()
        ours = ColBERT.from_pretrained(place.folder, device="cpu", dtype="float32")
        self._frame, self._projection = ours.documents, ours.projection.to(place.device, dtype)

    def _encode(self, texts: Sequence[str], count: int) -> list[FloatArray]:
        prepared = [np.array(text.ids) for text in self._frame.prepare(texts)]
        order = sorted(range(len(texts)), key=lambda place: -len(prepared[place]))
        out: list[FloatArray] = [np.empty((0, 0), dtype=np.float32)] * len(texts)
        with torch.inference_mode():
            for start in range(0, len(order), count):
                places = order[start : start + count]
                for place, rows in zip(places, self._rows([prepared[place] for place in places]), strict=True):
                    out[place] = rows[self._frame.with_row(prepared[place].tolist())]
        return out

    def _rows(self, batch: list[Any]) -> list[FloatArray]:
        lengths = torch.tensor([len(ids) for ids in batch])
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in batch], batch_first=True)  # (B, n)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        moved = {"input_ids": ids.to(self._place.device), "attention_mask": mask.to(self._place.device)}
        rows: Tensor = self._projection(self._model(**moved).last_hidden_state).float()  # (B, n, dim)
        if self._frame.side.normalize:
            rows = F.normalize(rows, dim=-1)
        return [found[:length] for found, length in zip(rows.cpu().numpy(), lengths.tolist(), strict=True)]


class SentenceTransformers(Peer):
    """sentence-transformers' MultiVectorEncoder."""

    name = "sentence-transformers"

    def __init__(self, place: Place, dtype: torch.dtype) -> None:
        from sentence_transformers import MultiVectorEncoder

        super().__init__(place, dtype)
        kernel, self.attention = _attention(place.device, dtype)
        loading = {"dtype": dtype, "attn_implementation": kernel}
        # .to: the modules behind the transformer are loaded in float32 whatever it is loaded in.
        self._model: Any = MultiVectorEncoder(str(place.folder), device=str(place.device), model_kwargs=loading).to(
            dtype
        )

    def _encode(self, texts: Sequence[str], count: int) -> list[FloatArray]:
        rows: list[FloatArray] = self._model.encode_document(
            list(texts), batch_size=count, convert_to_numpy=True, show_progress_bar=False
        )
        return rows


PEERS = (Transformers, SentenceTransformers)


class Started(NamedTuple):
    """The engines that run here, and by name why others do not."""

    engines: list[Engine]
    left_out: dict[str, str]


def start(place: Place, peers: bool, dtypes: Sequence[str | None] | None = None) -> Started:
    """Load the model into mbretrieve, in each dtype, and if they are asked for into each peer: as shipped (float32) and
    at its best.

    Raises: ModelError if mbretrieve cannot load it.
    """
    started = Started([Ours(place, dtype) for dtype in dtypes or OURS.get(place.device.type, (None,))], {})
    if not peers:
        return started
    for peer in PEERS:
        for dtype in dict.fromkeys((torch.float32, default_dtype(place.device))):
            try:
                started.engines.append(peer(place, dtype))
            except ImportError as error:  # not installed, or older than what is asked of it
                started.left_out[peer.name] = " ".join(str(error).split())
    return started


def agreement(engines: Sequence[Engine], documents: Documents) -> list[float | None]:
    """Hold the engines' vectors against each other: for each the least cosine, over all tokens, with those of the first
    one that computes in float32, else of the first; None where one has other rows for a text, so that nothing compares.
    """
    reference = next((engine for engine in engines if engine.dtype == "float32"), engines[0])
    wanted = reference.encode(documents)
    return [_least_cosine(engine.encode(documents), wanted) for engine in engines]


def _least_cosine(ours: Sequence[FloatArray], theirs: Sequence[FloatArray]) -> float | None:
    if [rows.shape for rows in ours] != [rows.shape for rows in theirs]:
        return None
    one, other = np.concatenate(ours), np.concatenate(theirs)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / np.maximum(lengths, 1e-12)).min())


def _attention(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Return the kernel to ask transformers for, and what it is called: flash-attn where it is installed and serves."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and find_spec("flash_attn") is not None:
        return "flash_attention_2", "flash-attn, unpadded"
    return "sdpa", "padded SDPA"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
