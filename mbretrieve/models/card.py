"""The model card written with every save: README.md, its front matter as the Hugging Face Hub reads it.

What the folder holds is read off the model; what only its makers know comes as `TrainingFacts`. All of their words are
data: YAML is dumped, not pasted, and what stands in a table or a heading cannot break it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from mbretrieve import __version__
from mbretrieve.models.reading import PUNCTUATION
from mbretrieve.models.settings import Checkpoint, Side
from mbretrieve.models.source import BUNDLED
from mbretrieve.models.writing import beyond_pylate
from mbretrieve.types import Kind

FILE = "README.md"

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_MEANINGFUL = re.compile(r"[`*_|~<>&\\]")
_MARKUP = re.compile(r"([\\`*_\[\]|~#])")


@dataclass(frozen=True, slots=True)
class DataSource:
    """What a model was trained on: a name, how many rows of it, its licence, its name on the Hub if it has one."""

    name: str
    rows: int | None = None
    licence: str | None = None
    hub: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the model: ``name`` ("ndcg@10") of ``dataset`` ("scifact, test") is ``value``."""

    dataset: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What a card says beside what can be read off the model.

    ``name``: the model's, "owner/name" if it goes to the Hub. ``base_model``: what training began with; it is linked if
    it is a name on the Hub. ``licence``: of the weights, in the Hub's spelling ("apache-2.0"). ``recipe``: the whole
    recipe, as TOML. ``joint``: a late-interaction model was trained with a pooled head too.
    """

    name: str | None = None
    base_model: str | None = None
    licence: str | None = None
    recipe: str = ""
    data: tuple[DataSource, ...] = ()
    metrics: tuple[Metric, ...] = ()
    seeds: tuple[int, ...] = ()
    joint: bool = False


class _Reader(NamedTuple):
    """A library that reads a layout: its name, what pip calls it, its class, and a program that uses the model."""

    name: str
    install: str
    encoder: str
    program: str


class _Reading(NamedTuple):
    """Who reads a layout: ``library`` is the Hub's word for the first other than this one, ``tags`` are the Hub's."""

    library: str
    tags: tuple[str, ...]
    readers: tuple[_Reader, ...]


_OURS = """
    from mbretrieve import {encoder}

    model = {encoder}.from_pretrained({name})
    documents = ["Paris is the capital of France.", "Bread is baked from flour, water and salt."]
    [ranking] = model.rerank(["capital of France"], [documents])
    for place, score in ranking:
        print(f"{{score:.3f}}", documents[place])
"""
_SENTENCE_TRANSFORMERS = """
    from sentence_transformers import {encoder}

    model = {encoder}({name})
    queries = model.encode_query(["capital of France"])
    documents = model.encode_document(["Paris is the capital of France.", "Bread is baked from flour, water and salt."])
    print(model.similarity(queries, documents))
"""
_PYLATE = """
    from pylate import models, rank

    model = {encoder}({name})
    queries = model.encode(["capital of France"], is_query=True)
    documents = model.encode(
        [["Paris is the capital of France.", "Bread is baked from flour, water and salt."]], is_query=False
    )
    print(rank.rerank(documents_ids=[[0, 1]], queries_embeddings=queries, documents_embeddings=documents))
