"""ColBERT: late interaction, one vector a token (Khattab and Zaharia, SIGIR 2020, https://arxiv.org/abs/2004.12832)."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve import scoring
from mbretrieve.models.encoder import BATCH_TOKENS, Progress, TextEncoder
from mbretrieve.models.framing import Frame, Prepared
from mbretrieve.models.lines import line_shares
from mbretrieve.models.token_pooling import pool_rows
from mbretrieve.models.transfer import to_device
from mbretrieve.types import FloatArray, Kind


def scaled_rows(projected: Tensor, frame: Frame, dim: int) -> Tensor:
    """Cut projected tokens, (T, width), to ``dim`` numbers and scale them as their side is: (T, dim) float32."""
    rows = projected[:, :dim].float()
    return torch.nn.functional.normalize(rows, dim=-1) if frame.side.normalize else rows


def token_rows(batch: Sequence[Prepared], rows: FloatArray, frame: Frame) -> list[FloatArray]:
    """Part the rows of a batch's tokens, (T, dim), by text, without those for tokens of the skiplist."""
    parts = np.split(rows, np.cumsum([len(text.ids) for text in batch])[:-1])
    return [part[frame.with_row(text.ids)] for text, part in zip(batch, parts, strict=True)]


def late_scores(query: FloatArray, documents: Sequence[FloatArray]) -> Tensor:
    """Score documents' rows against a query's by MaxSim: (D,) float32."""
    offsets = np.cumsum([0] + [len(rows) for rows in documents])
    tokens = torch.from_numpy(np.concatenate(documents))
    return scoring.maxsim_ragged(torch.from_numpy(query), tokens, torch.from_numpy(offsets))


def late_scores_of(query: Tensor, batch: Sequence[Prepared], rows: Tensor, frame: Frame) -> Tensor:
    """Score a batch against a query's rows by MaxSim where the rows of its tokens, (T, dim), are: (B,) float32.

    Those of the skiplist stay out by their places, which the CPU knows: to pick them by a mask, it would have to wait
    and hear how many they are.
    """
    kept = [frame.with_row(text.ids) for text in batch]
    places = np.flatnonzero(np.concatenate(kept))
    offsets = np.cumsum([0] + [int(of_text.sum()) for of_text in kept])
    if len(places) < len(rows):
        rows = rows.index_select(0, to_device(torch.from_numpy(places), rows.device))
    return scoring.maxsim_ragged(query, rows, torch.from_numpy(offsets))


class ColBERT(TextEncoder):
    """A late-interaction encoder. ``ColBERT.from_pretrained()`` is the bundled model, offline.

    A document's rows have unit length. A query's too, unless the model keeps their length as the terms' weights (the
    bundled one does). A checkpoint of one vector a text, or a bare ModernBERT, gives its token vectors, unit length.
    """

    kind: ClassVar[Kind] = "colbert"

    def encode_queries(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> list[FloatArray]:
        """Encode queries: one (tokens_i, dim) float32 array a text, its query expansion included.

        ``batch_tokens`` bounds the tokens that are computed at once; ``progress`` is called with the number of texts
        finished since its last call. Raises: ModelError if the tokenizer and the model do not fit.
        """
        return self._encode(texts, self.queries, 1, batch_tokens, progress)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        pool_factor: float = 1,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress | None = None,
    ) -> list[FloatArray]:
        """Encode documents: one (tokens_i, dim) float32 array a text, without rows for tokens of the skiplist.

        A text beyond ``document_length`` tokens is cut there (``Retriever`` makes windows instead). ``pool_factor``
        merges like rows until that part of them is left. ``batch_tokens`` and ``progress`` as for queries.
        Raises: ValueError if ``pool_factor`` is below 1.
        """
        return self._encode(texts, self.documents, pool_factor, batch_tokens, progress)

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters of ``text`` behind each row of ``encode_documents([text])[0]``: (rows, 2) int64.

        Special tokens, the marker and the prompt have the empty range (0, 0).
        """
        return self.documents.row_spans(text)

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """Score each line of each text by its share in the match (``line_shares``): one (lines,) array a text."""
        [question] = self.encode_queries([query])
        encoded = zip(texts, self.encode_documents(texts), strict=True)
        return [line_shares(question, rows, self.token_spans(text), text) for text, rows in encoded]

    def project(self, batch: Sequence[Prepared], frame: Frame) -> Tensor:
        """Run prepared texts through backbone and projection, packed: (T, width), neither truncated nor scaled."""
        rows: Tensor = self.projection(self.hidden_states(batch, frame))
        return rows

    def _score(self, query: FloatArray, documents: list[FloatArray]) -> Tensor:
        return late_scores(query, documents)

    def _score_batch(self, query: Tensor, batch: Sequence[Prepared]) -> Tensor:
        rows = scaled_rows(self.project(batch, self.documents), self.documents, self.dim)
        return late_scores_of(query, batch, rows, self.documents)

    def _encode(
        self, texts: Sequence[str], frame: Frame, pool_factor: float, batch_tokens: int, progress: Progress | None
    ) -> list[FloatArray]:
        if pool_factor < 1:
            raise ValueError(f"pool_factor is {pool_factor}, expected at least 1")
        out: list[FloatArray] = [np.empty((0, self.dim), dtype=np.float32)] * len(texts)

        def compute(batch: list[Prepared]) -> tuple[Tensor]:
            return (scaled_rows(self.project(batch, frame), frame, self.dim),)

        part = partial(token_rows, frame=frame)
        with torch.inference_mode():
            for place, rows in self._each(texts, frame, batch_tokens, progress, compute, part):
                out[place] = rows if pool_factor == 1 else pool_rows(rows, pool_factor, frame.side.normalize)
        return out
