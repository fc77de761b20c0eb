"""What a pre-training run does, whole: the tables of its recipe as frozen records, read as ``TrainConfig`` is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mbretrieve.errors import DataError
from mbretrieve.training import recipe
from mbretrieve.training.config import CardConfig, OptimizerConfig
from mbretrieve.training.masking import MASK_RATE
from mbretrieve.training.recipe import Count, Natural, NotNegative, Positive, Rate

_OVERHEAD = 2  # tokens around each text: [CLS] and [SEP]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """[[text]]: texts, from JSON lines (.jsonl, .jsonl.gz), parquet, a file of plain text, or a folder of any of these.

    A row gives one text: its ``fields`` one below the other. A plain file is one text. A folder is walked as `index`
    walks it: what git ignores, and what is binary, is left out.
    """

    path: str  # relative to where the command runs
    name: str | None = None  # in a phase's texts; the file's name
    fields: tuple[str, ...] = ("text",)
    repeat: Positive = 1.0  # how often each text comes in an epoch; 0.5: every second text, drawn anew each epoch
    limit: Count | None = None  # only the first so many texts; all
    licence: str | None = None  # of the texts, for the model's card

    @property
    def title(self) -> str:
        """What phases and messages call the source."""
        return self.name or Path(self.path).name


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """[tokenizer]: one that is there, or one trained on the texts of this recipe before all else."""

    model: str | None = None  # whose tokenizer: a folder, a name on the Hub, or "bundled"; the start's
    vocab_size: Count | None = None  # train one of so many tokens instead
    words: Literal["text", "code"] = "text"  # what it takes for words: see tokenizer_training
    limit: Count = 200_000  # texts it is trained on, evenly over the sources

    def __post_init__(self) -> None:
        if self.model is not None and self.vocab_size is not None:
            raise DataError("model and vocab_size are both set: expected a tokenizer to take, or the size of a new one")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig:
    """[start]: whose weights training begins with; without a model, random ones of the sizes under [model]."""

    model: str | None = None  # a folder (a checkpoint of such a run, for one), a name on the Hub, or "bundled"
    tile: bool = False  # grow it to the sizes under [model]
    optimizer: bool = False  # go on with the checkpoint's optimiser too: how an annealing begins

    def __post_init__(self) -> None:
        if self.model is None and (self.tile or self.optimizer):
            raise DataError("tile or optimizer is set without a model to take them from: name one")
        if self.tile and self.optimizer:
            raise DataError("tile and optimizer are both set: an optimiser's moments are not tiled, leave one out")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """[model]: the sizes of the backbone; what is not set is the start's, without one ModernBERT-base's."""

    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    global_attn_every_n_layers: Count | None = None
    local_attention: Natural | None = None  # tokens: the whole window
    dtype: Literal["float32", "bfloat16"] | None = None  # of the arithmetic; bfloat16 where the device computes in it
    gradient_checkpointing: bool = False

    def sizes(self) -> dict[str, int]:
        """Return the sizes that are set, under config.json's names."""
        no_sizes = ("dtype", "gradient_checkpointing")
        return {name: value for name, value in recipe.to_dict(self).items() if name not in no_sizes}


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainOptimizerConfig(OptimizerConfig):
    """[optimizer]: ModernBERT's settings; a phase may have a learning rate of its own."""

    name: Literal["adamw", "stableadamw"] = "stableadamw"
    lr: Positive = 8e-4
    weight_decay: NotNegative = 1e-5
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    eps: Positive = 1e-6
    max_grad_norm: NotNegative = 0.0  # StableAdamW clips its own steps


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseConfig:
    """[[phase]]: so many steps on some texts, at one length of sequences. A checkpoint is kept at its end.

    The learning rate's course is one for each phase: a warm-up and then ``constant`` for the stable phase, ``constant``
    for an extension of the context, ``trapezoid`` with ``decay`` = all its steps for an annealing.
    """

    name: str
    steps: Count | None = None  # either steps
    tokens: Count | None = None  # or tokens, in whole steps of batch_size * length
    batch_size: Count = 32  # sequences a step, over all processes
    length: Count = 1024  # tokens of a packed sequence; the longest text that the model then has seen
    global_rope_theta: Positive | None = None  # of the layers that see the whole text; as before
    lr: Positive | None = None  # optimizer.lr
    schedule: Literal["trapezoid", "trapezoid-linear", "linear", "cosine", "constant"] = "constant"
    warmup: NotNegative = 0.0  # of the learning rate; below 1 a share of the phase's steps, else steps
    decay: NotNegative = 0.0  # trapezoid: the fall at the end, likewise
    first_batch_size: Count | None = None  # batches grow from it to batch_size ...
    batch_warmup: NotNegative = 0.0  # ... over so long, likewise
    texts: tuple[str, ...] = ()  # names of [[text]] tables; all

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise DataError(f"phase {self.name!r} has both or none of steps and tokens: expected one of them")
        if self.first_batch_size is not None and self.first_batch_size > self.batch_size:
            raise DataError(
                f"first_batch_size is {self.first_batch_size}, expected at most batch_size {self.batch_size}"
            )
        if self.length <= _OVERHEAD:
            raise DataError(f"length is {self.length}, expected more than the {_OVERHEAD} special tokens of a text")

    @property
    def total_steps(self) -> int:
        """How many steps the phase has."""
        return self.steps or -(-(self.tokens or 0) // (self.batch_size * self.length))


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainRunConfig:
    """[run]: in what portions, and what is kept."""

    mask_rate: Positive = MASK_RATE  # of the tokens, to be guessed
    # Tokens that go through the model at once. The loss does not depend on it, up to the rounding of model.dtype: to
    # 1e-5 in float32, to some thousandths of it in bfloat16, whose sums come out another way in other portions.
    token_budget: Count = 16384
    seed: Natural = 1
    log_every: Count = 10  # steps
    save_every: Count | None = None  # steps; at the end of each phase
    keep: Count = 2  # checkpoints, those at the ends of phases beside them

    def __post_init__(self) -> None:
        if self.mask_rate >= 1:
            raise DataError(f"mask_rate is {self.mask_rate}, expected a share of the tokens below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """A whole recipe. Raises: DataError, one line, for settings that contradict each other."""

    text: tuple[TextConfig, ...]
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    start: StartConfig = field(default_factory=StartConfig)
    model: BackboneConfig = field(default_factory=BackboneConfig)
    optimizer: PretrainOptimizerConfig = field(default_factory=PretrainOptimizerConfig)
    phase: tuple[PhaseConfig, ...]
    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)
    card: CardConfig = field(default_factory=CardConfig)

    def __post_init__(self) -> None:
        for kind, found in (
            ("text", [text.title for text in self.text]),
            ("phase", [part.name for part in self.phase]),
        ):
            if not found:
                raise DataError(f"{kind} has no table: the recipe needs a [[{kind}]]")
            if twice := [name for name in found if found.count(name) > 1]:
                raise DataError(f"two tables of {kind} are called {twice[0]!r}: give each [[{kind}]] a name of its own")
        titles = [text.title for text in self.text]
        for phase in self.phase:
            if unknown := [name for name in phase.texts if name not in titles]:
                raise DataError(f"phase {phase.name!r} has texts {unknown[0]!r}, expected of {', '.join(titles)}")
        if self.start.model is None and self.tokenizer.model is None and self.tokenizer.vocab_size is None:
            raise DataError("there is no tokenizer: set tokenizer.model, tokenizer.vocab_size or start.model")
        if self.start.model is not None and self.tokenizer != TokenizerConfig():
            raise DataError("start.model has a tokenizer, which its embeddings are made for: leave [tokenizer] out")
        if self.start.model is not None and self.model.sizes() and not self.start.tile:
            raise DataError(
                f"model.{next(iter(self.model.sizes()))} is set, but start.model has its own sizes: "
                "leave it out, or set start.tile to grow the model"
            )

    @property
    def steps(self) -> int:
        """How many steps the run has, over all phases."""
        return sum(phase.total_steps for phase in self.phase)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "PretrainConfig":
        """Read a recipe, ``overrides`` such as ``phase.0.steps=10`` over its settings. Raises: DataError, one line."""
        return recipe.load(cls, Path(path).expanduser(), overrides, "pretrain")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "PretrainConfig":
        """Build a config from nested tables: ``from_dict(config.to_dict()) == config``. Raises: DataError."""
        return recipe.read(cls, settings)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists that JSON can say, what is not set left out."""
        return recipe.to_dict(self)

    def to_toml(self) -> str:
        """Return the whole recipe, defaults included, as TOML that ``load`` reads."""
        return recipe.to_toml(self)