"""
_MBRETRIEVE: dict[Kind, _Reader] = {
    "colbert": _Reader("mbretrieve", "mbretrieve", "ColBERT", _OURS),
    "dense": _Reader("mbretrieve", "mbretrieve", "DenseEncoder", _OURS),
}
_POOLED = _Reader("mbretrieve, its second head", "mbretrieve", "DenseEncoder", _OURS)
_MULTI_VECTOR = _Reader(
    "sentence-transformers", "sentence-transformers>=6", "MultiVectorEncoder", _SENTENCE_TRANSFORMERS
)
_SENTENCE_TRANSFORMER = _Reader(
    "sentence-transformers", "sentence-transformers", "SentenceTransformer", _SENTENCE_TRANSFORMERS
)
_PYLATE_COLBERT = _Reader("PyLate", "pylate", "models.ColBERT", _PYLATE)
_ANOTHER_LAYOUT = 'PyLate reads another layout: `save_pretrained(folder, layout="pylate")` writes it'
_LATE_TAGS = ("ColBERT", "late-interaction", "multi-vector")
_READINGS: dict[tuple[Kind, str], _Reading] = {
    ("colbert", "pylate"): _Reading("PyLate", ("PyLate", *_LATE_TAGS), (_MULTI_VECTOR, _PYLATE_COLBERT)),
    ("colbert", "sentence-transformers"): _Reading("sentence-transformers", _LATE_TAGS, (_MULTI_VECTOR,)),
    ("colbert", "stanford"): _Reading("mbretrieve", _LATE_TAGS, (_PYLATE_COLBERT,)),
    ("dense", "sentence-transformers"): _Reading("sentence-transformers", ("dense",), (_SENTENCE_TRANSFORMER,)),
}


def model_card(model: Checkpoint, layout: str, facts: TrainingFacts) -> str:
    """Return the text of README.md for a model saved in a layout: front matter, use, sizes, how text becomes vectors,
    and what ``facts`` say of its making."""
    reading = _READINGS[model.settings.kind, layout]
    parts = [
        f"---\n{_front_matter(model.settings.kind, reading, facts)}---\n",
        f"# {inline(facts.name or 'A retrieval model')}\n",
        _summary(model, facts),
        _use(model, reading, facts),
        _sizes(model),
        _sides(model),
        making(facts),
        _figures(facts.metrics),
        f"Saved by mbretrieve {__version__}.",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _front_matter(kind: Kind, reading: _Reading, facts: TrainingFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="information-retrieval",
            dataset_type=metric.dataset,
            dataset_name=metric.dataset,
            metric_type=metric.name,
            metric_value=metric.value,
        )
        for metric in facts.metrics
    ]
    licence, licence_name = licence_fields(facts.licence)
    data = ModelCardData(
        model_name=(facts.name or "model") if results else None,
        eval_results=results or None,
        library_name=reading.library,
        pipeline_tag="sentence-similarity" if kind == "dense" else "feature-extraction",
        tags=["mbretrieve", "modernbert", "information-retrieval", *reading.tags],
        license=licence,
        license_name=licence_name,
        base_model=hub_name(facts.base_model),
        datasets=list(dict.fromkeys(filter(None, (hub_name(source.hub) for source in facts.data)))) or None,
    )
    return f"{data.to_yaml()}\n"


def licence_fields(licence: str | None) -> tuple[str | None, str | None]:
    """Return front matter's ``license`` and ``license_name``: one that the Hub may know, or "other" and its name."""
    if licence is None or _LICENCE.fullmatch(licence.lower()):
        return licence and licence.lower(), None
    return "other", licence


def _summary(model: Checkpoint, facts: TrainingFacts) -> str:
    how = {
        "colbert": "A ModernBERT of late interaction: one vector a token, compared by MaxSim.",
        "dense": "A ModernBERT of one vector a text, compared by cosine similarity.",
    }[model.settings.kind]
    lines = [how]
    if facts.joint:
        lines.append(
            "It was trained with a second head, of one vector a text: the mean of the last hidden states at unit "
            "length. mbretrieve's `JointEncoder`, and its `--kind joint`, find by the one and rank by the other."
        )
    if facts.base_model:
        lines.append(f"Trained from {origin(facts.base_model)}.")
    if facts.licence:
        lines.append(f"Licence of the weights: {inline(facts.licence)}.")
    return " ".join(lines) + "\n"


def _use(model: Checkpoint, reading: _Reading, facts: TrainingFacts) -> str:
    name, kind = hub_name(facts.name), model.settings.kind
    # Before version 6 a model of one vector a text had one length for queries and documents.
    parted = kind == "dense" and model.settings.queries.length != model.settings.documents.length
    text = "## Use\n"
    if name is None:
        text += '\nThe programs name the model `"."`, which is this folder.\n'
    for reader in (_MBRETRIEVE[kind], *((_POOLED,) if facts.joint else ()), *reading.readers):
        program = dedent(reader.program).strip().format(encoder=reader.encoder, name=f'"{name or "."}"')
        install = f"{reader.install}>=6" if parted and reader is _SENTENCE_TRANSFORMER else reader.install
        text += f'\n{reader.name}, `pip install "{install}"`:\n\n```python\n{program}\n```\n'
    if kind == "colbert" and _PYLATE_COLBERT not in reading.readers:
        text += f"\n{beyond_pylate(model) or _ANOTHER_LAYOUT}.\n"
    return text


