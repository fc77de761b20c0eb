"""The model in training: ModernBERT and the heads of its kind, texts to representations in packed micro-batches.

What is a token, a marker, a prompt, a row and a vector is decided by the same code as when the finished model encodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mbretrieve.errors import ModelError
from mbretrieve.models.card import TrainingFacts
from mbretrieve.models.checkpoint import content_hash, load, save, view
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder, pool_states
from mbretrieve.models.device import resolve_dtype
from mbretrieve.models.framing import Frame, Prepared, first_pooled
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.models.projection import Layer, projection
from mbretrieve.models.settings import Checkpoint, DenseLayer, Expansion, Settings, Side
from mbretrieve.models.source import locate
from mbretrieve.training.config import ModelConfig
from mbretrieve.types import Head, ModelIdentity

NEW_DIM = 128
"""The width of a token's vector where neither the recipe nor the model that training starts from says another."""
_EXPANSION_MINIMUM = 32  # tokens, ColBERT's own query length


class Encoded(NamedTuple):
    """What became of some texts, queries and documents apart, float32; a head that the model lacks gives no tensor.

    Late interaction: ``query_rows`` (sum of query_lengths, dim) and ``document_rows`` alike, neither cut to a prefix
    nor scaled. Dense: ``query_vectors`` (Q, dim), ``document_vectors`` (D, dim).
    """

    query_rows: Tensor | None
    document_rows: Tensor | None
    query_vectors: Tensor | None
    document_vectors: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Texts that go through the model at once, Q queries and behind them D documents: T tokens.

    ``ids`` (T,) int64; ``lengths`` tokens a text; ``attended`` (T,) bool or None; ``kept`` (R,) int64, the tokens that
    have a row, or None for all; ``rows`` how many each text has. ``query_ids`` and ``document_ids`` number the texts
    within their step.
    """

    ids: Tensor
    lengths: list[int]
    attended: Tensor | None
    kept: Tensor | None
    rows: list[int]
    query_ids: list[int]
    document_ids: list[int]

    @property
    def query_rows(self) -> list[int]:
        """How many rows each query has."""
        return self.rows[: len(self.query_ids)]

    @property
    def document_rows(self) -> list[int]:
        """How many rows each document has."""
        return self.rows[len(self.query_ids) :]


class Student(nn.Module):
    """A trainable model: float32 weights; the arithmetic between embeddings and heads in ``dtype``.

    ``kind`` is colbert, dense, or joint: one backbone under a token head and a pooled head (the mean at unit length,
    as ``DenseEncoder`` takes it from a late-interaction checkpoint). Raises: ModelError for lengths, markers or heads
    that the model cannot have.
    """

    def __init__(
        self, checkpoint: Checkpoint, kind: str, *, name: str, dtype: torch.dtype, checkpointing: bool = False
    ) -> None:
        super().__init__()
        settings = checkpoint.settings
        self.kind, self.name = kind, name
        self.late, self.pooled = kind != "dense", kind != "colbert"
        if kind == "joint" and settings.expansion is not None:
            raise ModelError(
                "kind is 'joint' and queries are filled by expansion, of which the pooled vector would be the mean: "
                'set model.expansion to "none"'
            )
        own = {name: tensor.to(torch.float32, copy=True) for name, tensor in checkpoint.backbone.items()}
        self.backbone = ModernBert(checkpoint.config, own)
        self.backbone.stream_dtype, self.backbone.checkpointing = dtype, checkpointing
        self.projection = projection(checkpoint.projection, checkpoint.config.hidden_size).float()
        self._checkpoint = replace(checkpoint, backbone={}, projection=())
        limit = checkpoint.limit
        self.queries = Frame(
            checkpoint,
            settings.queries,
            settings.queries.length or limit,
            "query_length",
            expansion=settings.expansion if self.late else None,
        )
        self.documents = Frame(
            checkpoint, settings.documents, settings.documents.length or limit, "document_length", expansion=None
        )

    @property
    def width(self) -> int:
        """The numbers of a token's vector, or of a dense model's text's."""
        layers = [layer for layer in self.projection if isinstance(layer, Layer)]
        return layers[-1].linear.out_features if layers else self.backbone.config.hidden_size

    @property
    def pooled_width(self) -> int:
        """The numbers of a text's vector; a joint model's projection is the token head's."""
        return self.width if self.kind == "dense" else self.backbone.config.hidden_size

    def normalizes(self, kind: Head) -> tuple[bool, bool]:
        """Whether one head's queries and its documents are scaled to unit length."""
        if kind == "dense":
            return True, True  # scores are cosines
        return self.queries.side.normalize, self.documents.side.normalize

    def micro_batch(
        self, queries: Sequence[tuple[int, Prepared]], documents: Sequence[tuple[int, Prepared]]
    ) -> MicroBatch:
        """Lay texts, each with its number in the step, end to end; longest first, so that neighbours are alike."""
        sides = [
            (frame, sorted(texts, key=lambda text: -len(text[1].ids)))
            for frame, texts in ((self.queries, queries), (self.documents, documents))
        ]
        prepared = [text for _, texts in sides for _, text in texts]
        visible = [(frame.attended([text for _, text in texts]), texts) for frame, texts in sides if texts]
        masks = [
            np.ones(sum(len(text.ids) for _, text in texts), dtype=bool) if mask is None else mask
            for mask, texts in visible
        ]
        with_row = [frame.with_row(text.ids) for frame, texts in sides for _, text in texts]
        kept = np.concatenate(with_row)
        return MicroBatch(
            ids=torch.tensor([token for text in prepared for token in text.ids], dtype=torch.int64),
            lengths=[len(text.ids) for text in prepared],
            attended=None if all(mask is None for mask, _ in visible) else torch.from_numpy(np.concatenate(masks)),
            kept=None if kept.all() else torch.from_numpy(np.flatnonzero(kept)),
            rows=[int(rows.sum()) for rows in with_row],
            query_ids=[number for number, _ in sides[0][1]],
            document_ids=[number for number, _ in sides[1][1]],
        )

    def forward(self, batch: MicroBatch) -> tuple[Tensor, ...]:
        """Encode a micro-batch: the tensors of its ``Encoded`` that there are, in order."""
        device = self.backbone.embeddings.tok_embeddings.weight.device
        attended = None if batch.attended is None else batch.attended.to(device)
        states = self.backbone(batch.ids.to(device, non_blocking=True), batch.lengths, attended)  # (T, hidden)
        count = len(batch.query_ids)
        found: list[Tensor] = []
        if self.late:
            rows = self.projection(states.float())
            if batch.kept is not None:
                rows = rows.index_select(0, batch.kept.to(device))
            found += rows.split([sum(batch.query_rows), sum(batch.document_rows)])
        if self.pooled:
            tokens = sum(batch.lengths[:count])
            parts = zip(
                states.split([tokens, len(states) - tokens]),
                (batch.lengths[:count], batch.lengths[count:]),
                (self.queries, self.documents),
                strict=True,
            )
            found += [self._pool(part, lengths, frame) for part, lengths, frame in parts]
        return tuple(found)

    def encoded(self, tensors: Sequence[Tensor]) -> Encoded:
        """Name the tensors of ``forward``."""
        late = tensors[:2] if self.late else (None, None)
        pooled = tensors[-2:] if self.pooled else (None, None)
        return Encoded(*late, *pooled)

    def _pool(self, states: Tensor, lengths: list[int], frame: Frame) -> Tensor:
        if not lengths:
            return states.new_zeros(0, self.pooled_width).float()
        settings = self._checkpoint.settings
        vectors = pool_states(states.float(), lengths, first_pooled(settings, frame), settings.pooling)
        return vectors if self.kind == "joint" else self.projection(vectors)

    def checkpoint(self) -> Checkpoint:
        """The model as it is now, to be saved: the weights themselves, float32, not a copy of them."""
        layers = [layer.record() for layer in self.projection if isinstance(layer, Layer)]
        # Tensors, not the parameters: an encoder made of these would take its dtype and device to them.
        held = [
            replace(
                layer,
                weight=layer.weight.detach(),
                bias=None if layer.bias is None else layer.bias.detach(),
                residual=None if layer.residual is None else layer.residual.detach(),
            )
            for layer in layers
        ]
        return replace(self._checkpoint, backbone=self.backbone.state_dict(), projection=tuple(held))

    def save(self, folder: Path, facts: TrainingFacts) -> None:
        """Write the model, float32, in the first layout that can express it, with its card. Raises: ModelError."""
        save(self.checkpoint(), folder, facts=facts)

    def encoder(self, kind: Head | None = None, dtype: torch.dtype | None = None) -> ColBERT | DenseEncoder:
        """Return the model as a user loads it now: of a kind (None: its own, late interaction if joint), in a dtype
        (None: as ``from_pretrained`` chooses; in float32 it shares the weights with this one)."""
        device = self.backbone.embeddings.tok_embeddings.weight.device
        saved = view(self.checkpoint(), kind or ("colbert" if self.late else "dense"))
        sides = saved.settings.queries, saved.settings.documents
        layers = saved.projection
        identity = ModelIdentity(
            kind=saved.settings.kind,
            name=self.name,
            revision=None,
            content_hash=content_hash(saved),
            dim=layers[-1].weight.shape[0] if layers else saved.config.hidden_size,
            query_length=sides[0].length or saved.limit,
            document_length=sides[1].length or saved.limit,
        )
        chosen = ColBERT if saved.settings.kind == "colbert" else DenseEncoder
        return chosen(saved, identity, device, resolve_dtype(dtype, device))


