"""DenseEncoder: one vector a text, as sentence-transformers makes it (https://arxiv.org/abs/1908.10084)."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbretrieve import scoring
from mbretrieve.models.encoder import BATCH_TOKENS, Progress, TextEncoder
from mbretrieve.models.framing import Frame, Prepared, first_pooled
from mbretrieve.models.lines import line_gains
from mbretrieve.models.settings import Pooling
from mbretrieve.models.transfer import to_device
from mbretrieve.types import FloatArray, Kind


def pool_states(states: Tensor, lengths: Sequence[int], first: int, pooling: Pooling | None) -> Tensor:
    """Pool each text of a stream, without its ``first`` tokens: (T, hidden) -> (B, hidden), ``lengths`` summing to T.

    The first token's state for ``cls``, else the mean, which is taken in float32.
    """
    if states.is_cuda and not torch.is_grad_enabled():
        return pool_at_once(states, lengths, first, pooling)
    texts = torch.split(states, list(lengths))
    if pooling == "cls":
        return torch.stack([rows[first] for rows in texts])
    return torch.stack([rows[first:].float().mean(dim=0).to(rows.dtype) for rows in texts])


def pool_at_once(states: Tensor, lengths: Sequence[int], first: int, pooling: Pooling | None) -> Tensor:
    """Pool as ``pool_states`` does, all texts together: to tell a GPU of each takes longer than to add it up."""
    counts = torch.tensor(lengths)
    starts = counts.cumsum(0) - counts
    if pooling == "cls":
        return states.index_select(0, to_device(starts + first, states.device))
    if first:
        places = torch.arange(len(states)) - starts.repeat_interleave(counts)
        states = states.index_select(0, to_device((places >= first).nonzero()[:, 0], states.device))
    there = to_device(counts - first, states.device)
    # ``unsafe``: the lengths are ours, and to check them the host would wait for the device.
    return torch.segment_reduce(states.float(), "mean", lengths=there, axis=0, unsafe=True).to(states.dtype)


class DenseEncoder(TextEncoder):
    """An encoder of one vector a text. ``DenseEncoder.from_pretrained()`` is the bundled model, offline.

    The vector is the hidden state of the first token or the mean of all (special ones included), projected and scaled
    as saved. A late-interaction checkpoint, such as the bundled one, or a bare ModernBERT gives the mean of its last
    hidden states at unit length, without the projection that its token vectors pass.
    """

    kind: ClassVar[Kind] = "dense"

    def encode_queries(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> FloatArray:
        """Encode queries: (n, dim) float32. ``batch_tokens`` bounds the tokens computed at once; ``progress`` is called
        with the number of texts finished since its last call."""
        return self._encode(texts, self.queries, batch_tokens, progress)

    def encode_documents(
        self, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
    ) -> FloatArray:
        """Encode documents: (n, dim) float32; a text beyond ``document_length`` tokens is cut there."""
        return self._encode(texts, self.documents, batch_tokens, progress)

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters behind a text's one row, all of them: (1, 2) int64."""
        return np.array([[0, len(text)]])

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """Score each line of each text, encoded alone, by how much nearer to the query it is than the text's lines are
        on average: one (lines,) float32 array a text, none below 0, 0 for a blank line."""
        [question] = self.encode_queries([query])
        lines = self.encode_documents([line for text in texts for line in text.split("\n")])
        return line_gains(question, texts, lines)

    def pool(self, batch: Sequence[Prepared], frame: Frame) -> Tensor:
        """Run prepared texts through backbone, pooling and projection: (B, width), neither truncated nor scaled."""
        settings = self._checkpoint.settings
        states = self.hidden_states(batch, frame)
        first = first_pooled(settings, frame)
        vectors: Tensor = self.projection(
            pool_states(states, [len(text.ids) for text in batch], first, settings.pooling)
        )
        return vectors

    def _score(self, query: FloatArray, documents: FloatArray) -> Tensor:
        return scoring.cosine(torch.from_numpy(query[None]), torch.from_numpy(documents))[0]

    def _score_batch(self, query: Tensor, batch: Sequence[Prepared]) -> Tensor:
        return scoring.cosine(query[None], self._vectors(batch, self.documents))[0]

    def _vectors(self, batch: Sequence[Prepared], frame: Frame) -> Tensor:
        vectors = self.pool(batch, frame)[:, : self.dim].float()
        return torch.nn.functional.normalize(vectors, dim=-1) if frame.side.normalize else vectors

    def _encode(self, texts: Sequence[str], frame: Frame, batch_tokens: int, progress: Progress | None) -> FloatArray:
        out = np.empty((len(texts), self.dim), dtype=np.float32)

        def compute(batch: list[Prepared]) -> tuple[Tensor]:
            return (self._vectors(batch, frame),)

        def part(_: Sequence[Prepared], vectors: FloatArray) -> FloatArray:
            return vectors

        with torch.inference_mode():
            for place, vector in self._each(texts, frame, batch_tokens, progress, compute, part):
                out[place] = vector
        return out
