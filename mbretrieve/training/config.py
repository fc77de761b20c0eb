"""What a training run does, whole: the tables of a recipe as frozen records.

A recipe is TOML; ``mbretrieve train RECIPE.toml run.steps=100`` lays settings of the command line over it. A setting
there is not ends the run before it starts, the whole is printed at the start and saved with every checkpoint. A setting
that is ``None`` is not set: the comment beside it says what then counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mbretrieve.errors import DataError
from mbretrieve.training import recipe
from mbretrieve.training.recipe import Count, Natural, NotNegative, Positive, Rate
from mbretrieve.types import Head

Format = Literal["pairs", "triples", "tuples", "msmarco-bm25", "msmarco-bge", "codesearchnet", "coir", "nli"]

# The temperatures that count where a recipe names none. A cosine lies in [-1, 1], so that a softmax over a batch needs
# it stretched; MaxSim sums tens of cosines and does not. Distillation compares with a teacher's scores as they are.
_DENSE_TEMPERATURE = 0.05
_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model]: where training starts, and what the trained model is."""

    start: str = "bundled"  # a folder, a name on the Hub, or the bundled model
    kind: Literal["colbert", "dense", "joint"] = "colbert"
    dim: Count | None = None  # width of a new projection; as saved (a bare backbone: 128, dense: none)
    query_length: Count | None = None  # tokens, special ones counted; as saved
    document_length: Count | None = None
    query_prompt: str | None = None  # text in front of each query; as saved
    document_prompt: str | None = None
    query_marker: str | None = None  # one token behind the first special one (late interaction); as saved
    document_marker: str | None = None
    expansion: Literal["none", "fixed", "minimum"] | None = None  # queries filled to query_length; as saved
    pooling: Literal["cls", "mean"] | None = None  # of the dense vector; as saved (a bare backbone: mean)
    normalize_queries: bool | None = None  # late interaction: rows of unit length; as saved
    dtype: Literal["float32", "bfloat16"] | None = None  # of the arithmetic; bfloat16 where the device computes in it
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.kind == "colbert" and self.pooling is not None:
            raise DataError(f"pooling is {self.pooling!r}, but kind is 'colbert', which pools nothing: leave one out")
        late = {"query_marker": self.query_marker, "document_marker": self.document_marker, "expansion": self.expansion}
        if self.kind == "dense" and (named := [name for name, value in late.items() if value is not None]):
            raise DataError(f"{named[0]} is set, but kind is 'dense', which has none: leave one out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """[data.columns]: under which names a source keeps what the formats pairs, triples and tuples read."""

    query: str = "query"
    positive: str = "positive"
    negatives: tuple[str, ...] = ()  # columns of one text or a list of texts; as the format names them
    scores: str | None = None  # tuples: the teacher's scores, the positive's first; not read


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """[[data]]: one source of examples; a step draws all of its examples from one source."""

    path: str | None = None  # a file (.jsonl, .jsonl.gz, .parquet) or a folder, relative to where the command runs
    hub: str | None = None  # or the name of a dataset on the Hub
    config: str | None = None  # of the Hub's dataset
    split: str = "train"
    revision: str | None = None  # branch, tag or commit on the Hub; the newest
    format: Format = "pairs"
    streaming: bool = False  # read front to back, shuffled in a buffer, instead of indexed
    weight: Positive | None = None  # share of the steps; the number of its rows
    name: str | None = None  # in logs and state; the file's or dataset's name
    query_prompt: str = ""  # in front of each query of this source, behind the model's own prompt
    document_prompt: str = ""
    columns: Columns = field(default_factory=Columns)
    negatives: Natural | None = None  # how many of an example's to use, the first ones; all
    limit: Count | None = None  # only the first so many rows; all
    teacher_vectors: str | None = None  # a folder: queries.npy and positives.npy, a teacher's vectors, one a row
    licence: str | None = None  # of its texts, for the model's card

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise DataError("expected either path, a file or folder, or hub, the name of a dataset on the Hub")
        if self.teacher_vectors is not None and self.streaming:
            raise DataError(
                "teacher_vectors are found by a row's number, which a stream has not: set streaming = false"
            )
        if self.columns.scores is not None and self.format != "tuples":
            raise DataError(f"columns.scores is set, but format is {self.format!r}: expected format = 'tuples'")

    @property
    def title(self) -> str:
        """What logs, state and messages call the source."""
        where = self.path or self.hub or ""
        return self.name or (self.path and Path(where).name) or where

    @property
    def scored(self) -> bool:
        """Whether its examples carry a teacher's scores."""
        return self.format == "msmarco-bge" or self.columns.scores is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """[loss]: what is made small."""

    name: Literal["infonce", "kl", "margin-mse"] = "infonce"
    temperature: Positive | None = None  # scores are divided by it; see TrainConfig.temperature
    learn_temperature: bool = False
    symmetric: bool = False  # infonce: from documents to queries too
    gather: bool = True  # infonce: negatives of all processes
    matryoshka: tuple[Count, ...] = ()  # widths at which the loss is taken too (arXiv 2205.13147)
    matryoshka_weights: tuple[Positive, ...] = ()  # one a width; 1 each
    teacher: str | None = None  # a sentence-transformers model whose vectors are learned as well
    distillation: Literal["cosine", "relational"] = "cosine"
    distillation_weight: NotNegative = 1.0
    in_batch_weight: NotNegative = 0.0  # infonce: of the teacher's similarities as labels of a batch (arXiv 2010.11386)
    teacher_temperature: Positive = 0.05  # those similarities are divided by it
    dense_weight: NotNegative = 1.0  # joint: of the pooled head's loss
    late_weight: NotNegative = 1.0  # joint: of the token head's loss

    def __post_init__(self) -> None:
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka):
            raise DataError(
                f"matryoshka_weights has {len(self.matryoshka_weights)} numbers, expected {len(self.matryoshka)}, "
                "one for each width of matryoshka"
            )
        if self.in_batch_weight and self.name != "infonce":
            raise DataError(f"in_batch_weight is set, but name is {self.name!r}: only infonce sees a whole batch")
        if self.symmetric and self.name != "infonce":
            raise DataError(f"symmetric is true, but name is {self.name!r}: only infonce has two directions")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """[optimizer]: how weights are moved."""

    name: Literal["adamw", "stableadamw"] = "adamw"
    lr: Positive = 1e-4
    embedding_lr: Positive | None = None  # of the token embeddings; lr
    weight_decay: NotNegative = 0.01
    betas: tuple[Rate, Rate] = (0.9, 0.98)
    eps: Positive = 1e-8
    max_grad_norm: NotNegative = 1.0  # longer gradients are scaled down to it; 0: none are


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """[schedule]: the learning rate's course. Below 1 ``warmup`` and ``decay`` are shares of all steps, else steps."""

    name: Literal["trapezoid", "linear", "cosine", "constant"] = "linear"
    warmup: NotNegative = 0.05
    decay: NotNegative = 0.2  # trapezoid: the fall at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """[run]: how long, in what portions, and what is kept."""

    steps: Count | None = None  # either steps
    epochs: Positive | None = None  # or passes over all sources' rows
    batch_size: Count = 64  # examples a step, over all processes
    # Tokens that go through the model at once. The loss does not depend on it, up to the rounding of model.dtype: to
    # 1e-5 in float32, to some thousandths of it in bfloat16, whose sums come out another way in other portions.
    token_budget: Count = 16384
    seed: Natural = 1
    length_bucket: Count = 1  # so many batches' examples are sorted by length before they are cut into batches
    log_every: Count = 10  # steps
    save_every: Count | None = None  # steps; at the end
    keep: Count = 2  # checkpoints, the best beside them
    evaluate_every: Count | None = None  # steps; at the end
    trackers: tuple[str, ...] = ()  # names of accelerate's trackers

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise DataError("expected either steps or epochs, how long to train")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """[evaluation]: what the model is measured on during training."""

    sets: tuple[str, ...] = ()  # folders in BEIR layout
    split: str = "dev"
    metric: str = "ndcg@10"
    kind: Head | None = None  # which head of a joint model; late interaction
    limit: Count | None = None  # only the first so many queries; all


