"""Small runs: a few pairs, a small random model, recipes over them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mbretrieve.training.config import TrainConfig

WORDS = ("search", "index", "token", "query", "vector", "merge", "sort", "file", "cache", "thread", "parse", "graph")

TEXTS = ["merge two lists", "open a socket", "parse the tree of a file", "hash, then sort", "a graph", "cache it"]


def pairs(folder: Path, count: int = 48, **columns: Any) -> Path:
    """Write pairs of unlike lengths; ``negatives`` and ``scores`` where asked for."""
    rows = []
    for number in range(count):
        words = [WORDS[(number * step + step * step) % len(WORDS)] for step in range(1, 2 + number % 9)]
        row: dict[str, Any] = {
            "query": f"{' '.join(words[:3])} {number}",
            "positive": f"{' '.join(words * (1 + number % 4))} {number}",
        }
        if columns.get("negatives"):
            row["negatives"] = [f"{WORDS[(number + n) % len(WORDS)]} is not {number}" for n in range(3)]
            row["scores"] = [9.0 - number % 3, 3.0, 2.0 + number % 2, 0.5]
        rows.append(row)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def recipe(start: Path, pairs: Path, **tables: Any) -> TrainConfig:
    """A recipe for a few steps in float32; ``tables`` over it."""
    made: dict[str, Any] = {
        "model": {"start": str(start), "dtype": "float32", "kind": "colbert"},
        "data": [{"path": str(pairs)}],
        "loss": {"temperature": 0.5},
        "optimizer": {"lr": 1e-3},
        "run": {"steps": 4, "batch_size": 8, "token_budget": 100_000, "log_every": 1},
    }
    for name, table in tables.items():
        made[name] = table if name == "data" else {**made.get(name, {}), **table}
    return TrainConfig.from_dict(made)


def losses(output: Path) -> list[float]:
    """Return the losses that a run has logged."""
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text("utf-8").splitlines()]


def torchrun(*arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a program as ``torchrun`` does, which tells it the number of its process and no more."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    told = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**told, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def beir(folder: Path) -> Path:
    """Write a few texts, and a question for each, as a folder in BEIR layout."""
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{n}", "title": "", "text": text}) for n, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    queries = [json.dumps({"_id": f"q{n}", "text": text[3:]}) for n, text in enumerate(TEXTS)]
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    lines = [f"q{n}\td{n}\t1" for n in range(len(TEXTS))]
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines) + "\n")
    return folder
