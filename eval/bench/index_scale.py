"""The index on real text, at one size and ten times that: build, memory, bytes, latency, recall, and a peer beside it.

``python eval/bench/index_scale.py --pairs FOLDER --work FOLDER [--bits 1,2,4,8] [--peer-python PYTHON] [--json OUT]``

``--pairs`` has ``code_*.jsonl.gz``, lines of {"positive": a function, "query": what it does}. Functions are encoded
once, by the bundled model, and kept in ``--work``; queries ask for functions that are in neither index. Recall is of
exact MaxSim over the float16 vectors. Every figure comes from a process of its own (``index_jobs.py``): builds on one
thread, searches on one and on all. The catalogue's bytes are those of ids and windows: no text is stored here.

``--tokens 100000000`` measures, instead, one index of so many vectors: the functions' own, then those again with a
little noise. It says nothing of recall. ``--stage build`` and ``--stage search`` do a part of it each, as the build
takes an hour. ``--peer-python`` names an environment with PyLate and fast-plaid, given ``--peer-limit`` seconds for the
smaller size.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import encoded
from machine import provenance, write

from mbretrieve.evaluation.metrics import agreement

HERE = Path(__file__).parent
DEFAULT_BITS = 2
CORES = len(os.sched_getaffinity(0))


def run(job: str, threads: int, **parameters: Any) -> dict[str, Any]:
    """Run a job of ``index_jobs`` and return its figures."""
    command = [sys.executable, str(HERE / "index_jobs.py"), job, json.dumps(parameters)]
    done = subprocess.run(command, env=_environment(threads), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} {parameters} failed:\n{done.stderr}")
    figures = json.loads(done.stdout.splitlines()[-1])
    print(job, threads, "threads", {name: parameters[name] for name in ("bits",) if name in parameters}, figures)
    return figures


def _environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def recalls(found: dict[str, list[dict[str, float]]], wanted: list[dict[str, float]]) -> dict[str, float]:
    """Return recall of the first 10 and 100 of exact search."""
    truth = {str(place): scores for place, scores in enumerate(wanted)}
    runs = {int(k): {str(place): scores for place, scores in enumerate(ranked)} for k, ranked in found.items()}
    return {f"recall@{k}": round(agreement(ranked, truth, k), 4) for k, ranked in runs.items()}


def searched(folder: Path, index: Path, wanted: list[dict[str, float]]) -> dict[str, Any]:
    """Time searches on one thread and on all, and measure recall."""
    rankings = index.with_suffix(".rankings")
    one = run("search", 1, vectors=str(folder), index=str(index), rankings=str(rankings))
    cores = run("search", CORES, vectors=str(folder), index=str(index))
    found = json.loads(rankings.read_text())
    rankings.unlink()
    return recalls(found, wanted) | {"one_thread": one, "all_cores": cores}


def measure(folder: Path, bits: list[int], memory: int) -> dict[str, Any]:
    """Build and search an index for each number of bits; the default's is left for updates."""
    opened = encoded.open_encoded(folder)
    wanted = encoded.exact(opened)
    result: dict[str, Any] = {
        "functions": len(opened.offsets) - 1,
        "tokens": int(opened.offsets[-1]),
        "exact_p50_ms": round(encoded.exact_p50(opened), 1),
        "bits": {},
    }
    for number in bits:
        index = fresh(folder / f"index-{number}bit")
        built = run("build", 1, vectors=str(folder), index=str(index), bits=number, memory=memory)
        result["bits"][number] = {"build": built, "search": searched(folder, index, wanted)}
        if number != DEFAULT_BITS:
            shutil.rmtree(index)
    return result


def fresh(place: Path) -> Path:
    """Return a place with nothing there."""
    shutil.rmtree(place, ignore_errors=True)
    return place


def many(folder: Path, tokens: int, memory: int, stage: str) -> dict[str, Any]:
    """Build and search one index of so many vectors, or do the one now and the other later."""
    index = folder / f"index-{tokens}"
    figures = index.with_suffix(".json")
    if stage != "search":
        fresh(index)
        built = run("build", 1, vectors=str(folder), index=str(index), bits=DEFAULT_BITS, memory=memory, tokens=tokens)
        figures.write_text(json.dumps(built))
    if stage == "build":
        return {"build": built}
    built = json.loads(figures.read_text())
    times = {
        name: run("search", threads, vectors=str(folder), index=str(index))
        for name, threads in (("one_thread", 1), ("all_cores", CORES))
    }
    shutil.rmtree(index)
    return {"build": built, "search": times}


