"""What a run would do, said before it starts: steps, tokens, memory and the first batch, from a sample of the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.device import resolve_dtype
from mbretrieve.models.encoder import TextEncoder
from mbretrieve.models.framing import Frame
from mbretrieve.training.config import TrainConfig
from mbretrieve.training.data import Batches, Example, Share, documents

_FLOAT32 = 4  # bytes
_SAMPLE = 256  # examples whose tokens are counted
_SHOWN = 4  # examples of the first batch
_WIDTH = 160  # characters of a text shown


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process needs beside the libraries, in bytes, estimated.

    ``weights``: parameters and their gradients; ``optimizer``: its two averages for each parameter, as these in
    float32; ``activations``: what the backward pass of one micro-batch needs (``activation_bytes``); ``vectors``: a
    step's vectors as they came and scaled, with the gradients of both, which GradCache holds.
    """

    weights: int
    optimizer: int
    activations: int
    vectors: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations + self.vectors


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do. ``tokens``: of all its steps, from a sample; ``longest``: the longest text of the sample."""

    steps: int
    examples: int
    tokens: int
    longest: int
    memory: Memory
    sources: tuple[Share, ...]
    first: tuple[Example, ...]


def preview(config: TrainConfig, encoder: TextEncoder, batches: Batches) -> Preview:
    """Say what a run would do with a model, by drawing a few batches; the place in the data stays where it was.

    Raises: DataError for data that cannot be read.
    """
    place = batches.state()
    first = tuple(next(batches))
    sample = list(first)
    while len(sample) < _SAMPLE:
        sample += next(batches)
    sources = tuple(batches.shares)
    batches.restore(place)
    sample = sample[:_SAMPLE]
    lengths = _lengths(encoder.queries, [example.query for example in sample])
    lengths += _lengths(encoder.documents, documents(sample))
    steps = batches.steps(config.run)
    step_tokens = sum(lengths) / len(sample) * batches.batch_size
    step_texts = len(lengths) / len(sample) * batches.batch_size
    parameters = sum(weight.numel() for weight in (*encoder.backbone.parameters(), *encoder.projection.parameters()))
    together = min(step_tokens, max(config.run.token_budget, *lengths))
    activations = activation_bytes(
        encoder.backbone.config, round(together), checkpointing=config.model.gradient_checkpointing
    )
    return Preview(
        steps=steps,
        examples=steps * batches.batch_size,
        tokens=round(step_tokens * steps),
        longest=max(lengths),
        memory=Memory(
            weights=2 * _FLOAT32 * parameters,
            optimizer=2 * _FLOAT32 * parameters,
            activations=activations // (2 if _dtype(config, encoder) == torch.bfloat16 else 1),
            vectors=4 * _FLOAT32 * encoder.dim * round(step_tokens if encoder.kind == "colbert" else step_texts),
        ),
        sources=sources,
        first=first[:_SHOWN],
    )


def activation_bytes(config: ModernBertConfig, tokens: int, *, checkpointing: bool = False) -> int:
    """Return what the backward pass needs of a forward of packed tokens, in float32: ``4 T (L (10 h + 4 m) + h)``.

    With T tokens, L layers, hidden size h and intermediate size m, a layer keeps of each token: its input, that
    normalised, queries, keys and values before and after rotation (5 h), what attention mixed, the sum with the input,
    that normalised (10 h in all); both halves of the gated unit, the activated one, their product (4 m). Recomputed
    (``checkpointing``), only each layer's input is kept, and one layer at a time as above: ``4 T (L h + 10 h + 4 m)``.
    Attention is taken to keep no weights.
    """
    layer = 10 * config.hidden_size + 4 * config.intermediate_size
    layers = config.num_hidden_layers
    kept = layers * config.hidden_size + layer if checkpointing else layers * layer + config.hidden_size
    return _FLOAT32 * tokens * kept


def render(found: Preview) -> RenderableType:
    """Draw a preview for a terminal; what is not printable in the data's texts is replaced."""
    memory = found.memory
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("steps", f"{found.steps:,}"),
        ("examples", f"{found.examples:,}"),
        ("tokens", f"about {found.tokens:,}; the longest text seen has {found.longest:,}"),
        (
            "memory",
            f"about {_size(memory.total)}: weights and gradients {_size(memory.weights)}, optimizer "
            f"{_size(memory.optimizer)}, activations {_size(memory.activations)}, vectors {_size(memory.vectors)}",
        ),
    ):
        facts.add_row(name, value)
    sources = Table(box=None, pad_edge=False)
    for column in ("source", "rows", "share of steps"):
        sources.add_column(column, justify="left" if column == "source" else "right")
    for source in found.sources:
        rows = "streamed" if source.rows is None else f"{source.rows:,}"
        sources.add_row(Text(_shown(source.title)), rows, f"{source.share:.1%}")
    return Group(facts, "", sources, "", "The first batch begins:", *map(_example, found.first))


def _example(example: Example) -> Text:
    lines = [f"  query     {_shown(example.query)}", f"  positive  {_shown(example.positive)}"]
    lines += [f"  negative  {_shown(text)}" for text in example.negatives[:2]]
    if len(example.negatives) > 2:
        lines.append(f"            and {len(example.negatives) - 2} negatives more")
    if example.scores is not None:
        lines.append(f"  scores    {', '.join(f'{score:.4g}' for score in example.scores[:8])}")
    return Text("\n".join([*lines, ""]))


def _lengths(frame: Frame, texts: Sequence[str]) -> list[int]:
    return [len(text.ids) for text in frame.prepare(texts)]


def _dtype(config: TrainConfig, encoder: TextEncoder) -> torch.dtype:
    """Return the dtype that training would compute in: the recipe's, else the device's."""
    return resolve_dtype(config.model.dtype, encoder.device)


def _shown(text: str) -> str:
    """Return the beginning of a text on one line, without what would move a terminal's cursor."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."


def _size(size: float) -> str:
    """Return bytes as people read them."""
    units = ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
