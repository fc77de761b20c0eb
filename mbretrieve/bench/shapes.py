"""A model of ModernBERT's shapes with random weights, so that its speed is measured without a download."""

import itertools
import string
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from mbretrieve.models.checkpoint import save
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.modernbert import ModernBert
from mbretrieve.models.settings import Checkpoint, DenseLayer, Settings, Side
from mbretrieve.models.tokenizer import Tokenizer

SHAPES: dict[str, ModernBertConfig] = {
    "base": ModernBertConfig(),
    "large": ModernBertConfig(hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16),
}
_DIM = 128
_ROLES = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
# Few, which saves time where nothing is measured: an embedding is a look-up.
_WORDS = ["".join(letters) for letters in itertools.islice(itertools.product(string.ascii_lowercase, repeat=3), 2000)]


def write_model(folder: Path, shapes: ModernBertConfig) -> None:
    """Write a late-interaction model of these shapes to a folder, as sentence-transformers would; always the same."""
    tokens = [*_ROLES.values(), *_WORDS]
    backend = Backend(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    ids = {f"{role}_token_id": tokens.index(_ROLES[f"{role}_token"]) for role in ("cls", "sep", "pad")}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    config = replace(shapes, vocab_size=len(tokens), pad_token_id=ids.pop("pad_token_id"), other=ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ModernBert(config).state_dict()
        weight = torch.randn(_DIM, config.hidden_size) * config.hidden_size**-0.5
    positions = config.max_position_embeddings
    tokenizer = Tokenizer(backend, {"model_max_length": positions, **_ROLES})
    settings = Settings(queries=Side(length=32), documents=Side(length=positions))
    made = Checkpoint(config, backbone, tokenizer, settings, positions, (DenseLayer(weight),))
    save(made, folder, "sentence-transformers")
