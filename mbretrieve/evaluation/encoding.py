"""An encoder as evaluation uses it: timed, counted, and, where exact search follows, with its vectors kept on disk."""

import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbretrieve.types import Encoder, FloatArray, JointVectors, ModelIdentity, as_window

_RECORD = np.dtype([("key", "V16"), ("rows", "<i8")])


class VectorFile:
    """Document vectors by their text: float32 rows, appended to one file, and a record for each text in another.

    A run that was killed leaves at most an unfinished end, which the next one drops. Texts are named by a hash.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._dim = dim
        self._vectors, self._records = folder / "vectors.f32", folder / "records.bin"
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        self._mapped: NDArray[np.float32] | None = None
        for path in (self._vectors, self._records):
            path.touch()
        width = 4 * dim
        there = self._vectors.stat().st_size // width
        raw = self._records.read_bytes()
        records = np.frombuffer(raw, _RECORD, len(raw) // _RECORD.itemsize)
        whole = int(np.searchsorted(np.cumsum(records["rows"]), there, side="right"))
        for record in records[:whole]:
            self._remember(record["key"].tobytes(), int(record["rows"]))
        with self._vectors.open("r+b") as vectors, self._records.open("r+b") as kept:
            vectors.truncate(self._end * width)
            kept.truncate(whole * _RECORD.itemsize)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._places

    def append(self, texts: Sequence[str], vectors: Sequence[FloatArray]) -> None:
        """Keep the vectors of some texts, (rows, dim) each."""
        fresh: dict[bytes, FloatArray] = {}
        for text, rows in zip(texts, vectors, strict=True):
            if (key := _key(text)) not in self._places:
                fresh[key] = np.asarray(rows, dtype="<f4")
        with self._vectors.open("ab") as file:
            for rows in fresh.values():
                file.write(rows.tobytes())
        # Records come second: a record promises that its vectors are there.
        with self._records.open("ab") as file:
            for key, rows in fresh.items():
                file.write(np.array([(key, len(rows))], dtype=_RECORD).tobytes())
        for key, rows in fresh.items():
            self._remember(key, len(rows))
        self._mapped = None

    def rows(self, text: str) -> FloatArray:
        """Return the vectors of a text that is here, (rows, dim), mapped from disk."""
        if self._mapped is None:
            self._mapped = np.memmap(self._vectors, "<f4", mode="r", shape=(self._end, self._dim))
        first, count = self._places[_key(text)]
        return self._mapped[first : first + count]

    def _remember(self, key: bytes, rows: int) -> None:
        self._places[key] = (self._end, rows)
        self._end += rows


class JointFile:
    """What ``VectorFile`` does, for the vectors of both heads: a text is here when those of both are."""

    def __init__(self, folder: Path, dim: int, pooled_dim: int) -> None:
        self._tokens, self._pooled = VectorFile(folder / "tokens", dim), VectorFile(folder / "pooled", pooled_dim)

    def __contains__(self, text: str) -> bool:
        return text in self._tokens and text in self._pooled

    def append(self, texts: Sequence[str], vectors: Sequence[JointVectors]) -> None:
        """Keep the vectors of some texts."""
        self._tokens.append(texts, [both.tokens for both in vectors])
        self._pooled.append(texts, [both.pooled[None] for both in vectors])

    def rows(self, text: str) -> JointVectors:
        """Return the vectors of a text that is here, mapped from disk."""
        return JointVectors(self._tokens.rows(text), self._pooled.rows(text)[0])


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Metered:
    """An encoder that measures what encoding documents costs; otherwise the encoder it is given (`types.Encoder`).

    ``seconds`` and ``tokens`` are of documents encoded here: their windows' own tokens, overlaps counted, special
    tokens not. ``counting`` are the seconds that counting took. With ``cut``, a document is its first
    ``document_capacity`` tokens, as if there were no windows. ``kept`` holds vectors, which are then not made twice.
    """

    def __init__(self, encoder: Encoder, *, cut: bool = False, kept: VectorFile | JointFile | None = None) -> None:
        self._encoder, self._cut, self._kept = encoder, cut, kept
        self.seconds = 0.0
        self.counting = 0.0
        self.tokens = 0

    @property
    def identity(self) -> ModelIdentity:
        """The encoder's."""
        return self._encoder.identity

    @property
    def document_capacity(self) -> int:
        """The encoder's."""
        return self._encoder.document_capacity

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The encoder's; with ``cut`` no more of them than a document can have, so that it is one window."""
        offsets = self._encoder.token_offsets(texts)
        return [rows[: self.document_capacity] for rows in offsets] if self._cut else offsets

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """The encoder's."""
        return self._encoder.encode_queries(texts)

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """The encoder's."""
        return self._encoder.token_spans(text)

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """The encoder's."""
        return self._encoder.line_scores(query, texts)

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """The encoder's, measured; what is kept is not encoded again."""
        if self._kept is None:
            return self._measured(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if missing:
            made: list[Any] = [as_window(vectors) for vectors in self._measured(missing)]
            self._kept.append(missing, made)
        found: list[Any] = [self._kept.rows(text) for text in texts]
        return found if self.identity.kind != "dense" or not found else np.concatenate(found)

    def _measured(self, texts: Sequence[str]) -> Any:
        began = time.perf_counter()
        vectors = self._encoder.encode_documents(texts)
        ended = time.perf_counter()
        capacity = self.document_capacity
        self.tokens += sum(min(len(offsets), capacity) for offsets in self._encoder.token_offsets(texts))
        self.seconds += ended - began
        self.counting += time.perf_counter() - ended
        return vectors
