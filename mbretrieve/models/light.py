"""A small ModernBERT in numpy, for one question where torch is spared: the encoders' vectors, in float32.

The formulas are those of ``modernbert``, a text at a time; the tests hold both to the same vectors.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mbretrieve.cores import usable_cores
from mbretrieve.models.checkpoint import load_arrays
from mbretrieve.models.config import FULL, SLIDING, ModernBertConfig
from mbretrieve.models.framing import Frame, Prepared, first_pooled
from mbretrieve.models.identity import identify
from mbretrieve.models.light_math import ACTIVATION, attend, bias, project, rotate, turns
from mbretrieve.models.lines import line_gains, line_shares
from mbretrieve.models.settings import Saved, SavedLayer
from mbretrieve.models.source import locate
from mbretrieve.models.weights import Array, as_float32
from mbretrieve.types import FloatArray, Kind, ModelIdentity

# A larger model encodes ten hits to mark their lines so slowly that importing torch is worth it.
MOST_PARAMETERS = 32_000_000
MOST_TOKENS = 1024  # of a text: its attention is held whole

_TOKENS = "embeddings.tok_embeddings.weight"


class LightEncoder:
    """What encodes a question, and the texts whose lines are marked; ``Encoder`` of either kind."""

    def __init__(self, saved: Saved[Array], identity: ModelIdentity) -> None:
        self.identity = identity
        settings, self._config, self._tokenizer = saved.settings, saved.config, saved.tokenizer
        self._settings = settings
        self.queries = Frame(saved, settings.queries, identity.query_length, "query_length", settings.expansion)
        self.documents = Frame(saved, settings.documents, identity.document_length, "document_length", None)
        weights = {name.removeprefix("model."): array for name, array in saved.backbone.items()}
        self._tokens = weights[_TOKENS]  # only the rows of a text's own tokens are ever read
        self._weights = {name: as_float32(weights[name]) for name in _shapes(saved.config) if name != _TOKENS}
        self._layers = [_as_float32(layer) for layer in saved.projection]

    @classmethod
    def load(
        cls,
        kind: Kind,
        name: str | Path | None = None,
        *,
        revision: str | None = None,
        dim: int | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
    ) -> Self | None:
        """Load a model by ``from_pretrained``'s words; None if it is too large, or is one that only torch computes.

        Raises: ModelError as there; what is wrong with its weights is for torch's encoders to say.
        """
        source = locate(name, revision)
        saved, identity = identify(
            load_arrays(source.folder),
            source,
            kind,
            dim=dim,
            query_length=query_length,
            document_length=document_length,
        )
        return cls(saved, identity) if _serves(saved, identity) else None

    @property
    def document_capacity(self) -> int:
        """How many tokens of its own a document can have beside markers, prompt and special tokens."""
        return self.documents.room - self.documents.prompt_tokens

    def token_offsets(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Tokenize without special tokens and without a limit: each text's tokens' (tokens, 2) character ranges."""
        return list(self._tokenizer.offsets(texts))

    def encode_queries(self, texts: Sequence[str]) -> list[FloatArray] | FloatArray:
        """Encode queries: a list of (tokens_i, dim) float32 arrays (ColBERT), or one (n, dim) array (dense)."""
        return self._encode(texts, self.queries)

    def encode_documents(self, texts: Sequence[str]) -> list[FloatArray] | FloatArray:
        """Encode documents: a list of (tokens_i, dim) float32 arrays (ColBERT), or one (n, dim) array (dense)."""
        return self._encode(texts, self.documents)

    def token_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters of a text behind each row of its vectors: (rows, 2); all of them if it has one row."""
        return np.array([[0, len(text)]]) if self.identity.kind == "dense" else self.documents.row_spans(text)

    def line_scores(self, query: str, texts: Sequence[str]) -> list[FloatArray]:
        """Score each line of each text (parted at ``\\n``) by what it has to do with the query."""
        [question] = self.encode_queries([query])
        if self.identity.kind == "dense":
            lines = np.asarray(self.encode_documents([line for text in texts for line in text.split("\n")]))
            return line_gains(question, texts, lines)
        encoded = zip(texts, self.encode_documents(texts), strict=True)
        return [line_shares(question, rows, self.token_spans(text), text) for text, rows in encoded]

    def _encode(self, texts: Sequence[str], frame: Frame) -> list[FloatArray] | FloatArray:
        # numpy lets go of the interpreter where there is much to compute.
        with ThreadPoolExecutor(usable_cores()) as pool:
            rows = list(pool.map(lambda text: self._rows(text, frame), frame.prepare(texts)))
        if self.identity.kind == "colbert":
            return rows
        return np.concatenate(rows) if rows else np.empty((0, self.identity.dim), dtype=np.float32)

    def _rows(self, text: Prepared, frame: Frame) -> FloatArray:
        """Return a text's vectors, or the one that it has: (rows, dim)."""
        states = self._states(text, frame)
        if self.identity.kind == "dense":
            states = states[first_pooled(self._settings, frame) :]
            states = states[:1] if self._settings.pooling == "cls" else states.mean(axis=0, keepdims=True)
        for layer in self._layers:
            states = project(states, layer)
        rows = states[:, : self.identity.dim]
        if frame.side.normalize:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows if self.identity.kind == "dense" else rows[frame.with_row(text.ids)]

    def _states(self, text: Prepared, frame: Frame) -> FloatArray:
        """Run a text through the backbone: (T, hidden)."""
        config, attended = self._config, frame.attended([text])
        x = self._norm(as_float32(self._tokens[text.ids]), "embeddings.norm")
        place, heads = np.arange(len(x)), config.num_attention_heads
        turned = {kind: turns(place, config.head_dim, theta) for kind, theta in config.rope_thetas.items()}
        hidden = {FULL: attended is not None, SLIDING: attended is not None or len(x) > config.half_window + 1}
        for number, kind in enumerate(config.layer_types):
            name = f"layers.{number}"
            normed = self._norm(x, f"{name}.attn_norm") if number else x
            parts = self._linear(normed, f"{name}.attn.Wqkv").reshape(len(x), 3, heads, -1)
            both, value = rotate(parts[:, :2], *turned[kind]), parts[:, 2]
            unseen = bias(place, attended, config.half_window if kind == SLIDING else None) if hidden[kind] else None
            x = x + self._linear(attend(both[:, 0], both[:, 1], value, unseen), f"{name}.attn.Wo")
            signal, gate = np.split(self._linear(self._norm(x, f"{name}.mlp_norm"), f"{name}.mlp.Wi"), 2, axis=1)
            x = x + self._linear(ACTIVATION[config.hidden_activation](signal) * gate, f"{name}.mlp.Wo")
        return self._norm(x, "final_norm")

    def _linear(self, x: FloatArray, name: str) -> FloatArray:
        out: FloatArray = x @ self._weights[f"{name}.weight"].T
        return out + self._weights[f"{name}.bias"] if f"{name}.bias" in self._weights else out

    def _norm(self, x: FloatArray, name: str) -> FloatArray:
        x = x - x.mean(axis=1, keepdims=True)
        x *= 1 / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + self._config.norm_eps)
        x *= self._weights[f"{name}.weight"]
        return x + self._weights[f"{name}.bias"] if f"{name}.bias" in self._weights else x