def starting_point(config: ModelConfig) -> tuple[Checkpoint, str]:
    """Read the model that training starts from and give it what a recipe says: heads, markers, prompts, lengths.

    What is new (a projection, rows of the embeddings for markers) is drawn from torch's generator. Returns the model
    and its name. Raises: ModelError if there is no such model, it is none that is read, or cannot be what is asked.
    """
    source = locate(None if config.start == "bundled" else config.start)
    kind: Head = "dense" if config.kind == "dense" else "colbert"
    saved = _with_markers(_with_settings(view(load(source.folder), kind), config))
    return _with_projection(saved, config), source.name


def _with_settings(saved: Checkpoint, config: ModelConfig) -> Checkpoint:
    settings = saved.settings
    queries = _side(settings.queries, config.query_marker, config.query_prompt, config.query_length)
    documents = _side(settings.documents, config.document_marker, config.document_prompt, config.document_length)
    if config.normalize_queries is not None:
        queries = replace(queries, normalize=config.normalize_queries)
    expansion = settings.expansion
    if expansion is not None and not expansion.minimum:
        expansion = replace(expansion, length=queries.length or saved.limit)
    if config.expansion is not None:
        whole = queries.length or saved.limit
        expansion = {
            "none": None,
            "fixed": Expansion(whole),
            "minimum": Expansion(min(_EXPANSION_MINIMUM, whole), minimum=True),
        }[config.expansion]
    pooling = settings.pooling
    if config.kind == "joint" and config.pooling not in (None, "mean"):
        raise ModelError(f"kind is 'joint' and pooling {config.pooling!r}, expected the mean, as it is loaded again")
    if config.kind == "dense" and config.pooling is not None:
        pooling = config.pooling
    made = Settings(queries, documents, expansion, pooling, settings.include_prompt)
    return replace(saved, settings=made)