@dataclass(frozen=True, slots=True, kw_only=True)
class CardConfig:
    """[card]: what the model's card cannot know from the run."""

    name: str | None = None  # the model's, "owner/name" if it goes to the Hub
    licence: str | None = None  # of the weights, in the Hub's spelling: "apache-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A whole recipe. Raises: DataError, one line, for settings that contradict each other."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: tuple[SourceConfig, ...]
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    card: CardConfig = field(default_factory=CardConfig)

    def __post_init__(self) -> None:
        if not self.data:
            raise DataError("data has no source: the recipe needs a [[data]]")
        titles = [source.title for source in self.data]
        if twice := [title for title in titles if titles.count(title) > 1]:
            raise DataError(f"two sources are called {twice[0]!r}: give each [[data]] a name of its own")
        weightless = [source.title for source in self.data if source.weight is None]
        if 0 < len(weightless) < len(self.data):
            raise DataError(f"{weightless[0]} has no weight and others have: give one to every source or to none")
        for source in self.data:
            if source.streaming and ((weightless and len(self.data) > 1) or self.run.epochs is not None):
                raise DataError(
                    f"{source.title} is streamed, so that its rows are not counted: expected run.steps, not epochs, "
                    "and a weight where there are several sources"
                )
        taught = [source.title for source in self.data if source.teacher_vectors is not None]
        if self.loss.teacher is not None and taught:
            raise DataError(f"loss.teacher is set, and {taught[0]} has teacher_vectors: leave one of them out")
        if self.loss.in_batch_weight and self.loss.teacher is None and not taught:
            raise DataError("loss.in_batch_weight has no teacher: expected loss.teacher or data.teacher_vectors")
        if self.loss.name != "infonce" and (bare := [source.title for source in self.data if not source.scored]):
            raise DataError(
                f"loss.name is {self.loss.name!r}, which learns a teacher's scores, but {bare[0]} has none: "
                "expected columns.scores, or format = 'msmarco-bge'"
            )
        if self.model.dim is not None and (wide := [dim for dim in self.loss.matryoshka if dim > self.model.dim]):
            raise DataError(
                f"loss.matryoshka has {wide[0]}, expected widths up to model.dim, which is {self.model.dim}"
            )

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "TrainConfig":
        """Read a recipe, ``overrides`` such as ``optimizer.lr=1e-4`` or ``data.0.weight=2`` over its settings.

        Raises: DataError, one line, for a file that is no recipe and for settings that cannot be used.
        """
        return recipe.load(cls, Path(path).expanduser(), overrides, "train")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Build a config from nested tables: ``from_dict(config.to_dict()) == config``. Raises: DataError."""
        return recipe.read(cls, settings)

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts and lists that JSON can say, what is not set left out."""
        return recipe.to_dict(self)

    def to_toml(self) -> str:
        """Return the whole recipe, defaults included, as TOML that ``load`` reads."""
        return recipe.to_toml(self)

    def temperature(self, kind: Head) -> float:
        """Return what the scores of one head are divided by (the value at the start, if it is learned)."""
        if self.loss.temperature is not None:
            return self.loss.temperature
        return _DENSE_TEMPERATURE if kind == "dense" and self.loss.name == "infonce" else _TEMPERATURE
