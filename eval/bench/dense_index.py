"""The three searches of a dense index, flat, graph and lists, at several sizes: time to build, latency, recall.

``python eval/bench/dense_index.py --texts FILE.jsonl.gz [--cache FILE.npz] [--sizes N ...] [--json OUT]``; FILE has a
``query`` and a ``positive`` (a document) in each line. The bundled model encodes the first 20,000 documents; a larger
index holds several copies of each, with Gaussian noise of half a vector's length, so that all differ. One thread.
"""

import argparse
import gzip
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from machine import provenance, write
from numpy.typing import NDArray

from mbretrieve.index import DenseIndex, Entry, plan
from mbretrieve.models.source import BUNDLED

Floats = NDArray[np.float32]

DOCUMENTS = 20_000
QUERIES = 200
NOISE = 0.5
GRAPHS = 1 << 18  # vectors; a graph of more takes many minutes to build on one core


def encode(texts: Path, cache: Path | None) -> tuple[Floats, Floats]:
    """Return the vectors of documents (20,000, dim) and queries (200, dim)."""
    if cache is not None and cache.exists():
        with np.load(cache) as arrays:
            return arrays["documents"], arrays["queries"]
    from mbretrieve.models import load_encoder

    with gzip.open(texts, "rt") as file:
        pairs = [json.loads(line) for line, _ in zip(file, range(DOCUMENTS), strict=False)]
    encoder = load_encoder("dense", BUNDLED)
    documents = np.stack(encoder.encode_documents([pair["positive"] for pair in pairs])).astype(np.float32)
    queries = np.stack(encoder.encode_queries([pair["query"] for pair in pairs[:QUERIES]])).astype(np.float32)
    if cache is not None:
        np.savez(cache, documents=documents, queries=queries)
    return documents, queries


def noisy(documents: Floats, count: int) -> Floats:
    """Return ``count`` unit vectors: the documents', then copies with noise."""
    random = np.random.default_rng(0)
    vectors = documents[np.arange(count) % len(documents)]
    for first in range(len(documents), count, 1 << 16):
        part = vectors[first : first + (1 << 16)]
        part += random.standard_normal(part.shape, dtype=np.float32) * np.float32(NOISE / np.sqrt(part.shape[1]))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def exact(vectors: Floats, queries: Floats, k: int) -> NDArray[np.int64]:
    """Return the numbers of the ``k`` nearest of ``vectors`` to each query, best first."""
    found: NDArray[np.int64] = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return found


def measure(index: DenseIndex, queries: Floats, best: NDArray[np.int64]) -> dict[str, Any]:
    """Search with one query at a time, 10 and 100 deep, at the default effort."""
    result: dict[str, Any] = {}
    index.search(queries[:2], 10)  # maps, and checks what is checked once
    for k in (10, 100):
        seconds, hits = [], 0
        for query, wanted in zip(queries, best, strict=True):
            start = time.perf_counter()
            [matches] = index.search(query[None], k)
            seconds.append(time.perf_counter() - start)
            hits += len({int(match.id) for match in matches} & set(wanted[:k].tolist()))
        result |= {f"recall@{k}": round(hits / (k * len(queries)), 4)}
        if k == 10:
            p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
            result |= {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2)}
    return result


def compare(vectors: Floats, queries: Floats) -> dict[str, Any]:
    """Index vectors, and write the one segment anew for each search that the table knows."""
    best = exact(vectors, queries, 100)
    rows = {row.search: row for row in plan.DENSE_TABLE}
    searches = [name for name in rows if name != "graph" or len(vectors) <= GRAPHS]
    planned = plan.dense_row(len(vectors)).search
    result: dict[str, Any] = {"vectors": len(vectors), "planned": planned}
    with tempfile.TemporaryDirectory() as folder, DenseIndex.create(Path(folder) / "index", vectors.shape[1]) as index:
        plan.DENSE_TABLE = (rows["flat"]._replace(vectors=1 << 62),)
        with index.writer() as writer:
            for first in range(0, len(vectors), 10_000):
                part = vectors[first : first + 10_000]
                writer.add([Entry(str(i), [row[None]], [(0, 0)]) for i, row in enumerate(part, start=first)])
            # One more for each search: without it the segment is written anew.
            writer.add([Entry(str(-1 - i), [-queries[:1]], [(0, 0)]) for i in range(len(searches))])
        for i, search in enumerate(searches):
            plan.DENSE_TABLE = (rows[search]._replace(vectors=1 << 62),)
            index.delete([str(-1 - i)])
            start = time.perf_counter()
            index.compact()
            seconds = time.perf_counter() - start
            status = index.status()
            assert status["searched"][search] == status["documents"]
            result[search] = {
                "compact_s": round(seconds, 1),
                "bytes_per_vector": status["bytes_per_token"],
                **measure(index, queries, best),
            }
            print(len(vectors), search, result[search], flush=True)
    plan.DENSE_TABLE = tuple(rows.values())
    return result


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    documents, queries = encode(arguments.texts, arguments.cache)
    unit: Floats = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    results = [compare(noisy(documents, size), unit) for size in arguments.sizes]
    write(
        {
            **provenance("torch", "numpy", "faiss-cpu"),
            "model": BUNDLED,
            "threads": 1,
            "documents": len(documents),
            "queries": len(queries),
            "noise": NOISE,
            "efforts": {row.search: str(row.effort) for row in plan.DENSE_TABLE},
            "sizes": results,
            "load": round(os.getloadavg()[0], 1),
            "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
