"""Model folders: which layouts there are, how each is told from the others, read and written."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbretrieve.errors import ModelError
from mbretrieve.models.card import FILE as CARD
from mbretrieve.models.card import TrainingFacts, model_card
from mbretrieve.models.files import one_line, read_json
from mbretrieve.models.module_list import MODULES
from mbretrieve.models.reading import (
    PYLATE_KEYS,
    ST_CONFIG,
    STANFORD_ARCHITECTURE,
    read_bare,
    read_dense,
    read_multi_vector,
    read_pylate,
    read_stanford,
)
from mbretrieve.models.settings import Checkpoint, Saved, Settings, Side, Weight
from mbretrieve.models.weights import Array, Read, as_array, read_arrays, read_tensors, weights_hash
from mbretrieve.models.writing import (
    Obstacles,
    Writer,
    dense_obstacles,
    multi_vector_obstacles,
    pylate_obstacles,
    stanford_obstacles,
    write_dense,
    write_multi_vector,
    write_pylate,
    write_stanford,
)
from mbretrieve.types import Kind


@dataclass(frozen=True, slots=True)
class Signs:
    """What tells a folder's layout."""

    modules: bool
    model_type: str | None
    pylate: bool
    stanford: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which models of one kind lie on disk. ``name`` is what ``save_pretrained(layout=)`` calls it."""

    name: str
    kind: Kind
    recognise: Callable[[Signs], bool]
    read: Callable[[Path, Read[Any]], Saved[Any]]
    write: Writer | None = None
    obstacles: Obstacles | None = None


# The first that recognises a folder reads it; the first of the model's kind that can express it writes.
LAYOUTS = (
    Layout(
        "pylate",
        "colbert",
        lambda signs: signs.modules and (signs.model_type == "ColBERT" or (signs.model_type is None and signs.pylate)),
        read_pylate,
        write_pylate,
        pylate_obstacles,
    ),
    Layout(
        "sentence-transformers",
        "colbert",
        lambda signs: signs.modules and signs.model_type == "MultiVectorEncoder",
        read_multi_vector,
        write_multi_vector,
        multi_vector_obstacles,
    ),
    Layout(
        "sentence-transformers",
        "dense",
        lambda signs: signs.modules and signs.model_type in (None, "SentenceTransformer"),
        read_dense,
        write_dense,
        dense_obstacles,
    ),
    Layout(
        "stanford",
        "colbert",
        lambda signs: not signs.modules and signs.stanford,
        read_stanford,
        write_stanford,
        stanford_obstacles,
    ),
    Layout("bare", "colbert", lambda signs: not signs.modules and signs.model_type is None, read_bare),
)


def load(folder: Path) -> Checkpoint:
    """Read a model folder in whichever layout it is. Raises: ModelError naming what came and what was expected."""
    return _load(folder, read_tensors)


def load_arrays(folder: Path) -> Saved[Array]:
    """Read a model folder as ``load`` does, but without torch, its weights as mapped arrays. Raises: ModelError."""
    return _load(folder, read_arrays)


def _load(folder: Path, read_weights: Read[Weight]) -> Saved[Weight]:
    saved = read_json(folder / ST_CONFIG)
    config = read_json(folder / "config.json")
    signs = Signs(
        modules=(folder / MODULES).is_file(),
        model_type=saved.get("model_type"),
        pylate=any(key in saved for key in PYLATE_KEYS),
        stanford=STANFORD_ARCHITECTURE in (config.get("architectures") or ()),
    )
    if not signs.modules and not config:
        raise ModelError(f"{folder} is not a model folder: it has neither {MODULES} nor config.json")
    for layout in LAYOUTS:
        if layout.recognise(signs):
            read = layout.read(folder, read_weights)
            return replace(read, folder=folder) if layout.write else read  # a bare backbone's card is of no retriever
    raise ModelError(f"{folder} is a {signs.model_type}, expected a MultiVectorEncoder, ColBERT or SentenceTransformer")


def save(model: Checkpoint, folder: Path, layout: str | None = None, facts: TrainingFacts | None = None) -> None:
    """Write a model folder in a layout by name, or the first of the table that can express the model, and its card.

    The card says ``facts``. Without them a model that is still the one it was loaded as keeps the card of its folder,
    word for word; one whose weights are others gets a card of what can be read off it, not another model's praise.
    All is written beside the folder first, then moved in file by file, so that a crash leaves no half of a file.
    Raises: ModelError naming what the layouts cannot express, or why the folder cannot be written.
    """
    name, write = _writer(model, layout)
    kept = _kept_card(model) if facts is None else None
    card = kept or model_card(model, name, facts or TrainingFacts()).encode("utf-8", "replace")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
            draft = Path(place)
            write(model, draft)
            (draft / CARD).write_bytes(card)
            _move_in(draft, folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {one_line(error)}") from error


def _kept_card(model: Checkpoint) -> bytes | None:
    """Return the card of the folder that a model was loaded from, if kind and weights are still those, in any dtype."""
    import torch

    if model.folder is None or not (model.folder / CARD).is_file():
        return None
    try:
        read, words = load(model.folder), (model.folder / CARD).read_bytes()
    except (ModelError, OSError):  # it is gone, or being replaced
        return None
    before, now = _weights(read), _weights(model)
    same = read.settings.kind == model.settings.kind and before.keys() == now.keys()
    same = same and all(torch.equal(before[key].to(now[key].dtype), now[key].cpu()) for key in now)
    return words if same else None


def _weights(model: Saved[Weight]) -> dict[str, Weight]:
    """Return all weights under names of their own."""
    weights = dict(model.backbone)
    for number, layer in enumerate(model.projection):
        parts = {"weight": layer.weight, "bias": layer.bias, "residual": layer.residual}
        weights |= {f"projection.{number}.{name}": part for name, part in parts.items() if part is not None}
    return weights


def content_hash(model: Checkpoint | Saved[Array]) -> str:
    """Hash what decides a model's vectors: weights, tokenizer, configuration and settings, whatever the layout."""
    config = {key: value for key, value in asdict(model.config).items() if key != "other"}
    words = json.dumps([config, asdict(model.settings), model.limit], sort_keys=True, default=str)
    for layer in model.projection:
        words += f" {layer.activation} {layer.use_residual}"
    weights: dict[str, Any] = _weights(model)
    arrays = [(name, one if isinstance(one, np.ndarray) else as_array(one)) for name, one in weights.items()]
    return weights_hash(arrays, words.encode() + model.tokenizer.fingerprint())


