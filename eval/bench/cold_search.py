"""How long a cold ``mbretrieve search`` takes, beside what Python needs to import torch, faiss and tokenizers.

Each round starts one process of each kind, in turn, so that a busy moment of the machine hits all alike; the ratio of
the medians is what counts. Usage: ``python eval/bench/cold_search.py [PATH] [--repeats N] [--json OUT]``. PATH
(default: this project) is indexed first, in a temporary place.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import provenance, write

QUESTION = "where is the index opened for reading"
PACKAGES = ("torch", "faiss-cpu", "tokenizers", "click", "numpy")


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command in a process of its own and time it from start to end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def commands(path: Path) -> dict[str, list[str]]:
    """Return what is timed: searches of what is indexed at a path, and what they are held against."""
    run = [sys.executable, "-m", "mbretrieve"]
    search = [*run, "search", QUESTION, str(path)]
    return {
        "imports": [sys.executable, "-c", "import torch, faiss, tokenizers"],
        "search": search,
        # A device that is named is torch's: the same search with torch imported.
        "search --device cpu": [*search, "--device", "cpu"],
        "search --mode lexical": [*search, "--mode", "lexical"],
        "status": [*run, "status", str(path)],
        "--help": [*run, "--help"],
    }


def indexed(path: Path, cache: str) -> dict[str, str]:
    """Index a path in a place of its own; return the environment in which it is found there."""
    environment = os.environ | {"MBRETRIEVE_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    # Modules are compiled once, as where they were installed, wherever this runs.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = f"{cache}/pycache"
    index = [sys.executable, "-m", "mbretrieve", "index", str(path)]
    subprocess.run(index, check=True, env=environment, capture_output=True)
    return environment


def search_seconds(index: Path, repeats: int) -> float:
    """Time the search itself, in a process that has the index and the model open: the median over the repeats."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is imported
    from mbretrieve.retriever import Retriever

    with Retriever.open(index) as retriever:
        retriever.search([QUESTION])
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            retriever.search([QUESTION])
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure, and print or write one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=Path(__file__).parents[2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as cache:
        environment, run = indexed(arguments.path, cache), commands(arguments.path)
        status = subprocess.run([*run["status"], "--json"], check=True, env=environment, capture_output=True).stdout
        held = json.loads(status)
        times: dict[str, list[float]] = {name: [] for name in run}
        for turn in range(arguments.repeats + 1):
            for name, command in run.items():
                took = seconds(command, environment)
                if turn:  # the first round fills the disk's cache
                    times[name].append(took)
        warm = search_seconds(Path(held["index"]), arguments.repeats)

    medians = {name: statistics.median(values) for name, values in times.items()}
    record = {
        "what": "cold command line, seconds from start to end of a process",
        "question": QUESTION,
        "index": {key: held[key] for key in ("documents", "files", "tokens", "segments", "bytes")},
        "repeats": arguments.repeats,
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "range_seconds": {name: [round(min(values), 4), round(max(values), 4)] for name, values in times.items()},
        "search_over_imports": round(medians["search"] / medians["imports"], 3),
        "search_over_search_with_torch": round(medians["search"] / medians["search --device cpu"], 3),
        "search_itself_seconds": round(warm, 4),
        **provenance(*PACKAGES),
    }
    write(record, arguments.json)


if __name__ == "__main__":
    main()
