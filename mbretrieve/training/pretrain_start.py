"""What pre-training starts with: a tokenizer taken or trained, and weights drawn, loaded or tiled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from mbretrieve.corpus.records import Skipped
from mbretrieve.errors import ModelError
from mbretrieve.models.checkpoint import load
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.files import read_json
from mbretrieve.models.source import BUNDLED, locate
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.models.weights import read_tensors
from mbretrieve.training.masked_lm import MaskedLanguageModel
from mbretrieve.training.pretrain_config import PhaseConfig, PretrainConfig
from mbretrieve.training.texts import read_texts
from mbretrieve.training.tiling import tile
from mbretrieve.training.tokenizer_training import train_tokenizer

_MULTIPLE = 64  # of the vocabulary: matrix units like it, and markers added later have a place


@dataclass(frozen=True, slots=True)
class Start:
    """A model before its first step: tokenizer, config, and weights under transformers' names (None: to be drawn)."""

    tokenizer: Tokenizer
    config: ModernBertConfig
    state: Mapping[str, Tensor] | None

    def model(self, phase: PhaseConfig) -> MaskedLanguageModel:
        """Build the model as a phase wants it."""
        return MaskedLanguageModel(in_phase(self.config, phase), self.state)


def begin(config: PretrainConfig, tokenizer: Tokenizer | None = None) -> Start:
    """Do what a recipe's [tokenizer], [start] and [model] say, but for a ``tokenizer`` that is there already.

    Raises: DataError and ModelError, as reading texts and loading models do.
    """
    wanted = config.start.model
    if wanted is None:
        tokenizer = tokenizer or _tokenizer(config)
        size = -(-tokenizer.size // _MULTIPLE) * _MULTIPLE
        drawn = {"model_type": "modernbert", "vocab_size": size, "pad_token_id": tokenizer.role_id("pad_token")}
        return Start(tokenizer, ModernBertConfig.from_dict({**drawn, **config.model.sizes()}), None)
    folder = find(wanted)
    own, saved, state = open_model(folder)
    if not config.start.tile:
        return Start(own, saved, state)
    large = grown(saved, config.model.sizes())
    return Start(own, large, tile(saved, state, large))


def resume(folder: Path) -> Start:
    """Read a checkpoint of this room."""
    return Start(*open_model(folder))


def find(name: str) -> Path:
    """Return the folder of a model: a folder, a name on the Hub, or the bundled model's. Raises: ModelError."""
    return locate(None if name in ("bundled", BUNDLED) else name).folder


def open_model(folder: Path) -> tuple[Tokenizer, ModernBertConfig, dict[str, Tensor]]:
    """Read a ModernBERT in any layout on disk; with its masked-language head if it is saved bare, as transformers does.

    Weights are brought to float32, in which training keeps them.
    """
    found = load(folder)
    state = found.backbone if (folder / "modules.json").is_file() else read_tensors(folder)
    names = {name.removeprefix("model."): tensor.float() for name, tensor in state.items()}
    return found.tokenizer, found.config, names


def in_phase(config: ModernBertConfig, phase: PhaseConfig) -> ModernBertConfig:
    """Return the config of a model that a phase has trained: as long as its sequences, with its RoPE base."""
    theta = phase.global_rope_theta or config.global_rope_theta
    return replace(config, max_position_embeddings=phase.length, global_rope_theta=theta)


def grown(small: ModernBertConfig, sizes: Mapping[str, int]) -> ModernBertConfig:
    """Return a config of other sizes and as many more layers in the same alternation."""
    saved = small.to_dict()
    if "num_hidden_layers" in sizes and "global_attn_every_n_layers" not in {**saved, **sizes}:
        raise ModelError("the smaller model's layers alternate in no rule: set model.global_attn_every_n_layers")
    del saved["layer_types"]
    return ModernBertConfig.from_dict({**saved, **sizes})


def _tokenizer(config: PretrainConfig) -> Tokenizer:
    if config.tokenizer.model is not None:
        folder = find(config.tokenizer.model)
        return load(folder).tokenizer if read_json(folder / "config.json") else Tokenizer.load(folder)
    assert config.tokenizer.vocab_size is not None  # PretrainConfig sees to it
    longest = max(phase.length for phase in config.phase)
    return train_tokenizer(_sample(config), config.tokenizer.vocab_size, longest, config.tokenizer.words)


def _sample(config: PretrainConfig) -> Iterator[str]:
    """Yield the first texts of each source, as many of each."""
    share = -(-config.tokenizer.limit // len(config.text))
    for source in config.text:
        yield from islice(read_texts(source, Skipped()), share)
