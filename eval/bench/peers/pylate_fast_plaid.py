"""PyLate with fast-plaid on vectors on disk, in an environment of its own.

``python pylate_fast_plaid.py FOLDER INDEX OUT``: FOLDER is one of ``encoded.py``; INDEX a folder to make; OUT gets the
figures as JSON, with what was found. Everything but the number of threads is as PyLate sets it. Imports nothing of
mbretrieve.
"""

import json
import os
import resource
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", os.environ["OMP_NUM_THREADS"])  # before Rust's threads are started

import numpy as np
import torch
from pylate import indexes

K, DEEP = 10, 100
THREADS = int(os.environ["OMP_NUM_THREADS"])


def ranked(found: list[list[dict]]) -> list[dict[str, float]]:
    return [{hit["id"]: hit["score"] for hit in hits} for hits in found]


def main() -> None:
    folder, place, out = map(Path, sys.argv[1:])
    torch.set_num_threads(THREADS)
    offsets = np.load(folder / "off.npy")
    x = np.load(folder / "x.npy", mmap_mode="r")
    documents = [np.array(x[first:last], dtype=np.float32) for first, last in pairwise(offsets)]
    with np.load(folder / "q.npz") as stored:
        queries = [stored[name].astype(np.float32) for name in stored.files[:300]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = indexes.PLAID(
        index_folder=str(place), index_name="peer", override=True, device="cpu", num_threads=THREADS,
        show_progress=False,
    )  # fmt: skip
    began, began_cpu = time.perf_counter(), time.process_time()
    index.add_documents(documents_ids=[f"{row:09}" for row in range(len(documents))], documents_embeddings=documents)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    index(queries[:1], k=K)
    took = []
    first = []
    for query in queries:
        began = time.perf_counter()
        first += ranked(index([query], k=K))
        took.append(1000 * (time.perf_counter() - began))
    deep = [ranked(index([query], k=DEEP))[0] for query in queries]
    tokens = int(offsets[-1])
    figures = {
        "versions": {name: version(name) for name in ("pylate", "fast-plaid", "torch")},
        "threads": THREADS,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "peak_memory_mib": round(peak / 1024),
        "bytes_per_token": round(size / tokens, 1),
        "p50_ms": round(float(np.percentile(took, 50)), 2),
        "p95_ms": round(float(np.percentile(took, 95)), 2),
    }
    out.write_text(json.dumps({"figures": figures, "found": {str(K): first, str(DEEP): deep}}))


if __name__ == "__main__":
    main()
