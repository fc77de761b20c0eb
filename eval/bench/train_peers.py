"""Train with sentence-transformers and with mbretrieve, in one run: tokens a second, and the ratio.

``python eval/bench/train_peers.py PAIRS.jsonl.gz [--steps 12] [--batch 64] [--repeats 3] [--json OUT]``
``python eval/bench/train_peers.py PAIRS.jsonl.gz --memory [--json OUT]``
``python eval/bench/train_peers.py PAIRS.jsonl.gz --processes [--json OUT]``

Both start from the bundled model, see the same real pairs ("query" and "positive" a line) in the same batches, and make
the same loss small: InfoNCE over MaxSim with the batch's negatives. sentence-transformers' MultiVectorEncoderTrainer
runs in float32 and with bf16=True, mbretrieve in bfloat16 over float32 weights; the better of the peer's counts. Each
engine is a process of its own, they take turns, and what is counted is real tokens, as our tokenizer counts them, over
the seconds between the end of the second step and that of the last. The first losses must agree.

--memory: the peak of resident memory above model, gradients and optimiser, of GradCache on late interaction with texts
of 180 tokens in batches of 1,024, against batches of 64 in one piece. --processes: two gloo processes of one thread
against one process of two: whether the losses are the same, and tokens a second of both. Each of the three is a run of
its own; in OUT they stand beside each other.
"""

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import provenance, write

QUERY_LENGTH, DOCUMENT_LENGTH = 32, 180
WANTED = {"times_faster": 2.0, "memory": 1.2, "loss": 1e-3}
PEERS = ("sentence-transformers fp32", "sentence-transformers bf16")


def read_pairs(path: Path, count: int) -> list[dict[str, str]]:
    """Take pairs from all over a file, so that they are of mixed length."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    step = max(1, len(rows) // count)
    return [{name: row[name] for name in ("query", "positive")} for row in rows[::step][:count]]


def recipe(data: Path, batch: int, steps: int, budget: int) -> Any:
    from mbretrieve.training.config import TrainConfig

    return TrainConfig.from_dict(
        {
            "model": {"query_length": QUERY_LENGTH, "document_length": DOCUMENT_LENGTH, "kind": "colbert"},
            "data": [{"path": str(data)}],
            "loss": {"temperature": 1.0},
            "optimizer": {"lr": 1e-5, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup": 0},
            "run": {"steps": steps, "batch_size": batch, "token_budget": budget, "log_every": 1, "save_every": 10**9},
        }
    )


def ordered(data: Path, batch: int, steps: int) -> list[tuple[str, str]]:
    """The pairs in the order in which mbretrieve sees them."""
    from mbretrieve.training.data import Batches

    config = recipe(data, batch, steps, 1)
    batches = Batches(config.data, batch, config.run.seed, config.run.length_bucket)
    return [(row.query, row.positive) for _ in range(steps) for row in next(batches)]


# What runs in a process of its own


def ours(data: Path, batch: int, steps: int, budget: int, output: Path) -> dict[str, Any]:
    import torch

    from mbretrieve.training.loop import train

    train(recipe(data, batch, steps, budget), output)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    # A line's rate leaves evaluations and checkpoints out; the first two steps warm up.
    tokens = [line["tokens"] - before["tokens"] for before, line in pairwise(lines[1:])]
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, lines[2:], strict=True)]
    return {
        "losses": [line["loss"] for line in lines],
        "tokens": sum(tokens),
        "seconds": sum(seconds),
        "threads": torch.get_num_threads(),
    }


def peers(data: Path, batch: int, steps: int, bf16: bool, output: Path) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
    from sentence_transformers.multi_vector_encoder.training_args import MultiVectorEncoderTrainingArguments
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    from mbretrieve.models.source import locate

    pairs = ordered(data, batch, steps)
    model = MultiVectorEncoder(str(locate(None).folder), device="cpu").float()
    model[0].query_length, model[0].document_length = QUERY_LENGTH, DOCUMENT_LENGTH
    dataset = Dataset.from_dict({"query": [query for query, _ in pairs], "positive": [text for _, text in pairs]})
    times, losses = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, Any] | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    arguments = MultiVectorEncoderTrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-5,
        adam_beta2=0.98,
        lr_scheduler_type="constant",
        bf16=bf16,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        router_mapping={"query": "query", "positive": "document"},
    )

    class InOrder(MultiVectorEncoderTrainer):
        def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
            from torch.utils.data import BatchSampler

            return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    loss = MultiVectorMultipleNegativesRankingLoss(model, scale=1.0)
    InOrder(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Clock()]).train()
    return {"losses": losses, "seconds": times[-1] - times[1], "threads": torch.get_num_threads()}


def memory(data: Path, batch: int, budget: int, output: Path) -> dict[str, Any]:
    """The peak of a step above what model, gradients and optimiser hold, all of which are there before it."""
    import torch

    from mbretrieve.training.loop import Loop
    from mbretrieve.training.setup import prepare

    run = prepare(recipe(data, batch, 3, budget), output, False, print)
    loop = Loop(run, print)
    steps = [loop.next_step() for _ in range(2)]
    for parameter in run.parameters:
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    held = _resident()
    Path("/proc/self/clear_refs").write_text("5")
    loss = loop.gradients(steps[1])
    return {"loss": float(loss), "bytes": _peak() - held, "held": held, "tokens": steps[1].tokens}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) * 1024


def worker(arguments: argparse.Namespace) -> None:
    """Do one part and print what it gave as the last line."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "out"
        if arguments.worker == "memory":
            found = memory(arguments.pairs, arguments.batch, arguments.budget, output)
        elif arguments.worker == "mbretrieve":
            shared = Path(os.environ["TRAIN_PEERS_OUTPUT"]) if "TRAIN_PEERS_OUTPUT" in os.environ else output
            found = ours(arguments.pairs, arguments.batch, arguments.steps, arguments.budget, shared)
        else:
            found = peers(arguments.pairs, arguments.batch, arguments.steps, arguments.worker.endswith("bf16"), output)
    print("\n" + json.dumps(found))


