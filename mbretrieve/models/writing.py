"""The layouts of model folders, written: each function takes a ``Checkpoint`` to an empty folder.

``..._obstacles`` name what a layout cannot say of a model of its kind; what they do not name comes back when read.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbretrieve.models.files import write_json
from mbretrieve.models.module_list import BERT_CONFIG, MODULES
from mbretrieve.models.reading import METADATA, PUNCTUATION, ST_CONFIG, STANFORD_ARCHITECTURE
from mbretrieve.models.settings import Checkpoint, DenseLayer, Settings, Side
from mbretrieve.models.weights import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

# The oldest names, which every version of sentence-transformers resolves.
_TRANSFORMER = "sentence_transformers.models.Transformer"
_DENSE = "sentence_transformers.models.Dense"
_POOLING = "sentence_transformers.models.Pooling"
_NORMALIZE = "sentence_transformers.models.Normalize"
# Multi-vector models came with sentence-transformers 6, and with these names.
_MASK = "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"
_TOKEN_NORMALIZE = "sentence_transformers.base.modules.normalize.Normalize"  # noqa: S105
_ROUTER = "sentence_transformers.base.modules.router.Router"
_PYLATE_DENSE = "pylate.models.Dense.Dense"

_TOKENS = "token_embeddings"
_OWN_LENGTH = "rows that keep their own length"


def pylate_obstacles(model: Checkpoint) -> Iterable[str]:
    """Say what PyLate's layout cannot: text prompts, rows that keep their length, other fillings than the mask."""
    queries, documents, expansion = model.settings.queries, model.settings.documents, model.settings.expansion
    if not model.projection:
        yield "the lack of a projection"
    if queries.prompt or documents.prompt:
        yield "a text prompt"
    if not (queries.normalize and documents.normalize):
        yield _OWN_LENGTH
    if queries.skip or documents.keep_only:
        yield "a query skiplist or a list of tokens to keep"
    if expansion is not None and (expansion.minimum or expansion.token is not None):
        yield "query expansion to a minimum, or with another token than the mask"


def beyond_pylate(model: Checkpoint) -> str | None:
    """Say why PyLate cannot load a late-interaction model, and the setting of a recipe by which it could; None: it can.

    All that cannot be saved for PyLate is saved for sentence-transformers.
    """
    reasons = list(pylate_obstacles(model))
    if not reasons:
        return None
    told = f"PyLate cannot load it, having no words for {'; '.join(reasons)}"
    by_setting = reasons == [_OWN_LENGTH] and model.settings.documents.normalize
    return f"{told}: trained with model.normalize_queries = true it could be" if by_setting else told


def write_pylate(model: Checkpoint, folder: Path) -> None:
    """PyLate's layout, which sentence-transformers 6 reads too."""
    settings = model.settings
    document_length = settings.documents.length or model.limit
    _write_backbone(model, folder)
    # PyLate sets the length for each call, less one for the marker.
    write_json(folder / BERT_CONFIG, {"max_seq_length": document_length - 1, "do_lower_case": False})
    modules = [("", _TRANSFORMER), *((_write_dense(layer, folder, n), _PYLATE_DENSE) for n, layer in _numbered(model))]
    _write_modules(folder, modules)
    config: dict[str, Any] = {
        "model_type": "ColBERT",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": settings.queries.marker,
        "document_prefix": settings.documents.marker,
        "query_length": settings.queries.length or model.limit,
        "document_length": document_length,
        "do_query_expansion": settings.expansion is not None,
        "attend_to_expansion_tokens": settings.expansion is not None and settings.expansion.attended,
        "skiplist_words": list(settings.documents.skip),
    }
    write_json(folder / ST_CONFIG, config)


def multi_vector_obstacles(model: Checkpoint) -> Iterable[str]:
    """Say what a MultiVectorEncoder's layout cannot: unlike skiplists on the two sides."""
    queries, documents = model.settings.queries, model.settings.documents
    if queries.skip and documents.skip and set(queries.skip) != set(documents.skip):
        yield "unlike skiplists for queries and documents"


