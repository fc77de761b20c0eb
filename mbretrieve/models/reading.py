"""The layouts of model folders, read: each function takes a folder of its layout, and how to read its
weights, to a ``Saved`` model."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mbretrieve.errors import ModelError
from mbretrieve.models.config import ModernBertConfig
from mbretrieve.models.dense_module import read_layer
from mbretrieve.models.files import read_json
from mbretrieve.models.module_list import (
    BERT_CONFIG,
    MODULES,
    Module,
    expect_names,
    expect_order,
    modules_of,
    normalizes,
    transformer_of,
)
from mbretrieve.models.settings import Expansion, Pooling, Saved, SavedLayer, Settings, Side, Weight
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.models.weights import Read

ST_CONFIG = "config_sentence_transformers.json"
METADATA = "artifact.metadata"
STANFORD_ARCHITECTURE = "HF_ColBERT"
PYLATE_KEYS = ("query_prefix", "document_prefix", "do_query_expansion", "attend_to_expansion_tokens", "skiplist_words")
PUNCTUATION = tuple(string.punctuation)

_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Keys of sentence_bert_config.json with the only values that are honoured.
_ONLY: dict[str, tuple[object, ...]] = {
    "transformer_task": (None, "feature-extraction"),
    "module_output_name": (None, "token_embeddings"),
    "processing_kwargs": (None, {}),
    "config_args": (None, {}),
    "config_kwargs": (None, {}),
    "tokenizer_args": (None, {}),
    "processor_kwargs": (None, {}),
}
# What a Stanford checkpoint's metadata means when a key is not there (its own ColBERTConfig).
_STANFORD = {"query_maxlen": 32, "doc_maxlen": 220, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}


def read_bare(folder: Path, read: Read[Weight]) -> Saved[Weight]:
    """A ModernBERT and nothing else: hidden states as they are, or their mean."""
    return _backbone(folder, folder, Settings(), read)


def read_stanford(folder: Path, read: Read[Weight]) -> Saved[Weight]:
    """Stanford ColBERT: the projection is ``linear.weight`` beside the backbone's weights; settings: artifact.metadata.

    Its queries have a fixed length and its text starts with a space behind the marker, as in its own tokenizers.
    """
    saved = {key: value for key, value in read_json(folder / METADATA).items() if value is not None}
    known = {**_STANFORD, **saved}
    expansion = Expansion(
        length=_positive(known, "query_maxlen", METADATA), attended=bool(known.get("attend_to_mask_tokens", False))
    )
    tensors = {name.removeprefix("bert."): tensor for name, tensor in read(folder).items()}
    projection = tensors.pop("linear.weight", None)
    if projection is None:
        raise ModelError(f"{folder}: a Stanford ColBERT has its projection as linear.weight, which is not there")
    settings = Settings(
        queries=Side(marker=str(known["query_token_id"]), prompt=" ", length=expansion.length),
        documents=Side(
            marker=str(known["doc_token_id"]),
            prompt=" ",
            length=_positive(known, "doc_maxlen", METADATA),
            skip=PUNCTUATION if known.get("mask_punctuation", True) else (),
        ),
        expansion=expansion,
    )
    return _backbone(folder, folder, settings, read, (SavedLayer(projection),), tensors)


def read_pylate(folder: Path, read: Read[Weight]) -> Saved[Weight]:
    """PyLate: a Transformer and Dense modules; settings at the top of config_sentence_transformers.json.

    What is not saved is PyLate's default. Other modules than these two are not used, as PyLate itself drops them.
    """
    saved = read_json(folder / ST_CONFIG)
    modules = modules_of(folder, "query")
    known = {key: value for key, value in saved.items() if value is not None}
    length = _positive({"query_length": 32, **known}, "query_length", ST_CONFIG)
    expands = bool(known.get("do_query_expansion", True))
    attended = bool(known.get("attend_to_expansion_tokens", False))
    prompts = _prompts(saved)
    settings = Settings(
        queries=Side(marker=str(known.get("query_prefix", "[Q] ")), prompt=prompts["query"], length=length),
        documents=Side(
            marker=str(known.get("document_prefix", "[D] ")),
            prompt=prompts["document"],
            length=_positive({"document_length": 180, **known}, "document_length", ST_CONFIG),
            skip=_strings(known.get("skiplist_words", PUNCTUATION), "skiplist_words"),
        ),
        expansion=Expansion(length, attended=attended) if expands else None,
    )
    dense = [module for module in modules if module.kind == "Dense"]
    layers = tuple(
        read_layer(module.folder, module.config, "torch.nn.modules.linear.Identity", read) for module in dense
    )
    return _backbone(folder, transformer_of(modules).folder, settings, read, layers)


def read_multi_vector(folder: Path, read: Read[Weight]) -> Saved[Weight]:
    """sentence-transformers' MultiVectorEncoder: Transformer, Dense, MultiVectorMask, Normalize; perhaps a Router."""
    tasks = {task: modules_of(folder, task) for task in ("query", "document")}
    transformer = transformer_of(tasks["query"])
    config = _transformer_config(transformer)
    dense = {task: [m for m in modules if m.kind == "Dense"] for task, modules in tasks.items()}
    if dense["query"] != dense["document"] or transformer != transformer_of(tasks["document"]):
        raise ModelError(
            f"{folder}: its Router sends queries and documents through different weights, expected the same"
        )
    prompts = _prompts(read_json(folder / ST_CONFIG))
    sides = {task: _multi_vector_side(modules, task, prompts[task]) for task, modules in tasks.items()}
    expansion = _expansion(config.get("query_expansion"))
    query_length = _length(config, "query_length")
    if expansion is not None:
        if query_length is not None or not expansion.minimum:
            query_length = max(query_length or 0, expansion.length) if expansion.minimum else expansion.length
        if not expansion.attended and not any(m.kind == "MultiVectorMask" for m in tasks["query"]):
            expansion = None  # nobody sees the filling, and without that module it gets no rows either
    settings = Settings(
        queries=replace(sides["query"], length=query_length),
        documents=replace(sides["document"], length=_length(config, "document_length")),
        expansion=expansion,
    )
    for module in dense["query"]:
        expect_names(module, "token_embeddings")
    layers = tuple(read_layer(m.folder, m.config, "torch.nn.modules.activation.Tanh", read) for m in dense["query"])
    return _backbone(folder, transformer.folder, settings, read, layers)