# What drives them


def start(data: Path, what: str, batch: int, steps: int, budget: int, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, str(data), "--worker", what]
    command += ["--batch", str(batch), "--steps", str(steps), "--budget", str(budget)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args} failed")
    return dict(json.loads(out.strip().splitlines()[-1]))


def speed(data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    names = (*PEERS, "mbretrieve bf16")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            what = "mbretrieve" if name.startswith("mbretrieve") else name
            runs[name].append(finish(start(data, what, arguments.batch, arguments.steps, arguments.budget)))
    tokens = runs["mbretrieve bf16"][0]["tokens"]
    first = {name: found[0]["losses"][0] for name, found in runs.items()}
    if max(abs(loss - first[PEERS[0]]) for loss in first.values()) > 0.05 * abs(first[PEERS[0]]):
        raise SystemExit(f"the engines' first losses differ: {first}")
    rates = {name: tokens / statistics.median(run["seconds"] for run in found) for name, found in runs.items()}
    best = max(PEERS, key=lambda name: rates[name])
    return {
        "batch": arguments.batch,
        "steps": arguments.steps,
        "tokens_per_step": round(tokens / (arguments.steps - 2)),
        "threads": runs["mbretrieve bf16"][0]["threads"],
        "first_losses": {name: round(loss, 4) for name, loss in first.items()},
        "seconds": {name: [round(run["seconds"], 2) for run in found] for name, found in runs.items()},
        "tokens_per_second": {name: round(rate) for name, rate in rates.items()},
        "peers_best": best,
        "times_faster": round(rates["mbretrieve bf16"] / rates[best], 2),
        "wanted": WANTED["times_faster"],
    }


def memory_ratio(data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    del arguments
    # A batch of 64 in one piece; 1,024 in pieces of half of its tokens, since GradCache holds all vectors beside one.
    cases = {"plain, 64": (64, 10**9), "GradCache, 1024": (1024, 32 * (QUERY_LENGTH + DOCUMENT_LENGTH))}
    found = {name: finish(start(data, "memory", batch, 1, budget)) for name, (batch, budget) in cases.items()}
    ratio = found["GradCache, 1024"]["bytes"] / found["plain, 64"]["bytes"]
    return {"steps": found, "times": round(ratio, 2), "wanted": WANTED["memory"]}


def processes(data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    def both(place: str) -> dict[str, Any]:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29471", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        shared |= {"ACCELERATE_USE_CPU": "1", "TRAIN_PEERS_OUTPUT": f"{place}/two"}
        ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
        started = [
            start(data, "mbretrieve", arguments.batch, arguments.steps, arguments.budget, **rank) for rank in ranks
        ]
        first, _ = (finish(process) for process in started)
        return first

    with tempfile.TemporaryDirectory() as place:
        one = finish(start(data, "mbretrieve", arguments.batch, arguments.steps, arguments.budget, OMP_NUM_THREADS="2"))
        two = both(place)
    pairs = zip(one["losses"], two["losses"], strict=True)
    return {
        "greatest_difference_of_loss": max(abs(a - b) for a, b in pairs),
        "wanted": WANTED["loss"],
        "tokens_per_second": {
            "one process, two threads": round(one["tokens"] / one["seconds"]),
            "two processes, one thread each": round(two["tokens"] / two["seconds"]),
        },
    }


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, metavar="PAIRS.jsonl.gz")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.worker:
        worker(arguments)
        return
    name = "memory" if arguments.memory else "processes" if arguments.processes else "speed"
    part = {"memory": memory_ratio, "processes": processes, "speed": speed}[name]
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "pairs.jsonl"
        rows = read_pairs(arguments.pairs, max(4096, arguments.batch * arguments.steps))
        if arguments.memory:  # texts that fill their lengths
            rows = [{name: " ".join([text] * 200)[:4000] for name, text in row.items()} for row in rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        found = part(data, arguments)
    there = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    versions = provenance("torch", "transformers", "sentence-transformers", "accelerate")
    write({**there, name: {**versions, **found}}, arguments.json)


if __name__ == "__main__":
    main()
