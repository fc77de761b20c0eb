"""Index a folder with the bundled model by the command line, and report the cost: files, units, tokens, time, memory.

``python eval/bench/index_folder.py [FOLDER] [--index NEW] [--json OUT]``; without FOLDER, the installed transformers
package. ``--index`` keeps the index it makes, for the benches of searching.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import provenance, write

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: spinning threads starve each other

from mbretrieve.retriever import Retriever  # after it: torch reads the variable when it is loaded

QUESTIONS = [
    "rotate queries and keys by position",
    "load weights from a safetensors checkpoint",
    "stop generating when an end token is produced",
    "pad a batch of token ids to the same length",
    "mask future positions in causal attention",
    "resize the token embeddings of a model",
    "beam search scorer",
    "download a file from the hub into the cache",
]


def peak_bytes() -> int:
    """Return the most memory that any finished child process had resident."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--index", help="a folder that does not exist yet; a temporary one if not given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is None:
        [found] = importlib.util.find_spec("transformers").submodule_search_locations
        folder = Path(found)
    os.environ["HF_HUB_OFFLINE"] = "1"
    run = [sys.executable, "-m", "mbretrieve"]
    with tempfile.TemporaryDirectory() as place:
        index = arguments.index or f"{place}/index"
        if Path(index).exists():
            parser.error(f"{index} exists; the first run is measured on a new index")
        first = timed([*run, "index", str(folder), "--index", index])
        peak = peak_bytes()
        again = timed([*run, "index", str(folder), "--index", index])
        status = json.loads(
            subprocess.run([*run, "status", "--index", index, "--json"], check=True, capture_output=True).stdout
        )
        cold = [timed([*run, "search", QUESTIONS[0], "--index", index, "--no-refresh"]) for _ in range(3)]
        warm = {}
        with Retriever.open(index) as retriever:
            for mode in ("hybrid", "semantic", "lexical"):
                retriever.search([QUESTIONS[0]], mode=mode)
                times = []
                for question in QUESTIONS * 3:
                    start = time.perf_counter()
                    retriever.search([question], mode=mode)
                    times.append(1000 * (time.perf_counter() - start))
                warm[mode] = round(statistics.median(times), 1)
    result = {
        "folder": folder.name,
        "files": status["files"],
        "units": status["documents"],
        "tokens": status["tokens"],
        "bytes": status["bytes"],
        "seconds_first_run": round(first, 1),
        "tokens_per_second": round(status["tokens"] / first),
        "seconds_second_run": round(again, 1),
        "peak_memory_gib": round(peak / 2**30, 2),
        "seconds_cold_search": round(statistics.median(cold), 2),
        "warm_search_p50_ms": warm,
        **provenance("torch", "faiss-cpu", "tokenizers"),
    }
    write(result, arguments.json)


if __name__ == "__main__":
    main()