def read_dense(folder: Path, read: Read[Weight]) -> Saved[Weight]:
    """sentence-transformers' SentenceTransformer: Transformer, Pooling, then Dense modules and perhaps Normalize."""
    modules = modules_of(folder, "query")
    if modules != modules_of(folder, "document"):
        raise ModelError(
            f"{folder}: its Router sends queries and documents through different modules, expected the same"
        )
    expect_order(folder, modules, ("Transformer", "Pooling", "Dense", "Normalize"))
    transformer = transformer_of(modules)
    config = _transformer_config(transformer)
    pooling = next((m for m in modules if m.kind == "Pooling"), None)
    if pooling is None:
        raise ModelError(
            f"{folder}: {MODULES} has no Pooling module, expected one that takes the cls token or the mean"
        )
    dense = [m for m in modules if m.kind == "Dense"]
    for module in dense:
        expect_names(module, "sentence_embedding", default="sentence_embedding")
    prompts = _prompts(read_json(folder / ST_CONFIG))
    normalize = any(m.kind == "Normalize" and normalizes(m) == "sentence_embedding" for m in modules)
    settings = Settings(
        queries=Side(prompt=prompts["query"], length=_length(config, "query_length"), normalize=normalize),
        documents=Side(prompt=prompts["document"], length=_length(config, "document_length"), normalize=normalize),
        pooling=_pooling(pooling),
        include_prompt=bool(pooling.config.get("include_prompt", True)),
    )
    layers = tuple(read_layer(m.folder, m.config, "torch.nn.modules.activation.Tanh", read) for m in dense)
    return _backbone(folder, transformer.folder, settings, read, layers)


def _backbone(
    folder: Path,
    transformer: Path,
    settings: Settings,
    read: Read[Weight],
    projection: tuple[SavedLayer[Weight], ...] = (),
    tensors: Mapping[str, Weight] | None = None,
) -> Saved[Weight]:
    """Read what every layout has in common, and settle the markers: a token of the tokenizer, or text."""
    config = ModernBertConfig.from_dict(read_json(transformer / "config.json"))
    saved = read_json(transformer / BERT_CONFIG)
    tokenizer = Tokenizer.load(transformer, lower_case=bool(saved.get("do_lower_case", False)))
    if tokenizer.size > config.vocab_size:
        raise ModelError(f"{folder}: the tokenizer has {tokenizer.size} tokens, the model embeds {config.vocab_size}")
    # sentence-transformers lets max_seq_length stand alone, and else takes the lesser of the other two.
    positions = config.max_position_embeddings
    limit = _length(saved, "max_seq_length") or min(tokenizer.model_max_length or positions, positions)
    settled = replace(
        settings,
        queries=_settle_marker(settings.queries, tokenizer),
        documents=_settle_marker(settings.documents, tokenizer),
    )
    state = read(transformer) if tensors is None else tensors
    return Saved(config, state, tokenizer, settled, min(limit, positions), projection)


