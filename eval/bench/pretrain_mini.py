"""A small backbone's pre-training, run for real: texts for it, and what each of its phases has learned.

``python eval/bench/pretrain_mini.py texts PAIRS --output FOLDER [--characters 60_000_000]``
``mbretrieve pretrain examples/recipes/pretrain-mini.toml --output RUN text.0.path=FOLDER/texts.jsonl.gz [...]``
``python eval/bench/pretrain_mini.py measure RUN --held-out FOLDER/held-out.jsonl.gz --output RESULTS``

texts: PAIRS holds code_*.jsonl.gz and technical_prose.jsonl.gz; the functions and sections of one package, those of one
file next to each other, are joined to documents of up to 40,000 characters, so that there is something to learn at
8,192 tokens. One package in fifty is held out whole.

measure: at the end of each phase, masked as in training, on tokens that no phase has seen: the mean cross-entropy of
what is to be guessed and the share guessed right. The same 8,192 tokens of a document, with the same masks, are read in
eight pieces of 1,024 and in one. For the first phase also with the RoPE base of the last, untrained. The same loss by
transformers' ModernBertForMaskedLM, in float32, is beside it. RESULTS gets the record, the log and the curves.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import provenance, write

DOCUMENT = 40_000  # characters
HELD_OUT = 50  # one package in so many
SHORT, LONG = 1024, 8192
COMPARED = 1  # documents of 8,192 tokens that transformers reads, too


# Texts


def documents(pairs: Path) -> Iterator[tuple[str, str]]:
    """Yield (package, document): the positives of a package end to end, a file's next to each other."""
    for path in [*sorted(pairs.glob("code_*.jsonl.gz")), pairs / "technical_prose.jsonl.gz"]:
        packages: dict[str, list[tuple[str, str]]] = defaultdict(list)
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                packages[row["package"]].append((row.get("path", ""), row["positive"]))
        for package, rows in packages.items():
            rows.sort(key=lambda row: row[0])  # prose has no path, and stays in its order
            document: list[str] = []
            size = 0
            for _, text in rows:
                document.append(text)
                size += len(text)
                if size >= DOCUMENT:
                    yield package, "\n\n".join(document)
                    document, size = [], 0
            if document:
                yield package, "\n\n".join(document)


