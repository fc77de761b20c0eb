"""Encode documents with sentence-transformers and with mbretrieve, in one run: tokens a second, and the ratios.

``python eval/bench/encode_peers.py [--work mixed|long|all] [--layers 22] [--repeats 5] [--json OUT]``

The model has ModernBERT-base's shapes and random weights; its vocabulary is small, which saves time where nothing is
measured (an embedding is a look-up). It is saved once, in sentence-transformers' multi-vector layout, and both engines
load that folder: sentence-transformers' MultiVectorEncoder as a user gets it (float32) and in bfloat16, mbretrieve's
ColBERT in bfloat16. The engines take turns, so that a disturbance of the machine meets all of them, and each one's
median counts. Before it times them, it holds their vectors against each other.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import provenance, write
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mbretrieve.models.colbert import ColBERT

os.environ["HF_HUB_OFFLINE"] = "1"

POSITIONS, WIDTH = 8192, 128
ROLES = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
WORDS = [f"w{number}" for number in range(2000)]
# Document lengths in tokens, the two special ones counted; ``share`` is what the issue asks of mbretrieve.
WORKS: dict[str, dict[str, Any]] = {
    "mixed": {
        "lengths": np.random.default_rng(0).integers(16, 513, 128).tolist(),
        "wanted": {"fp32": 4.0, "bf16": 1.9},
    },
    "long": {"lengths": [POSITIONS] * 2, "wanted": {"fp32": 3.0, "bf16": 2.3}},
}
Encode = Callable[[Sequence[str]], list[np.ndarray]]


def save_model(folder: Path, layers: int) -> None:
    """Write the model and its tokenizer, of which every word is one token, as sentence-transformers writes them."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from transformers import ModernBertConfig, ModernBertModel

    tokens = [*ROLES.values(), *WORDS]
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, tokens.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    bare = folder / "bare"
    bare.mkdir(parents=True)
    tokenizer.save(str(bare / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, **ROLES}
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    ids = {f"{role}_token_id": tokens.index(ROLES[f"{role}_token"]) for role in ("pad", "cls", "sep")}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    config = ModernBertConfig(vocab_size=len(tokens), num_hidden_layers=layers, **ids)
    ModernBertModel(config).save_pretrained(bare)
    names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    dense = Dense(config.hidden_size, WIDTH, bias=False, activation_function=torch.nn.Identity(), **names)
    transformer = Transformer(str(bare), max_seq_length=POSITIONS)
    modules = [transformer, dense, Normalize(**names)]
    MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "model"))


def engines(folder: Path) -> dict[str, Encode]:
    """Load the folder into each engine."""
    from sentence_transformers import MultiVectorEncoder

    shipped = MultiVectorEncoder(str(folder), device="cpu")
    half = MultiVectorEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16}).to(torch.bfloat16)
    ours = ColBERT.from_pretrained(folder, device="cpu", dtype="bf16", document_length=POSITIONS)

    def peer(model: Any) -> Encode:
        def encode(texts: Sequence[str]) -> list[np.ndarray]:
            rows = model.encode_document(list(texts), convert_to_numpy=False, show_progress_bar=False)
            return [row.float().cpu().numpy() for row in rows]

        return encode

    return {
        "sentence-transformers fp32": peer(shipped),
        "sentence-transformers bf16": peer(half),
        "mbretrieve bf16": ours.encode_documents,
    }


def documents(lengths: Sequence[int]) -> list[str]:
    """Make texts of so many tokens, the two special ones counted."""
    random = np.random.default_rng(1)
    return [" ".join(random.choice(WORDS, length - 2)) for length in lengths]


def agreement(encoders: dict[str, Encode]) -> float:
    """Return the least cosine, over tokens, between our vectors and the float32 ones."""
    texts = documents([16, 100, 300])
    pairs = zip(encoders["mbretrieve bf16"](texts), encoders["sentence-transformers fp32"](texts), strict=True)
    cosines = []
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise SystemExit(f"the engines disagree on the tokens: {ours.shape} and {theirs.shape}")
        cosines.append(float((ours * theirs).sum(axis=1).min()))
    return min(cosines)


def measure(encoders: dict[str, Encode], work: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Time one work: the engines in turn, ``repeats`` times."""
    texts, tokens = documents(work["lengths"]), sum(work["lengths"])
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(repeats):
        for name, encode in encoders.items():
            start = time.perf_counter()
            rows = encode(texts)
            seconds[name].append(time.perf_counter() - start)
            if sum(map(len, rows)) != tokens:
                raise SystemExit(f"{name} gave {sum(map(len, rows))} vectors, expected {tokens}")
    speed = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    ratios = {kind: speed["mbretrieve bf16"] / speed[f"sentence-transformers {kind}"] for kind in work["wanted"]}
    return {
        "documents": len(texts),
        "tokens": tokens,
        "seconds": {name: [round(value, 2) for value in times] for name, times in seconds.items()},
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "times_faster": {kind: round(value, 2) for kind, value in ratios.items()},
        "wanted": work["wanted"],
    }


def main() -> None:
    """Measure, print a table and one JSON object, and write that where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=[*WORKS, "all"], default="all")
    parser.add_argument("--layers", type=int, default=22, help="fewer for a quick look")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        save_model(Path(place), arguments.layers)
        encoders = engines(Path(place) / "model")
        result: dict[str, Any] = {
            **provenance("torch", "transformers", "sentence-transformers"),
            "model": f"ModernBERT-base shapes, {arguments.layers} layers, random weights, {len(WORDS)} words",
            "threads": torch.get_num_threads(),
            "least_cosine_to_fp32": round(agreement(encoders), 5),
            "works": {},
        }
        for name in WORKS if arguments.work == "all" else [arguments.work]:
            result["works"][name] = found = measure(encoders, WORKS[name], arguments.repeats)
            for engine, speed in found["tokens_per_second"].items():
                print(f"{name:6} {engine:28} {speed:6} tokens/s")
            for kind, ratio in found["times_faster"].items():
                print(f"{name:6} mbretrieve bf16 / {kind:10} {ratio:6.2f} times, wanted {found['wanted'][kind]}")
    write(result, arguments.json)


if __name__ == "__main__":
    main()