def _settle_marker(side: Side, tokenizer: Tokenizer) -> Side:
    """A marker that is no token is text; text that always becomes one token is a marker."""
    if side.marker:
        for marker in (side.marker, side.marker.partition(" ")[0]):
            if tokenizer.token_id(marker) is not None:
                rest = side.marker.removeprefix(marker)
                return replace(side, marker=marker, prompt=rest + side.prompt.removeprefix(side.marker))
        return replace(side, marker="", prompt=side.marker + side.prompt.removeprefix(side.marker))
    if tokenizer.as_marker(side.prompt) is not None:
        return replace(side, marker=side.prompt, prompt="")
    return side


def _transformer_config(module: Module) -> Mapping[str, Any]:
    for key, allowed in _ONLY.items():
        if module.config.get(key) not in allowed:
            raise ModelError(
                f"{module.folder / BERT_CONFIG}: {key} is {module.config[key]!r}, expected {allowed[-1]!r}"
            )
    for modality, how in (module.config.get("modality_config") or {}).items():
        if modality == "text" and how != {"method": "forward", "method_output_name": "last_hidden_state"}:
            raise ModelError(
                f"{module.folder / BERT_CONFIG}: text goes through {how}, expected forward's last_hidden_state"
            )
    return module.config


def _multi_vector_side(modules: Sequence[Module], task: str, prompt: str) -> Side:
    folder = modules[0].folder
    expect_order(folder, [m for m in modules if m.kind != "MultiVectorMask"], ("Transformer", "Dense", "Normalize"))
    masks = [m.config for m in modules if m.kind == "MultiVectorMask"]
    skip: dict[str, None] = {}
    keep: set[int] | None = None
    for mask in masks:
        if task in (mask.get("skiplist_tasks") or ["document"]):
            skip |= dict.fromkeys(_strings(mask.get("skiplist_words") or (), "skiplist_words"))
        if task != "query" and (only := mask.get("keep_only_token_ids")):
            keep = set(only) if keep is None else keep & set(only)
    return Side(
        prompt=prompt,
        normalize=any(m.kind == "Normalize" and normalizes(m) == "token_embeddings" for m in modules),
        skip=tuple(skip),
        keep_only=tuple(sorted(keep or ())),
    )


def _pooling(module: Module) -> Pooling:
    mode = module.config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode or ())
    modes = modes or [name for key, name in _LEGACY_POOLING.items() if module.config.get(key)] or ["mean"]
    if modes not in (["cls"], ["mean"]):
        raise ModelError(
            f"{module.folder}: pooling mode {' + '.join(map(str, modes))} is not supported, expected cls or mean"
        )
    return cast(Pooling, modes[0])


def _expansion(saved: Any) -> Expansion | None:
    if saved is None:
        return None
    if not isinstance(saved, Mapping) or saved.get("strategy") not in ("fixed", "min"):
        raise ModelError(
            f"{BERT_CONFIG}: query_expansion is {saved!r}, expected a strategy of fixed or min and a length"
        )
    return Expansion(
        length=_positive(saved, "length", BERT_CONFIG),
        minimum=saved["strategy"] == "min",
        attended=bool(saved.get("attend", False)),
        token=saved.get("token"),
    )


def _prompts(config: Mapping[str, Any]) -> dict[str, str]:
    saved = config.get("prompts") or {}
    return {task: str(saved.get(task) or "") for task in ("query", "document")}


def _strings(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ModelError(f"{key} is {value!r}, expected a list of strings")
    return tuple(value)


def _length(config: Mapping[str, Any], key: str) -> int | None:
    return None if config.get(key) is None else _positive(config, key, BERT_CONFIG)


def _positive(config: Mapping[str, Any], key: str, file: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{file}: {key} is {value!r}, expected a positive whole number")
    return value