def write_texts(arguments: argparse.Namespace) -> None:
    every = list(documents(arguments.pairs))
    random.Random(0).shuffle(every)
    arguments.output.mkdir(parents=True, exist_ok=True)
    sizes = {"texts": 0, "held-out": 0}
    for name in sizes:
        with gzip.open(arguments.output / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for package, text in every:
                held_out = zlib.crc32(package.encode()) % HELD_OUT == 0
                if held_out == (name == "held-out") and sizes[name] < arguments.characters:
                    sizes[name] += len(text)
                    file.write(json.dumps({"text": text}) + "\n")
    print(json.dumps({"characters": sizes}))


# Measuring


def masked(held_out: Path, folder: Path, count: int) -> list[Any]:
    """The first 8,192 tokens of the first so many held-out documents that are as long, and masks for them."""
    import numpy as np

    from mbretrieve.models.tokenizer import ROLES, Tokenizer
    from mbretrieve.training.masking import mask_tokens

    tokenizer = Tokenizer.load(folder)
    special = {*tokenizer.prefix, *tokenizer.suffix, *(tokenizer.role_id(role) for role in ROLES)}
    ordinary = np.array([token for token in range(tokenizer.size) if token not in special])
    mask = tokenizer.role_id("mask_token")
    assert mask is not None
    room = LONG - (LONG // SHORT) * (len(tokenizer.prefix) + len(tokenizer.suffix))  # both readings see the same tokens
    found = []
    with gzip.open(held_out, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if len(found) == count:
                break
            [content] = tokenizer.first_tokens([json.loads(line)["text"]], room)
            if len(content.ids) == room:
                ids = np.asarray(content.ids)
                inputs, chosen = mask_tokens(ids, ordinary, mask, np.random.default_rng([7, number]))
                found.append((tokenizer, ids, inputs, chosen))
    return found


def measured(model: Any, documents: list[Any], length: int) -> dict[str, float]:
    """Read each document in sequences of a length, and guess."""
    import numpy as np
    import torch

    loss, right, count = 0.0, 0, 0
    for tokenizer, ids, inputs, chosen in documents:
        own = length - len(tokenizer.prefix) - len(tokenizer.suffix)
        for start in range(0, len(ids), own):
            part = slice(start, start + own)
            sequence = np.concatenate([tokenizer.prefix, inputs[part], tokenizer.suffix]).astype(np.int64)
            places = torch.from_numpy(np.flatnonzero(chosen[part]) + len(tokenizer.prefix))
            labels = torch.from_numpy(ids[part][chosen[part]].astype(np.int64))
            with torch.no_grad():
                logits = model(torch.from_numpy(sequence), places).float()
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(dim=1) == labels).sum())
            count += len(labels)
    return {"loss": round(loss / count, 4), "accuracy": round(right / count, 4), "guessed": count}


def ours(folder: Path, theta: float | None = None) -> Any:
    from dataclasses import replace

    import torch

    from mbretrieve.training.masked_lm import MaskedLanguageModel
    from mbretrieve.training.pretrain_start import open_model

    _, config, state = open_model(folder)
    config = replace(config, max_position_embeddings=LONG, global_rope_theta=theta or config.global_rope_theta)
    model = MaskedLanguageModel(config, state).eval()

    def guess(sequence: Any, places: Any) -> Any:
        hidden = model.head(model.model(sequence, [len(sequence)])[places])
        return torch.nn.functional.linear(hidden, model.embeddings, model.decoder.bias)

    return guess


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(folder, dtype="float32", attn_implementation="sdpa").eval()
    return lambda sequence, places: model(sequence[None]).logits[0][places]


def measure(arguments: argparse.Namespace) -> None:
    from mbretrieve.training.pretrain_config import PretrainConfig

    config = PretrainConfig.load(arguments.run / "recipe.toml")
    documents = masked(arguments.held_out, arguments.run, arguments.documents)
    ends, step = {}, 0
    for phase in config.phase:
        step += phase.total_steps
        ends[phase.name] = arguments.run / "checkpoints" / f"step-{step:08d}"
    phases = {
        name: {f"at {length}": measured(ours(folder), documents, length) for length in (SHORT, LONG)}
        for name, folder in ends.items()
    }
    raised = config.phase[1].global_rope_theta
    assert raised is not None
    first = next(iter(ends.values()))
    untrained = {f"at {length}": measured(ours(first, raised), documents, length) for length in (SHORT, LONG)}
    last = list(ends.values())[-1]
    compared = {
        f"at {length}": {
            "mbretrieve": measured(ours(last), documents[:COMPARED], length),
            "transformers": measured(theirs(last), documents[:COMPARED], length),
        }
        for length in (SHORT, LONG)
    }
    log = [json.loads(line) for line in (arguments.run / "log.jsonl").read_text("utf-8").splitlines()]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in ("log.jsonl", "curves.json", "curves.png", "recipe.toml"):
        shutil.copy(arguments.run / name, arguments.output / name)
    record = {
        **provenance("torch", "transformers", "accelerate", "tokenizers"),
        "pretrained_with": arguments.pretrained_with,
        "tokens": log[-1]["tokens"],
        "tokens_by_phase": tokens_by_phase(log),
        "training_loss": {name: round(mean_loss(log, name), 4) for name in ends},
        "held_out_documents": len(documents),
        "phases": phases,
        f"first phase, RoPE base {raised:,.0f}, untrained": untrained,
        f"last phase, {COMPARED} documents, by transformers": compared,
    }
    write(record, arguments.output / "pretrain-mini.json")


def tokens_by_phase(log: list[dict[str, Any]]) -> dict[str, int]:
    ends = {line["phase"]: line["tokens"] for line in log}
    before = [0, *ends.values()]
    return {name: tokens - earlier for (name, tokens), earlier in zip(ends.items(), before, strict=False)}


def mean_loss(log: list[dict[str, Any]], phase: str) -> float:
    """The mean of a phase's last five logged losses."""
    losses = [line["loss"] for line in log if line["phase"] == phase][-5:]
    return float(sum(losses) / len(losses))


def main() -> None:
    """Make the texts, or measure a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    texts = commands.add_parser("texts")
    texts.add_argument("pairs", type=Path)
    texts.add_argument("--output", type=Path, required=True)
    texts.add_argument("--characters", type=int, default=60_000_000, help="Of the texts, at most.")
    texts.set_defaults(run_part=write_texts)
    run = commands.add_parser("measure")
    run.add_argument("run", type=Path)
    run.add_argument("--held-out", type=Path, required=True)
    run.add_argument("--output", type=Path, required=True)
    run.add_argument("--documents", type=int, default=24, help="Of 8,192 tokens, to measure on.")
    run.add_argument("--pretrained-with", default="", help="The command of the run, for the record.")
    run.set_defaults(run_part=measure)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.run_part(arguments)


if __name__ == "__main__":
    main()
