"""Small random models in every layout on disk, made as the libraries that own the layouts make them."""

import json
import string
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HIDDEN, POSITIONS = 32, 256
CORPUS = [
    "def parse_arguments(argv): return argparse.ArgumentParser().parse_args(argv)",
    "How do I read a file, line by line? Open it; then iterate over the lines.",
    "Paris is the capital of France, and Berlin is the capital of Germany!",
    "The quick brown fox jumps over the lazy dog. 0123456789 (a+b)*c - d/e",
]
TEXTS = [
    "How do I read a file?",
    "",
    "def parseArgs(argv):\n    return [x, y] # it's done... really!",
    "  leading and trailing  ",
    "Ünïcôdé 中文字 \x00 عربي 🙂 e\u0301",
    "[MASK] and [Q] inside the text [D] .",
    "Paris is the capital of France, and Berlin is the capital of Germany! " * 12,
    "word " * 400,
    "!!! ... ???",
]
# Names of the special tokens, by family; RoBERTa's order of pad and mask differs from BERT's on purpose.
BERT = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


@cache
def trained(family: str, markers: Sequence[str]) -> str:
    """Train a tokenizer, once, since the trainers break ties as they please: its tokenizer.json."""
    names = ROBERTA if family == "roberta" else BERT
    special = list(names.values())
    if family == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token=names["unk"], max_input_chars_per_word=40))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        alphabet = list(string.ascii_lowercase + string.digits + string.punctuation)
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.BPE(unk_token=names["unk"]))
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS * 3, trainer)
    made.add_special_tokens([AddedToken(names["mask"], lstrip=family == "roberta", special=True)])
    made.add_tokens([AddedToken(marker) for marker in markers])
    cls, sep = names["cls"], names["sep"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(token, made.token_to_id(token)) for token in (cls, sep)]
    )
    return str(made.to_str())


def tokenizer(folder: Path, family: str = "bpe", markers: Sequence[str] = ("[Q] ", "[D] ")) -> int:
    """Write a tokenizer: ``bpe`` (ModernBERT's kind), ``wordpiece`` (BERT's, lower case) or ``roberta``'s names."""
    made = trained(family, tuple(markers))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(made, "utf-8")
    names = ROBERTA if family == "roberta" else BERT
    roles = {f"{role}_token": token for role, token in names.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30, **roles}
    if family == "roberta":  # roles as AddedTokens, and in the older file
        mask = {"content": names["mask"], "lstrip": True, "rstrip": False, "normalized": True, "single_word": False}
        del config["mask_token"]
        write(folder / "special_tokens_map.json", {**roles, "mask_token": mask})
    write(folder / "tokenizer_config.json", config)
    return Tokenizer.from_str(made).get_vocab_size()


def bare(folder: Path, family: str = "bpe", seed: int = 0, **config: Any) -> Path:
    """Write a ModernBERT alone, with weights large enough for attention to matter."""
    from transformers import ModernBertConfig, ModernBertModel

    size = tokenizer(folder, family)
    torch.manual_seed(seed)
    made = {
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "local_attention": 16,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
        "vocab_size": size + 3,
    }
    model = ModernBertModel(ModernBertConfig(**{**made, **config}))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def sentence_transformer(folder: Path, modules: Sequence[torch.nn.Module], **arguments: Any) -> Path:
    """Save a dense model with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(modules), device="cpu", **arguments).save_pretrained(str(folder))
    return folder


def multi_vector(folder: Path, modules: Sequence[torch.nn.Module], **arguments: Any) -> Path:
    """Save a late-interaction model with sentence-transformers."""
    from sentence_transformers import MultiVectorEncoder

    MultiVectorEncoder(modules=list(modules), device="cpu", **arguments).save_pretrained(str(folder))
    return folder


def layer(in_features: int, out_features: int, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Describe a Dense layer of PyLate: its config, and random weights under ``weights``."""
    drawn = np.random.default_rng(seed)
    config = {"in_features": in_features, "out_features": out_features, "bias": False, **options}
    config.setdefault("activation_function", "torch.nn.modules.linear.Identity")
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out_features, in_features)}
    if config["bias"]:
        shapes["linear.bias"] = (out_features,)
    if config.get("use_residual") and in_features != out_features:
        shapes["residual.weight"] = (out_features, in_features)
    weights = {name: torch.from_numpy(drawn.normal(size=shape).astype("float32")) for name, shape in shapes.items()}
    return {"config": config, "weights": weights}


def pylate(
    folder: Path, layers: Sequence[Mapping[str, Any]] | None = None, family: str = "bpe", **settings: Any
) -> Path:
    """Write the files that PyLate 1.6 saves."""
    bare(folder, family)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, made in enumerate(layers or [layer(HIDDEN, 16)], 1):
        path = f"{number}_Dense"
        write(folder / path / "config.json", made["config"])
        save_file(made["weights"], folder / path / "model.safetensors")
        modules.append({"idx": number, "name": str(number), "path": path, "type": "pylate.models.Dense.Dense"})
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 63, "do_lower_case": False})
    config = {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.3.0", "transformers": "5.3.0", "pytorch": "2.11.0"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 64,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": True,
    }
    saved = {key: value for key, value in {**config, **settings}.items() if value != "absent"}
    write(folder / "config_sentence_transformers.json", saved)
    return folder


def stanford(folder: Path, prefix: str = "model.", family: str = "wordpiece", **metadata: Any) -> Path:
    """Write the files of a Stanford ColBERT, its markers two tokens of the vocabulary."""
    bare(folder, family)
    tokenizer(folder, family, markers=("[unused0]", "[unused1]"))
    tensors = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors |= layer(HIDDEN, 16)["weights"]
    tensors["linear.weight"] = tensors.pop("linear.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", architectures=["HF_ColBERT"])
    known = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 16,
        "doc_maxlen": 64,
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
        "dim": 16,
        "similarity": "cosine",
    }
    write(folder / "artifact.metadata", {**known, **metadata})
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), "utf-8")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text("utf-8")), **changes}
    write(path, {key: item for key, item in value.items() if item is not None})


def assert_same_rows(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float = 1e-4) -> None:
    """The same number of rows for each text, and the same numbers in them."""
    assert [rows.shape for rows in ours] == [rows.shape for rows in theirs]
    worst = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(ours, theirs, strict=True))
    assert worst <= tolerance