def view(model: Saved[Weight], kind: Kind) -> Saved[Weight]:
    """See a checkpoint as the kind of encoder it was not saved as; one of the right kind is returned as it is.

    As late interaction, a model of one vector a text loses its pooling and projects each token. As one vector a text, a
    late-interaction model loses projection, expansion and skiplist, and the mean of its hidden states, scaled to unit
    length, is the vector: the second head of the bundled model. A bare ModernBERT has unit rows, or their mean so.
    A joint model is saved as late interaction, which is its first head.
    Raises: ModelError for what cannot be a joint model.
    """
    settings = model.settings
    if kind == "joint":
        _expect_joint(model)
    if settings.kind == kind or kind == "joint":
        return model
    if kind == "colbert":
        sides = [replace(side, normalize=True) for side in (settings.queries, settings.documents)]
        return replace(model, settings=Settings(queries=sides[0], documents=sides[1]))
    plain = [Side(side.marker, side.prompt, side.length) for side in (settings.queries, settings.documents)]
    return replace(model, projection=(), settings=Settings(queries=plain[0], documents=plain[1], pooling="mean"))


def _expect_joint(model: Saved[Weight]) -> None:
    """Refuse what has no trained head of token vectors, or a query whose mean would be that of its filling."""
    if model.settings.kind == "dense":
        lacks = "gives one vector a text, and has no head for its tokens"
    elif not model.projection:
        lacks = "is a backbone without a head"
    elif model.settings.expansion is not None:
        lacks = "fills queries with tokens that say nothing, which the mean of a query would be made of"
    else:
        return
    where = "the model" if model.folder is None else str(model.folder)
    raise ModelError(
        f'{where} {lacks}, so it is no joint model: take it as colbert or dense, or train one with model.kind = "joint"'
    )


def _writer(model: Checkpoint, name: str | None) -> tuple[str, Writer]:
    """Return the layout to write, and what writes it."""
    kind = model.settings.kind
    writers = {
        layout.name: (layout.write, layout.obstacles)
        for layout in LAYOUTS
        if layout.kind == kind and layout.write is not None and layout.obstacles is not None
    }
    if name is not None and name not in writers:
        raise ModelError(f"layout is {name!r}, expected one that has {kind} models: {', '.join(writers)}")
    reasons = {}
    for candidate in writers if name is None else (name,):
        write, obstacles = writers[candidate]
        reasons[candidate] = "; ".join(obstacles(model))
        if not reasons[candidate]:
            return candidate, write
    words = ". ".join(f"layout {layout} cannot express {reason}" for layout, reason in reasons.items())
    raise ModelError(f"{words}: {'no layout can' if name is None else 'leave layout out, or name another'}")


def _move_in(draft: Path, folder: Path) -> None:
    for source in sorted(path for path in draft.rglob("*") if path.is_file()):
        target = folder / source.relative_to(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
