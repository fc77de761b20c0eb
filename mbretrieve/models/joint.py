"""JointEncoder: from one forward a text's one vector, to fetch it by, and its tokens' vectors, to rank it by."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve.models.colbert import late_scores, late_scores_of, scaled_rows, token_rows
from mbretrieve.models.dense import pool_states
from mbretrieve.models.encoder import BATCH_TOKENS, Progress, TextEncoder
from mbretrieve.models.framing import Frame, Prepared
from mbretrieve.models.lines import line_shares
from mbretrieve.types import FloatArray, JointVectors, Kind


class JointEncoder(TextEncoder):
    """Both heads of a joint model. ``JointEncoder.from_pretrained()`` is the bundled model, offline.

    ``tokens`` are what ``ColBERT`` gives of the same checkpoint, ``pooled`` is what ``DenseEncoder`` does: the mean of
    the last hidden states at unit length. ``dim`` is of the tokens' vectors; the pooled one is whole.
    """

    kind: ClassVar[Kind] = "joint"

    def encode_queries(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> list[JointVectors]:
        """Encode queries. ``batch_tokens`` bounds the tokens computed at once; ``progress`` is called with the number
        of texts finished since its last call."""
        return self._encode(texts, self.queries, batch_tokens, progress)

    def encode_documents(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> list[JointVectors]:
        """Encode documents; a text beyond ``document_length`` tokens is cut there."""
        return self._encode(texts, self.documents, batch_tokens, progress)

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters of ``text`` behind each of its tokens' rows, as ``ColBERT.token_spans``."""
        return self.documents.row_spans(text)

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """Score each line of each text by its share in the match of the tokens, as ``ColBERT.line_scores``."""
        [question] = self.encode_queries([query])
        return [
            line_shares(question.tokens, encoded.tokens, self.token_spans(text), text)
            for text, encoded in zip(texts, self.encode_documents(texts), strict=True)
        ]

    def _score(self, query: JointVectors, documents: Sequence[JointVectors]) -> Tensor:
        return late_scores(query.tokens, [document.tokens for document in documents])

    def _score_batch(self, query: Tensor, batch: Sequence[Prepared]) -> Tensor:
        rows = scaled_rows(self.projection(self.hidden_states(batch, self.documents)), self.documents, self.dim)
        return late_scores_of(query, batch, rows, self.documents)

    def _encode(
        self, texts: Sequence[str], frame: Frame, batch_tokens: int, progress: Progress | None
    ) -> list[JointVectors]:
        out: dict[int, JointVectors] = {}

        def compute(batch: list[Prepared]) -> tuple[Tensor, Tensor]:
            states = self.hidden_states(batch, frame)
            means = pool_states(states, [len(text.ids) for text in batch], 0, "mean").float()
            pooled = torch.nn.functional.normalize(means, dim=-1)
            return scaled_rows(self.projection(states), frame, self.dim), pooled

        def part(batch: list[Prepared], rows: FloatArray, pooled: FloatArray) -> Iterable[JointVectors]:
            return map(JointVectors, token_rows(batch, rows, frame), pooled.copy())

        with torch.inference_mode():
            out |= self._each(texts, frame, batch_tokens, progress, compute, part)
        return [out[place] for place in range(len(texts))]