def _side(side: Side, marker: str | None, prompt: str | None, length: int | None) -> Side:
    return replace(
        side,
        marker=side.marker if marker is None else marker,
        prompt=side.prompt if prompt is None else prompt,
        length=side.length if length is None else length,
    )


def _with_markers(saved: Checkpoint) -> Checkpoint:
    """Make each marker one token. A new one's embedding is near the mean of all, as far from it as they are narrow."""
    sides = saved.settings.queries, saved.settings.documents
    markers = [side.marker for side in sides if side.marker and saved.tokenizer.token_id(side.marker) is None]
    if not markers:
        return saved
    tokenizer = saved.tokenizer.with_markers(markers)
    lacking = tokenizer.size - saved.config.vocab_size
    if lacking <= 0:
        return replace(saved, tokenizer=tokenizer)
    name = next(name for name in saved.backbone if name.endswith("embeddings.tok_embeddings.weight"))
    table = saved.backbone[name].float()
    added = table.mean(dim=0) + 0.1 * table.std(dim=0) * torch.randn(lacking, table.shape[1])
    return replace(
        saved,
        tokenizer=tokenizer,
        config=replace(saved.config, vocab_size=tokenizer.size),
        backbone={**saved.backbone, name: torch.cat([table, added])},
    )


def _with_projection(saved: Checkpoint, config: ModelConfig) -> Checkpoint:
    """Keep the projection if it is as wide as is asked, else draw a new one whose rows come out about as long."""
    width = saved.projection[-1].weight.shape[0] if saved.projection else None
    wanted = config.dim or width or (None if config.kind == "dense" else NEW_DIM)
    if wanted is None or wanted == width:
        return saved
    hidden = saved.config.hidden_size
    return replace(saved, projection=(DenseLayer(torch.randn(wanted, hidden) * hidden**-0.5),))