def peer(python: Path, folder: Path, limit: int) -> dict[str, Any]:
    """Run PyLate with fast-plaid on the same vectors, on one thread; say plainly if it does not finish."""
    place, out = fresh(folder / "peer"), folder / "peer.json"
    command = [str(python), str(HERE / "peers" / "pylate_fast_plaid.py"), str(folder), str(place), str(out)]
    try:
        done = subprocess.run(command, env=_environment(1), check=False, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": "did not finish", "given_seconds": limit}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1], "given_seconds": limit}
    record = json.loads(out.read_text())
    return record["figures"] | recalls(record["found"], encoded.exact(encoded.open_encoded(folder)))


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--functions", type=int, default=12_000)
    parser.add_argument("--times", type=int, default=10, help="the larger size; 0: leave it out")
    parser.add_argument("--bits", default="1,2,4,8")
    parser.add_argument("--memory", type=int, default=2 << 30, help="bytes")
    parser.add_argument("--tokens", type=int, help="instead: one index of so many vectors, with noise")
    parser.add_argument("--stage", choices=["build", "search", "both"], default="both", help="of --tokens")
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--peer-only", action="store_true", help="only the peer, and our build of the same vectors")
    parser.add_argument("--peer-limit", type=int, default=1200, help="seconds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = [arguments.functions] + ([arguments.functions * arguments.times] if arguments.times else [])
    folders = [arguments.work / str(size) for size in sizes]
    if not all((folder / "off.npy").exists() for folder in folders):
        for folder, rows in zip(folders, encoded.read_rows(arguments.pairs, sizes), strict=True):
            encoded.encode(folder, rows)
    result: dict[str, Any] = {"memory": arguments.memory}
    if arguments.tokens:
        result["many"] = many(folders[-1], arguments.tokens, arguments.memory, arguments.stage)
    elif arguments.peer_only:
        index = fresh(folders[0] / f"index-{DEFAULT_BITS}bit")
        place = {"vectors": str(folders[0]), "index": str(index)}
        ours = run("build", 1, **place, bits=DEFAULT_BITS, memory=arguments.memory)
        result |= {"build": ours, "search": run("search", 1, **place)}
        fresh(index)
        result["pylate with fast-plaid"] = theirs = peer(arguments.peer_python, folders[0], arguments.peer_limit)
        if "cpu_seconds" in theirs:
            result["build_times_faster_by_cpu"] = round(theirs["cpu_seconds"] / ours["cpu_seconds"], 1)
    else:
        bits = sorted({int(number) for number in arguments.bits.split(",")} | {DEFAULT_BITS})
        result["sizes"] = [measure(folders[0], bits, arguments.memory)]
        if arguments.times:
            large = measure(folders[1], [DEFAULT_BITS], arguments.memory)
            index = str(folders[1] / f"index-{DEFAULT_BITS}bit")
            large["update"] = run("update", CORES, vectors=str(folders[1]), index=index, others=str(folders[0]))
            result["sizes"].append(large)
            before, after = (size["bits"][DEFAULT_BITS]["search"] for size in result["sizes"])
            result["growth"] = {"tokens": round(large["tokens"] / result["sizes"][0]["tokens"], 2)} | {
                name: round(after[name]["p50_ms"] / before[name]["p50_ms"], 2) for name in ("one_thread", "all_cores")
            }
        for folder in folders:
            fresh(folder / f"index-{DEFAULT_BITS}bit")
        if arguments.peer_python:
            result["pylate with fast-plaid"] = theirs = peer(arguments.peer_python, folders[0], arguments.peer_limit)
            if "tokens_per_second" in theirs:
                ours = result["sizes"][0]["bits"][DEFAULT_BITS]["build"]
                result["build_times_faster"] = round(ours["tokens_per_second"] / theirs["tokens_per_second"], 1)
    write(result | provenance("torch", "numpy", "faiss-cpu"), arguments.json)


if __name__ == "__main__":
    main()