def write_multi_vector(model: Checkpoint, folder: Path) -> None:
    """sentence-transformers 6's multi-vector layout; a Router where only one side has rows of unit length."""
    settings = model.settings
    queries, documents = settings.queries, settings.documents
    _write_backbone(model, folder)
    config: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": _TOKENS,
        "document_length": documents.length or model.limit,
    }
    if (expansion := settings.expansion) is not None:
        config["query_expansion"] = {
            "strategy": "min" if expansion.minimum else "fixed",
            "attend": expansion.attended,
            "token": expansion.token,
            "length": expansion.length,
        }
    if expansion is None or expansion.minimum:
        config["query_length"] = queries.length or model.limit
    write_json(folder / BERT_CONFIG, config)
    modules = [("", _TRANSFORMER)]
    stream = {"module_input_name": _TOKENS, "module_output_name": _TOKENS}
    for number, layer in _numbered(model):
        modules.append((_write_dense(layer, folder, number, **stream), _DENSE))
    mask = {
        "skiplist_words": list(documents.skip or queries.skip),
        "skiplist_tasks": [task for task, side in (("query", queries), ("document", documents)) if side.skip],
        "keep_only_token_ids": list(documents.keep_only) or None,
    }
    modules.append((_write_config(folder, f"{len(modules)}_MultiVectorMask", mask), _MASK))
    if queries.normalize and documents.normalize:
        modules.append((_write_config(folder, f"{len(modules)}_Normalize", stream), _TOKEN_NORMALIZE))
    elif queries.normalize or documents.normalize:
        modules.append((_write_router(folder, f"{len(modules)}_Router", queries, mask, stream), _ROUTER))
    _write_modules(folder, modules)
    write_json(folder / ST_CONFIG, _st_config("MultiVectorEncoder", settings, None))


def dense_obstacles(model: Checkpoint) -> Iterable[str]:
    """Say what a SentenceTransformer's layout cannot: sides that differ in length's scaling."""
    if model.settings.queries.normalize != model.settings.documents.normalize:
        yield "unit length on one side only"


def write_dense(model: Checkpoint, folder: Path) -> None:
    """sentence-transformers' layout of models with one vector a text."""
    settings = model.settings
    queries, documents = settings.queries, settings.documents
    _write_backbone(model, folder)
    config: dict[str, Any] = {"max_seq_length": documents.length or model.limit, "do_lower_case": False}
    if queries.length != documents.length:  # which sentence-transformers reads from version 6 on
        config |= {"query_length": queries.length or model.limit, "document_length": documents.length or model.limit}
    write_json(folder / BERT_CONFIG, config)
    width = model.config.hidden_size
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": settings.pooling == "cls",
        "pooling_mode_mean_tokens": settings.pooling == "mean",
        "include_prompt": settings.include_prompt,
    }
    modules = [("", _TRANSFORMER), (_write_config(folder, "1_Pooling", pooling), _POOLING)]
    for number, layer in _numbered(model, start=2):
        modules.append((_write_dense(layer, folder, number), _DENSE))
    if documents.normalize:
        modules.append((_write_config(folder, f"{len(modules)}_Normalize", {}), _NORMALIZE))
    _write_modules(folder, modules)
    write_json(folder / ST_CONFIG, _st_config("SentenceTransformer", settings, "cosine"))


def stanford_obstacles(model: Checkpoint) -> Iterable[str]:
    """Say what Stanford's layout cannot: all but one plain projection, markers, punctuation and a fixed expansion."""
    settings, layers = model.settings, model.projection
    plain = len(layers) == 1 and layers[0].bias is None and not layers[0].use_residual
    if not plain or not layers[0].activation.endswith(".Identity"):
        yield "a projection other than one matrix"
    if any(not side.marker or side.prompt != " " for side in (settings.queries, settings.documents)):
        yield "text that does not start with a marker and a space"
    if not (settings.queries.normalize and settings.documents.normalize):
        yield _OWN_LENGTH
    if settings.queries.skip or settings.documents.keep_only or settings.documents.skip not in ((), PUNCTUATION):
        yield "a skiplist other than the punctuation of documents"
    if settings.expansion is None or settings.expansion.minimum or settings.expansion.token is not None:
        yield "queries that are not filled to a fixed length with the mask"


