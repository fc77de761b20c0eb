"""The masked-language model: a ModernBERT with the prediction head of transformers' ModernBertForMaskedLM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mbretrieve.errors import ModelError
from mbretrieve.models.backbone_card import backbone_card
from mbretrieve.models.card import FILE, TrainingFacts
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.files import write_json
from mbretrieve.models.modernbert import Linear, ModernBert
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.models.weights import write_tensors

_HEAD = "head.dense.weight"
# What transformers fixes of the head unless config.json says otherwise; we compute nothing else.
_HEAD_KEYS = {"classifier_bias": False, "classifier_activation": "gelu", "decoder_bias": True}
_CHUNK = 1024  # tokens whose scores over the whole vocabulary are held at once


class PredictionHead(nn.Module):
    """``norm(gelu(dense(x)))``, between the hidden states and the decoder."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        cut = config.initializer_cutoff_factor * config.initializer_range
        nn.init.trunc_normal_(self.dense.weight, std=config.initializer_range, a=-cut, b=cut)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform hidden states: (M, hidden) -> (M, hidden)."""
        out: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return out


class Decoder(nn.Module):
    """The part of the decoder that is its own: a bias a word."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(words))


class MaskedLanguageModel(nn.Module):
    """Backbone, prediction head and a decoder that is the embeddings themselves, plus a bias a word.

    With ``state`` the weights are a checkpoint's; a head that it lacks is drawn anew. Parameters have transformers'
    names. Raises: ModelError for tensors that do not fit, or a config with another head than this one.
    """

    def __init__(self, config: ModernBertConfig, state: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        for key, only in _HEAD_KEYS.items():
            if config.other.get(key, only) != only:
                raise ModelError(f"config.json: {key} is {config.other[key]!r}, expected {only!r} for pre-training")
        self.config = config
        self.model = ModernBert(config, state)
        self.head = PredictionHead(config)
        self.decoder = Decoder(config.vocab_size)
        if state is not None and _HEAD in state:
            self._load_head(state)

    def forward(self, input_ids: Tensor, lengths: Tensor | Sequence[int], chosen: Tensor, labels: Tensor) -> Tensor:
        """Return the summed cross-entropy, in nats, of the tokens to guess.

        Shapes: input_ids (T,) int64, masked, packed as ``lengths`` (B,) say; chosen (M,) int64, the places of the
        tokens to guess; labels (M,) int64, what stood there -> scalar float32. Only these M places get scores.
        """
        guessed = self.head(self.model(input_ids, lengths)[chosen])
        return cross_entropy_sum(guessed, self.embeddings, self.decoder.bias, labels)

    def logits(self, input_ids: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """Score every word at every place: (T,) int64 -> (T, vocabulary)."""
        return F.linear(self.head(self.model(input_ids, lengths)), self.embeddings, self.decoder.bias)

    @property
    def embeddings(self) -> Tensor:
        """The token embeddings, (vocabulary, hidden), which are the decoder's weights too."""
        weight: Tensor = self.model.embeddings.tok_embeddings.weight
        return weight

    def save(self, folder: Path, tokenizer: Tokenizer, facts: TrainingFacts) -> None:
        """Write a folder that transformers' AutoModelForMaskedLM and this library load; its card says the ``facts``."""
        tensors = self.state_dict()
        write_tensors(tensors, folder)
        (folder / FILE).write_text(backbone_card(self.config, tensors, facts), "utf-8")
        tokenizer.config["model_max_length"] = self.config.max_position_embeddings
        tokenizer.save(folder)
        write_json(folder / "config.json", {**self.config.to_dict(), **_saved(tokenizer)})

    def _load_head(self, state: Mapping[str, Tensor]) -> None:
        ours = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}
        for name, tensor in ours.items():
            if name not in state or state[name].shape != tensor.shape:
                raise ModelError(f"the checkpoint's masked-language head has no {name} of shape {tuple(tensor.shape)}")
        self.load_state_dict({name: state[name] for name in ours}, strict=False, assign=True)


def _saved(tokenizer: Tokenizer) -> dict[str, Any]:
    roles = ("pad", "cls", "sep", "mask", "bos", "eos")
    ids = {f"{role}_token_id": tokenizer.role_id(f"{role}_token") for role in roles}
    # transformers fills ids that are not there with ModernBERT-base's, beyond a smaller vocabulary.
    ids["bos_token_id"] = ids["bos_token_id"] if ids["bos_token_id"] is not None else ids["cls_token_id"]
    ids["eos_token_id"] = ids["eos_token_id"] if ids["eos_token_id"] is not None else ids["sep_token_id"]
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "tie_word_embeddings": True,
        **_HEAD_KEYS,
        **{key: value for key, value in ids.items() if value is not None},
    }


def cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Return ``sum_m logsumexp(s_m) - s_m[label_m]`` with the scores ``s_m = weight @ hidden_m + bias``.

    Shapes: hidden (M, dim), weight (V, dim), bias (V,), labels (M,) int64 -> scalar float32. The (M, V) scores, at 30%
    of 16,384 tokens and 50,368 words a gigabyte, are never held: chunk by chunk they are made, and their gradient too,
    at once, since a sum's needs nothing from above.
    """
    loss: Tensor = _CrossEntropySum.apply(hidden, weight, bias, labels)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wanted = any(ctx.needs_input_grad)  # type: ignore[attr-defined]
        with torch.autocast(kind, enabled=False):
            matrix = weight.to(dtype)
            loss = hidden.new_zeros((), dtype=torch.float32)
            to_hidden, to_weight, to_bias = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
            for start in range(0, len(hidden), _CHUNK):
                part = slice(start, start + _CHUNK)
                rows, right = hidden[part].to(dtype), labels[part, None]
                scores = (rows @ matrix.T).float() + bias.float()  # (chunk, V)
                peaks = scores.logsumexp(dim=1, keepdim=True)
                loss += (peaks - scores.gather(1, right)).sum()
                if wanted:
                    slope = scores.sub_(peaks).exp_()
                    slope.scatter_add_(1, right, slope.new_full(right.shape, -1.0))
                    to_bias += slope.sum(dim=0)
                    low = slope.to(dtype)
                    to_hidden[part] = low @ matrix
                    to_weight += low.T @ rows
        if wanted:
            ctx.save_for_backward(to_hidden, to_weight, to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        return to_hidden * above, to_weight * above, to_bias * above, None
