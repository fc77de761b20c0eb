"""What a checkpoint holds beside the backbone's weights: the records between the layouts on disk and the encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.types import Kind

Pooling = Literal["cls", "mean"]


class HasShape(Protocol):
    """A tensor of torch or an array of numpy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How many numbers there are in each dimension."""


Weight = TypeVar("Weight", bound=HasShape)
"""What weights are read as: tensors, or numpy's arrays where torch is spared."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Query expansion (ColBERT, https://arxiv.org/abs/2004.12832): queries are filled to ``length`` with a token.

    ``length`` counts all tokens. ``minimum``: longer queries are kept whole up to the query length; else each query has
    exactly ``length`` tokens. ``attended``: the other tokens see the filling. ``token``: None is the mask token.
    """

    length: int
    minimum: bool = False
    attended: bool = False
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """How one side, queries or documents, becomes rows of vectors.

    ``marker`` is one token, put behind the first special token; ``prompt`` is text in front of it. ``length`` is
    the most tokens, all counted (None: as many as the model has positions). ``skip``: tokens that get no row;
    ``keep_only``: ids of the only tokens that get one. ``normalize``: rows (dense: vectors) of unit length.
    """

    marker: str = ""
    prompt: str = ""
    length: int | None = None
    normalize: bool = True
    skip: tuple[str, ...] = ()
    keep_only: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides an encoder's vectors beside weights and tokenizer. ``pooling`` is None for late interaction."""

    queries: Side = Side()
    documents: Side = Side()
    expansion: Expansion | None = None
    pooling: Pooling | None = None
    include_prompt: bool = True

    @property
    def kind(self) -> Kind:
        """Late interaction, or one vector a text."""
        return "colbert" if self.pooling is None else "dense"


@dataclass(frozen=True, slots=True, eq=False)
class SavedLayer(Generic[Weight]):
    """One layer of a projection: ``activation(x W^T + b)``, plus the input or its projection if it is residual."""

    weight: Weight
    bias: Weight | None = None
    activation: str = "torch.nn.modules.linear.Identity"
    use_residual: bool = False
    residual: Weight | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Saved(Generic[Weight]):
    """A model folder, read: ``backbone`` under Hugging Face's names without prefix or heads, ``projection`` in order.

    ``limit`` is the number of tokens to which a side without a length of its own is cut. ``folder`` is where it was
    read, and where its card is: a retriever's, not a bare ModernBERT's.
    """

    config: ModernBertConfig
    backbone: Mapping[str, Weight]
    tokenizer: Tokenizer
    settings: Settings
    limit: int
    projection: tuple[SavedLayer[Weight], ...] = ()
    folder: Path | None = None


if TYPE_CHECKING:
    from torch import Tensor

    DenseLayer = SavedLayer[Tensor]
    Checkpoint = Saved[Tensor]
else:  # without torch
    DenseLayer, Checkpoint = SavedLayer, Saved
