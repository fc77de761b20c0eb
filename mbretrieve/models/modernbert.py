"""ModernBERT (https://arxiv.org/abs/2412.13663): one packed stream of tokens in, one stream of hidden states out.

Parameter names are Hugging Face's without the ``model.`` prefix, so that state_dict() is a checkpoint as it stands.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mbretrieve.errors import ModelError
from mbretrieve.models import amx, fused, int8
from mbretrieve.models.attention import PackedBatch, attend
from mbretrieve.models.config import SLIDING, ModernBertConfig
from mbretrieve.models.graphs import Graphs
from mbretrieve.models.packing import filling, steps

_GELU_TANH = partial(F.gelu, approximate="tanh")
_ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _GELU_TANH,
    "gelu_new": _GELU_TANH,  # the same formula, which transformers writes out in Python
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
}
# Tensors of a checkpoint that belong to a task's head, not to the backbone.
_HEADS = ("head.", "decoder.", "classifier.")
# Tokens that a CPU takes through a layer's matrices at a time: what is between two of them then stays in the cache, and
# no buffer is so large that malloc gives it back to the system, to be faulted in anew, page by page, by the next layer.
_CHUNK = 512


class Linear(nn.Linear):
    """nn.Linear that computes in its input's dtype: in training the weights are float32 and the stream is bfloat16.

    It leaves its weights to ``ModernBert``: torch's own draw costs more than loading a checkpoint.
    """

    def reset_parameters(self) -> None:
        """Draw nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Project each token: (T, in) -> (T, out)."""
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))

    def into(self, out: Tensor, input: Tensor) -> Tensor:
        """Project each token into a tensor that is there: (T, in) -> (T, out), in the weights' dtype."""
        turned = self.weight.T
        return torch.mm(input, turned, out=out) if self.bias is None else torch.addmm(self.bias, input, turned, out=out)

    def added(self, input: Tensor, summand: Tensor) -> Tensor:
        """Project each token and add another stream, in one pass: see ``fused``, which says where it serves."""
        return fused.added(input, self.weight, self.bias, summand)


class Norm(nn.LayerNorm):
    """nn.LayerNorm that computes in its input's dtype."""

    @property
    def plain(self) -> bool:
        """Whether it has no bias."""
        return self.bias is None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each token: (T, hidden) -> (T, hidden)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, self.weight.to(input.dtype), bias, self.eps)


class Embeddings(nn.Module):
    """Token embeddings, normalised; positions enter in attention, by RoPE."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        shape = config.vocab_size, config.hidden_size
        self.tok_embeddings = nn.Embedding(
            shape[0], shape[1], padding_idx=config.pad_token_id, _weight=torch.empty(shape)
        )
        self.norm = _norm(config)
        self.dropout = config.embedding_dropout

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed tokens: (T,) int64 -> (T, hidden)."""
        return F.dropout(self.norm(self.tok_embeddings(input_ids)), self.dropout, self.training)