def write_stanford(model: Checkpoint, folder: Path) -> None:
    """Stanford ColBERT's layout: the projection among the backbone's weights, settings in artifact.metadata."""
    settings = model.settings
    _write_backbone(
        model, folder, [STANFORD_ARCHITECTURE], prefix="model.", more={"linear.weight": model.projection[0].weight}
    )
    metadata = {
        "query_token_id": settings.queries.marker,
        "doc_token_id": settings.documents.marker,
        "query_maxlen": settings.queries.length,
        "doc_maxlen": settings.documents.length or model.limit,
        "dim": model.projection[0].weight.shape[0],
        "similarity": "cosine",
        "mask_punctuation": bool(settings.documents.skip),
        "attend_to_mask_tokens": settings.expansion is not None and settings.expansion.attended,
    }
    write_json(folder / METADATA, metadata)


Writer = Callable[[Checkpoint, Path], None]
Obstacles = Callable[[Checkpoint], Iterable[str]]


def _write_backbone(
    model: Checkpoint,
    folder: Path,
    architectures: list[str] | None = None,
    prefix: str = "",
    more: "dict[str, Tensor] | None" = None,
) -> None:
    dtype = str(next(iter(model.backbone.values())).dtype).removeprefix("torch.")
    own = {"architectures": architectures or ["ModernBertModel"], "dtype": dtype, "torch_dtype": dtype}
    write_json(folder / "config.json", {**model.config.to_dict(), **own})
    write_tensors({**{prefix + name: tensor for name, tensor in model.backbone.items()}, **(more or {})}, folder)
    sides = (model.settings.queries, model.settings.documents)
    model.tokenizer.save(folder, [side.marker for side in sides if side.marker])


def _numbered(model: Checkpoint, start: int = 1) -> Iterable[tuple[int, DenseLayer]]:
    return enumerate(model.projection, start)


def _write_dense(layer: DenseLayer, folder: Path, number: int, **more: Any) -> str:
    """Write a Dense module; ``more`` only what its class takes in every version that has the layout."""
    out_features, in_features = layer.weight.shape
    config: dict[str, Any] = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": layer.bias is not None,
        "activation_function": layer.activation,
        **more,
    }
    if layer.use_residual:
        config["use_residual"] = True
    name = _write_config(folder, f"{number}_Dense", config)
    tensors = {"linear.weight": layer.weight, "linear.bias": layer.bias, "residual.weight": layer.residual}
    write_tensors({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / name)
    return name


def _write_router(folder: Path, name: str, queries: Side, mask: dict[str, Any], normalize: dict[str, str]) -> str:
    """A Router has no empty route: the side that is not normalised passes the mask once more, which changes nothing."""
    kinds = {True: ("Normalize", _TOKEN_NORMALIZE, normalize), False: ("MultiVectorMask", _MASK, mask)}
    types, structure = {}, {}
    for task, normalized in (("query", queries.normalize), ("document", not queries.normalize)):
        kind, type_name, config = kinds[normalized]
        part = f"{task}_0_{kind}"
        types[part], structure[task] = type_name, [part]
        _write_config(folder / name, part, config)
    parameters = {"default_route": "document", "allow_empty_key": True, "route_mappings": {}}
    write_json(folder / name / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    return name


def _write_config(folder: Path, name: str, config: dict[str, Any]) -> str:
    write_json(folder / name / "config.json", config)
    return name


def _write_modules(folder: Path, modules: Iterable[tuple[str, str]]) -> None:
    entries = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)]
    write_json(folder / MODULES, entries)


def _st_config(model_type: str, settings: Settings, similarity: str | None) -> dict[str, Any]:
    prompts = {"query": settings.queries, "document": settings.documents}
    return {
        "model_type": model_type,
        "prompts": {task: side.marker + side.prompt for task, side in prompts.items()},
        "default_prompt_name": None,
        "similarity_fn_name": similarity,
    }