def _as_float32(layer: SavedLayer[Array]) -> SavedLayer[FloatArray]:
    weight, bias, residual = (None if x is None else as_float32(x) for x in (layer.weight, layer.bias, layer.residual))
    assert weight is not None
    return SavedLayer(weight, bias, layer.activation, layer.use_residual, residual)


def _serves(saved: Saved[Array], identity: ModelIdentity) -> bool:
    """Say whether a model is of a kind that is served, small, and all of it as it must be."""
    config, width = saved.config, saved.config.hidden_size
    shapes = _shapes(config)
    found = {name.removeprefix("model."): array.shape for name, array in saved.backbone.items()}
    parameters = sum(int(np.prod(shape)) for name, shape in shapes.items() if name != _TOKENS)
    for layer in saved.projection:
        if layer.weight.shape[1] != width or layer.activation.rpartition(".")[2] not in ACTIVATION:
            return False
        width = layer.weight.shape[0]
    return (
        identity.kind in ("colbert", "dense")
        and parameters <= MOST_PARAMETERS
        and max(identity.query_length, identity.document_length) <= MOST_TOKENS
        and all(found.get(name) == shape for name, shape in shapes.items())
    )


def _shapes(config: ModernBertConfig) -> dict[str, tuple[int, ...]]:
    """Name the backbone's tensors, with the shape that each must have."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {_TOKENS: (config.vocab_size, width)}

    def add(name: str, *shape: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for norm in ("embeddings.norm", "final_norm"):
        add(norm, width, bias=config.norm_bias)
    for number in range(config.num_hidden_layers):
        name = f"layers.{number}"
        for norm in ("attn_norm", "mlp_norm") if number else ("mlp_norm",):
            add(f"{name}.{norm}", width, bias=config.norm_bias)
        add(f"{name}.attn.Wqkv", 3 * width, width, bias=config.attention_bias)
        add(f"{name}.attn.Wo", width, width, bias=config.attention_bias)
        add(f"{name}.mlp.Wi", 2 * inner, width, bias=config.mlp_bias)
        add(f"{name}.mlp.Wo", width, inner, bias=config.mlp_bias)
    return shapes
