"""transformers' ModernBertModel with SDPA: what the backbone must agree with, and the same weights in ours."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ModernBertConfig as TheirConfig
from transformers import ModernBertModel
from transformers.utils import logging

from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert

logging.set_verbosity_error()
warnings.filterwarnings("ignore", module="transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "local_attention": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


def theirs(seed: int = 0, **changes: Any) -> ModernBertModel:
    """A small model in which every parameter is random, biases and norms too, so that none can be forgotten.

    Matrices keep the size of what they multiply, whatever their width, so that one tolerance suits every config.
    """
    torch.manual_seed(seed)
    model = ModernBertModel(TheirConfig(**{**SMALL, **changes}, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.7 * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))  # norms start at 1, biases at 0
    return model


def ours(model: ModernBertModel) -> ModernBert:
    """Our backbone with their weights, in memory of its own."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return ModernBert(ModernBertConfig.from_dict(model.config.to_dict()), state).eval()


def texts(lengths: Sequence[int], seed: int = 0, vocab: int = SMALL["vocab_size"]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab, (length,), generator=generator) for length in lengths]


def expected(model: ModernBertModel, ids: Sequence[Tensor], attended: Sequence[Tensor] | None = None) -> Tensor:
    """Their hidden states, text by text, as one stream."""
    masks = [torch.ones(len(text), dtype=torch.bool) for text in ids] if attended is None else attended
    states = [
        model(text[None], attention_mask=mask[None].long()).last_hidden_state[0]
        for text, mask in zip(ids, masks, strict=True)
    ]
    return torch.cat(states)


def got(model: ModernBert, ids: Sequence[Tensor], attended: Sequence[Tensor] | None = None) -> Tensor:
    lengths = torch.tensor([len(text) for text in ids])
    return model(torch.cat(list(ids)), lengths, None if attended is None else torch.cat(list(attended)))