def _sizes(model: Checkpoint) -> str:
    layers = [part for layer in model.projection for part in (layer.weight, layer.bias, layer.residual)]
    tensors = [*model.backbone.values(), *(part for part in layers if part is not None)]
    parameters = sum(tensor.numel() for tensor in tensors)
    embeddings = model.config.vocab_size * model.config.hidden_size
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    dtype = str(next(iter(model.backbone.values())).dtype).removeprefix("torch.")
    config = model.config
    dim = model.projection[-1].weight.shape[0] if model.projection else config.hidden_size
    rows = [
        ("parameters", f"{parameters:,} ({parameters - embeddings:,} outside the token embeddings)"),
        ("weights", f"{size / 1e6:,.1f} MB, {dtype}"),
        ("layers", f"{config.num_hidden_layers}, {config.hidden_size} wide"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("positions", f"{config.max_position_embeddings:,}"),
        ("dimensions of a vector", str(dim)),
    ]
    return "## Sizes\n\n" + table(("what", "how much"), rows)


def _sides(model: Checkpoint) -> str:
    settings = model.settings
    sides = (settings.queries, settings.documents)

    def row(what: str, *values: str) -> tuple[str, ...]:
        return (what, *values)

    rows = [
        row("tokens, at most", *(f"{side.length or model.limit:,}" for side in sides)),
        row("marker", *(_code(side.marker) for side in sides)),
        row("prompt", *(_code(side.prompt) for side in sides)),
        row("unit length", *("yes" if side.normalize else "no" for side in sides)),
    ]
    if settings.pooling is not None:
        rows.append(row("pooling", settings.pooling, settings.pooling))
    else:
        rows.append(row("tokens without a vector", *(_left_out(side) for side in sides)))
    expansion = settings.expansion
    if expansion is not None:
        to = f"{'at least ' if expansion.minimum else ''}{expansion.length} tokens"
        rows.append(row("filled", to, "no"))
    return "## How text becomes vectors\n\n" + table(("", "queries", "documents"), rows)


def _left_out(side: Side) -> str:
    if side.keep_only:
        return f"all but {len(side.keep_only):,}"
    return "punctuation" if side.skip == PUNCTUATION else " ".join(map(_code, side.skip)) or "none"


def making(facts: TrainingFacts) -> str:
    """Write the sections on data and recipe, of what is known of them."""
    text = ""
    if facts.data:
        rows = [
            (
                _link(source),
                "" if source.rows is None else f"{source.rows:,}",
                inline(source.licence or "not said"),
            )
            for source in facts.data
        ]
        text += "## Data\n\n" + table(("source", "rows", "licence"), rows) + "\n"
    if facts.recipe or facts.seeds:
        text += "## Recipe\n\n"
        if facts.seeds:
            text += f"Seed{'s' if len(facts.seeds) > 1 else ''}: {', '.join(map(str, facts.seeds))}.\n\n"
        if facts.recipe:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", facts.recipe)), default=0))
            text += f"{fence}toml\n{facts.recipe.strip()}\n{fence}\n"
    return text


def _figures(metrics: Sequence[Metric]) -> str:
    rows = [(inline(metric.dataset), inline(metric.name), f"{metric.value:.4f}") for metric in metrics]
    return "## Figures\n\n" + table(("set", "metric", "value"), rows) if rows else ""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown."""
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [*lines, *map(list, rows)])


def _link(source: DataSource) -> str:
    hub = hub_name(source.hub)
    return f"[{inline(source.name)}](https://huggingface.co/datasets/{hub})" if hub else inline(source.name)


def hub_name(name: str | None) -> str | None:
    """Return a name that can be one on the Hub; a folder is not for publishing, and a link to it would lead nowhere."""
    return name if name is not None and _HUB_NAME.fullmatch(name) and not Path(name).is_dir() else None


def origin(base_model: str) -> str:
    """Return what training began with: a link to the Hub, a folder's name, or the bundled model's, which is here."""
    if base_model == BUNDLED:
        return f"{BUNDLED}, the model that mbretrieve brings along"
    hub = hub_name(base_model)
    return f"[{hub}](https://huggingface.co/{hub})" if hub else inline(base_model)


def inline(text: str) -> str:
    """Return text of any kind as words in a line of Markdown: no markup, no line breaks, no HTML."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _code(text: str) -> str:
    """Return text as code in a table. What Markdown gives a meaning to is spelled: it has one even there."""
    if not text:
        return "none"
    return f"<code>{_MEANINGFUL.sub(lambda found: f'&#{ord(found[0])};', repr(text)[1:-1])}</code>"
