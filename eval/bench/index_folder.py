"""Index a folder with the bundled model by the command line, and report the cost: files, units, tokens, time, memory.

``python eval/bench/index_folder.py [FOLDER] [--index NEW] [--json OUT]``; without FOLDER, the installed transformers
package. ``--index`` keeps the index it makes, for the benches of searching; with ``--built RESULT`` it is there, by the
run that wrote RESULT, and only searches are measured again.
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
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

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
RUN = [sys.executable, "-m", "mbretrieve"]
COLD = 7
# What the command imports for such a search, without torch: the rest of its time is the search's own.
IMPORTS = (
    "import numpy, tokenizers, rich.console, mbretrieve.cli.app, mbretrieve.cli.search, mbretrieve.cli.render, "
    "mbretrieve.retriever, mbretrieve.models.light, mbretrieve.index.lists, mbretrieve.index.gather, "
    "mbretrieve.index.codebooks, mbretrieve.scoring.arrays"
)
# What the index does of it: it is opened, its codebook read, and ten documents are found.
OF_INDEX = f"""
import sys, time
{IMPORTS}
from mbretrieve.index import open_index
from mbretrieve.scoring import sparing_torch
path, question = sys.argv[1:]
with sparing_torch():
    with mbretrieve.retriever.Retriever.open(path) as retriever:
        [query] = retriever.asking.encode_queries([question])
    began = time.perf_counter()
    with open_index(path) as index:
        index.search([query], 10)
    print(1000 * (time.perf_counter() - began))
"""


def peak_bytes() -> int:
    """Return the most memory that any finished child process had resident."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def said(command: list[str]) -> float:
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def p50_ms(search: Callable[[list[Any]], Any], queries: Iterable[Any]) -> float:
    """Time a search for each query, one after the other."""
    times = []
    for query in queries:
        start = time.perf_counter()
        search([query])
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 1)


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--index", help="a folder that does not exist yet; a temporary one if not given")
    parser.add_argument("--built", type=Path, help="what an earlier run wrote of --index, to keep")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is None:
        [found] = importlib.util.find_spec("transformers").submodule_search_locations
        folder = Path(found)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as place:
        # Modules are compiled once, as where they were installed, wherever this runs.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{place}/pycache"
        index = arguments.index or f"{place}/index"
        if arguments.built is not None:
            result = (
                json.loads(arguments.built.read_text())
                | {"searches": "measured again, on the index of an earlier run"}
                | searched(index)
            )
        elif Path(index).exists():
            parser.error(f"{index} exists; the first run is measured on a new index")
        else:
            result = {"folder": folder.name} | built(folder, index) | searched(index)
    write(result | provenance("torch", "faiss-cpu", "tokenizers"), arguments.json)


def built(folder: Path, index: str) -> dict[str, Any]:
    """Index a folder, and again without a change: what it took, and what came of it."""
    command = [*RUN, "index", str(folder), "--index", index]
    first = timed(command)
    peak = peak_bytes()
    again = timed(command)
    status = json.loads(
        subprocess.run([*RUN, "status", "--index", index, "--json"], check=True, capture_output=True).stdout
    )
    return {
        "files": status["files"],
        "units": status["documents"],
        "tokens": status["tokens"],
        "bytes": status["bytes"],
        "codebooks": len(status["lists"]),
        "seconds_first_run": round(first, 1),
        "tokens_per_second": round(status["tokens"] / first),
        "seconds_second_run": round(again, 1),
        "peak_memory_gib": round(peak / 2**30, 2),
    }


def searched(index: str) -> dict[str, Any]:
    """Time a search by the command line, beside the imports that it needs, and in a process that goes on."""
    timed([*RUN, "search", QUESTIONS[0], "--index", index, "--no-refresh"])
    cold = [timed([*RUN, "search", QUESTIONS[0], "--index", index, "--no-refresh"]) for _ in range(COLD)]
    imports = [timed([sys.executable, "-c", IMPORTS]) for _ in range(COLD)]
    of_index = [said([sys.executable, "-c", OF_INDEX, index, QUESTIONS[0]]) for _ in range(COLD)]
    warm = {}
    with Retriever.open(index) as retriever:
        for mode in ("hybrid", "semantic", "lexical"):
            for question in QUESTIONS:  # what is read for the first time is checked
                retriever.search([question], mode=mode)
            warm[mode] = p50_ms(partial(retriever.search, mode=mode), QUESTIONS * 3)
        queries = retriever.model.encode_queries(QUESTIONS * 3)
        warm["semantic, of the index alone"] = p50_ms(partial(retriever.index.search, k=10), queries)
    return {
        "seconds_cold_search": round(statistics.median(cold), 3),
        "seconds_of_its_imports": round(statistics.median(imports), 3),
        "cold_search_of_the_index_ms": round(statistics.median(of_index), 1),
        "warm_search_p50_ms": warm,
    }


if __name__ == "__main__":
    main()