class Attention(nn.Module):
    """Multi-head attention with rotated queries and keys; ``window`` is None in a global layer."""

    def __init__(self, config: ModernBertConfig, window: int | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.Wqkv = Linear(width, 3 * width, bias=config.attention_bias)
        self.Wo = Linear(width, width, bias=config.attention_bias)
        self.heads, self.window, self.dropout = config.num_attention_heads, window, config.attention_dropout

    def project(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values: (T, hidden) -> three of (T, heads, head_dim)."""
        # Parted by one split: autograd fills a whole with zeros for each slice, and adds them up.
        both, value = self.Wqkv(x).view(len(x), 3, self.heads, -1).split((2, 1), dim=1)
        query, key = rotate(both, cosine, sine).unbind(1)
        return query, key, value.squeeze(1)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch) -> Tensor:
        """Let tokens attend: three of (T, heads, head_dim) -> (T, hidden)."""
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, batch, window=self.window, dropout=dropout, training=self.training)
        return mixed.flatten(1)

    def output(self, mixed: Tensor) -> Tensor:
        """Bring the heads together: (T, hidden) -> (T, hidden)."""
        return F.dropout(self.Wo(mixed), self.dropout, self.training)


class MLP(nn.Module):
    """The gated linear unit: ``Wo(act(a) * b)`` with ``a, b = Wi(x)``."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation, self.dropout = config.hidden_activation, config.mlp_dropout
        self.width = config.intermediate_size

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: (T, hidden) -> (T, hidden)."""
        signal, gate = self.Wi(x).chunk(2, dim=-1)  # (T, intermediate) each
        gated = _ACTIVATION[self.activation](signal) * gate
        out: Tensor = self.Wo(F.dropout(gated, self.dropout, self.training))
        return out

    def added(self, x: Tensor, summand: Tensor) -> Tensor:
        """Transform each token and add another stream, in three passes: see ``fused``, which says where it serves."""
        (signal, gate), bias = self.Wi.weight.chunk(2), self.Wi.bias
        before, after = (None, None) if bias is None else bias.chunk(2)
        gated = fused.multiplied(x, gate, after, fused.activated(x, signal, before, self.activation))
        return self.Wo.added(gated, summand)


class Layer(nn.Module):
    """Attention, then the MLP, each on the normalised stream and added to it."""

    def __init__(self, config: ModernBertConfig, index: int) -> None:
        super().__init__()
        self.kind = config.layer_types[index]
        # The embeddings end in a norm, so the first layer has none of its own.
        self.attn_norm = _norm(config) if index else nn.Identity()
        self.attn = Attention(config, config.half_window if self.kind == SLIDING else None)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, batch: PackedBatch, rotation: tuple[Tensor, Tensor], graphs: Graphs | None = None
    ) -> Tensor:
        """Add to the stream what this layer finds: (T, hidden) -> (T, hidden)."""
        if graphs is not None:
            query, key, value = graphs.half(Layer._before, self)(x, *rotation)
            return graphs.half(Layer._after, self)(x, self.attn.mix(query, key, value, batch))[0]
        query, key, value = by_chunks(self._before, x, *rotation)
        mixed = self.attn.mix(query, key, value, batch)
        if self.infers(x):
            x = self.attn.Wo.added(mixed, x)
            return self.mlp.added(self.mlp_norm(x), x)
        return by_chunks(self._after, x, mixed)[0]

    def infers(self, x: Tensor) -> bool:
        """Whether a stream can be taken through operations that do several things at once."""
        return not self.training and isinstance(self.mlp.Wi, Linear) and fused.serves(x, self.mlp.Wi.weight)

    def infer(self, x: Tensor, batch: PackedBatch, table: Tensor, stream: Tensor) -> Tensor:
        """Do what ``forward`` does, with the kernel of ``amx``.

        ``table`` is ``Rotary``'s; ``stream``, (T, 3 hidden), is where queries, keys and values go.
        """
        self.attn.Wqkv.into(stream, _quick_norm(self.attn_norm, x))
        x = self.attn.Wo.added(amx.attend(stream, table, batch.lengths, self.attn.window), x)
        return self.mlp.added(_quick_norm(self.mlp_norm, x), x)

    def _before(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, ...]:
        return self.attn.project(self.attn_norm(x), cosine, sine)

    def _after(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
        x = x + self.attn.output(mixed)
        return (x + self.mlp(self.mlp_norm(x)),)


def by_chunks(function: Callable[..., tuple[Tensor, ...]], *streams: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of single tokens to streams (T, ...), ``_CHUNK`` tokens at a time where that is faster.

    A GPU wants all tokens at once, and so does autograd: results written into a buffer would be copied in the backward.
    """
    tokens = len(streams[0])
    if tokens <= _CHUNK or streams[0].device.type != "cpu" or torch.is_grad_enabled():
        return function(*streams)
    whole: tuple[Tensor, ...] = ()
    for start in range(0, tokens, _CHUNK):
        parts = function(*(stream[start : start + _CHUNK] for stream in streams))
        whole = whole or tuple(part.new_empty(tokens, *part.shape[1:]) for part in parts)
        for out, part in zip(whole, parts, strict=True):
            out[start : start + _CHUNK] = part
    return whole


class ModernBert(nn.Module):
    """The backbone, with the weights of ``state`` (see ``load_state``), or with random ones to train from.

    Two attributes are for training: ``stream_dtype``, that of the arithmetic if not the weights' own, and
    ``checkpointing``, which keeps only each layer's input for the backward and computes the rest again. ``graphs`` says
    when layers are compiled.
    """

    def __init__(self, config: ModernBertConfig, state: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.config = config
        self.stream_dtype: torch.dtype | None = None
        self.checkpointing = False
        self.graphs = Graphs()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.final_norm = _norm(config)
        thetas = {kind: config.rope_thetas[kind] for kind in set(config.layer_types)}
        self._rotary = {kind: Rotary(config.head_dim, theta) for kind, theta in thetas.items()}
        if state is None:
            self._draw_weights()
        else:
            self.load_state(state)

    def forward(self, input_ids: Tensor, lengths: Tensor | Sequence[int], attended: Tensor | None = None) -> Tensor:
        """Encode a packed stream: the texts' tokens one after another.

        Shapes: input_ids (T,) int64 on the model's device; lengths (B,), tokens a text, summing to T, on the CPU;
        attended (T,) bool or None -> (T, hidden_size) in the stream's dtype. A token with ``attended`` False gets its
        own hidden state but is nobody's key. Raises: ValueError if lengths do not sum to T or one is below 1.
        """
        counts: list[int] = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        if sum(counts) != len(input_ids):
            raise ValueError(f"lengths sum to {sum(counts)}, expected the stream's {len(input_ids)} tokens")
        tokens = len(input_ids)
        graphs = self.graphs if not self.training and self.graphs.serve(input_ids) else None
        if more := filling(input_ids) if graphs is None else steps(tokens):
            # By texts no longer than the others: attention may bring all to the longest.
            input_ids = F.pad(input_ids, (0, more))
            attended = None if attended is None else F.pad(attended, (0, more), value=True)
            longest = max(counts)
            counts = counts + [longest] * (more // longest) + [more % longest] * (more % longest > 0)
        return self._encode(input_ids, counts, attended, graphs)[:tokens]

    def _encode(self, input_ids: Tensor, counts: list[int], attended: Tensor | None, graphs: Graphs | None) -> Tensor:
        x: Tensor = self.embeddings(input_ids).to(self.stream_dtype)
        dtype = _matmul_dtype(x)
        batch = PackedBatch(counts, device=x.device, dtype=dtype, attended=attended)
        if attended is None and not torch.is_grad_enabled() and amx.serves(x, self.config.head_dim):
            layers = self._stack
            tables = {kind: rotary.table(batch.longest, x.device) for kind, rotary in self._rotary.items()}
            if int8.serves(layers, self.final_norm):
                return int8.encode(layers, self.final_norm, x, batch, tables)
            if all(layer.infers(x) for layer in layers):
                # One for all layers: it may be so large that malloc would give it back each time.
                stream = x.new_empty(len(x), 3 * x.shape[1])
                for quick in layers:
                    x = quick.infer(x, batch, tables[quick.kind], stream)
                return _quick_norm(self.final_norm, x)
        rotations = {kind: rotary.at(batch.positions, batch.longest, dtype) for kind, rotary in self._rotary.items()}
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, batch, rotations[kind], use_reentrant=False)
            else:
                x = layer(x, batch, rotations[kind], graphs)
        out: Tensor = self.final_norm(x)
        return out

    def quantize(self) -> None:
        """Go over to int8, for inference on a CPU: the layers' matrices are no parameters any more.

        Raises: ModelError if this build of torch or the device cannot do it.
        """
        int8.check(self.embeddings.tok_embeddings.weight.device)
        for layer in self._stack:
            int8.quantize(layer)

    @property
    def _stack(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the matrices: bytes if it was quantized."""
        quantized = any(isinstance(module, int8.Int8Linear) for module in self.modules())
        return torch.int8 if quantized else self.embeddings.tok_embeddings.weight.dtype

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights of a Hugging Face checkpoint, named with or without the ``model.`` prefix.

        The tensors become the parameters themselves, dtype and all, without a copy. Heads' tensors are passed over.
        Raises: ModelError naming a tensor that is missing or unknown, or has another shape than the config's.
        """
        ours = self.state_dict()
        found = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        for name, tensor in ours.items():
            if name not in found:
                raise ModelError(f"the checkpoint has no tensor {name}, expected one of shape {tuple(tensor.shape)}")
            if found[name].shape != tensor.shape:
                raise ModelError(
                    f"the checkpoint's {name} has shape {tuple(found[name].shape)}, "
                    f"expected {tuple(tensor.shape)} from config.json"
                )
        if unknown := sorted(name for name in found.keys() - ours.keys() if not name.startswith(_HEADS)):
            raise ModelError(f"the checkpoint has a tensor {unknown[0]} that its config.json does not provide for")
        self.load_state_dict({name: found[name] for name in ours}, assign=True)

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Truncated normal, narrower by depth where a layer writes to the stream, as ModernBERT's were at first."""
        config = self.config
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)  # a bias, or the scale of a norm
                continue
            std = config.initializer_range
            if name.endswith("Wo.weight"):
                std /= (2.0 * config.num_hidden_layers) ** 0.5
            cut = config.initializer_cutoff_factor * std
            nn.init.trunc_normal_(parameter, std=std, a=-cut, b=cut)


class Rotary:
    """The table of rotary position embeddings (RoPE, https://arxiv.org/abs/2104.09864), in float32, grown on demand.

    ``angle[p, i] = p * theta ** (-2 i / head_dim)`` for position p and pair i.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim, self.theta = head_dim, theta
        self._table = torch.empty(2, 0, head_dim)

    def at(self, positions: Tensor, longest: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what ``rotate`` takes, (T, 1, 1, head_dim) each, for positions (T,) that are below ``longest``."""
        cosine, sine = self.table(longest, positions.device)[:, positions, None, None].to(dtype)
        return cosine, sine

    def table(self, longest: int, device: torch.device) -> Tensor:
        """Return cosines and sines, (2, positions, head_dim) float32, for at least ``longest`` positions."""
        table = self._table
        if table.shape[1] < longest or table.device != device:
            pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
            places = torch.arange(longest, dtype=torch.float32, device=device)
            angles = torch.outer(places, 1.0 / (self.theta ** (pairs / self.head_dim)))
            cosine, sine = angles.cos(), angles.sin()
            table = torch.stack((torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)))
            self._table = table
        return table  # not what another thread, with shorter texts, may have put in its place by now


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of x (T, ..., head_dim) by its position's angle.

    ``out[i] = x[i] cos - x[j] sin`` and ``out[j] = x[j] cos + x[i] sin``; the table's sine carries the sign.
    """
    rotated: Tensor = _Rotate.apply(x, cosine, sine)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the gradient rotated back: fewer passes than autograd makes of the parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * cosine, torch.cat((second, first), dim=-1), sine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return rotate(grad, cosine, -sine), None, None


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that Linear makes of x: autocast has its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _quick_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer's norm, or what it has in its place, where ``amx`` serves."""
    if isinstance(norm, Norm) and norm.plain:
        return amx.normalize(x, norm.weight, norm.eps)
    out: Tensor = norm(x)
    return out


def _norm(config: ModernBertConfig) -> Norm:
    return Norm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
