"""What ``index_scale.py`` measures, each in a process of its own: ``python eval/bench/index_jobs.py JOB ARGUMENTS``.

ARGUMENTS is a JSON object of the job's parameters; the last line printed is a JSON object of its figures.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from encoded import Encoded, batches, name, open_encoded

from mbretrieve.evaluation import provenance
from mbretrieve.index import Entry, MultiVectorIndex

BATCH = 512
COMMIT_TOKENS = 1 << 20  # as Retriever commits
NOISE = 0.02  # of each dimension of a unit vector, so that no vector is another's copy
K, DEEP, UPDATES = 10, 100, 30


class Peak:
    """Memory of this process beyond what it had: all that was resident, mapped files too, and what is not of files."""

    def __enter__(self) -> "Peak":
        provenance.forget_peak_memory()
        self._resident, self._anonymous = provenance.peak_memory(), _anonymous()
        self.anonymous, self._done = 0, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.anonymous = max(self.anonymous, _anonymous() - self._anonymous)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()
        self.resident = provenance.peak_memory() - self._resident


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def build(vectors: str, index: str, bits: int, memory: int, tokens: int = 0) -> dict[str, Any]:
    """Build an index of all functions, or of so many tokens, made of them again and again with noise; one thread."""
    encoded = open_encoded(Path(vectors))
    dim, whole = encoded.x.shape[1], tokens or int(encoded.offsets[-1])
    opened = MultiVectorIndex.create(index, dim, bits=bits)
    written, preparing, began = 0, np.zeros(2), _clocks()
    with Peak() as peak:
        with opened.writer(memory) as writer:
            writer.expect(whole)
            row, uncommitted = 0, 0
            for functions, took in _functions(encoded, tokens):
                preparing += took
                writer.add([Entry(name(row + i), [rows], [(0, 0)]) for i, rows in enumerate(functions)])
                row += len(functions)
                added = sum(map(len, functions))
                written, uncommitted = written + added, uncommitted + added
                if uncommitted >= COMMIT_TOKENS:
                    writer.commit()
                    uncommitted = 0
        filled, _ = _clocks() - began - preparing
        if opened.status()["segments"] > 1:  # as Retriever ends a build
            opened.compact(memory=memory)
    seconds, cpu_seconds = _clocks() - began - preparing
    status = opened.status()
    opened.close()
    return {
        "tokens": written,
        "documents": status["documents"],
        "seconds": round(seconds, 2),
        "seconds_before_compaction": round(filled, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "tokens_per_second": round(written / seconds),
        "peak_memory_mib": round(peak.resident / 2**20),
        "peak_memory_mib_without_mapped_files": round(peak.anonymous / 2**20),
        "segments": status["segments"],
        "lists": status["lists"],
        "bytes_per_token": {part: round(size / written, 2) for part, size in status["bytes"].items()},
        "bytes": status["bytes"],
    }


def _clocks() -> np.ndarray:
    """Return the seconds of the clock, and those that this process had a core."""
    return np.array([time.perf_counter(), time.process_time()])


def _functions(encoded: Encoded, tokens: int) -> Any:
    """Yield functions' vectors, and what it took to read them or make them up, by ``_clocks``."""
    random, made, again = np.random.default_rng(0), 0, False
    while True:
        for _, functions in batches(encoded, BATCH):
            began = _clocks()
            if again:  # the first time through they are as they came
                functions = [_noisy(rows, random) for rows in functions]
            made += sum(map(len, functions))
            yield functions, _clocks() - began
            if tokens and made >= tokens:
                return
        if not tokens:
            return
        again = True


def _noisy(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    moved = rows.astype(np.float32)
    moved += np.float32(NOISE) * random.standard_normal(rows.shape, dtype=np.float32)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float16)


def search(vectors: str, index: str, rankings: str = "") -> dict[str, Any]:
    """Time single queries at the default effort, and write what was found: ids of the first 10 and the first 100."""
    queries = open_encoded(Path(vectors)).queries
    with MultiVectorIndex.open(index) as opened:
        began = time.perf_counter()
        opened.search(queries[:1], K)
        cold = 1000 * (time.perf_counter() - began)
        first, deep = opened.search(queries, K), opened.search(queries, DEEP)
        took = []
        for query in queries:
            began = time.perf_counter()
            opened.search([query], K)
            took.append(1000 * (time.perf_counter() - began))
        effort = opened.effort(K)
    if rankings:
        found = {
            str(k): [{match.id: match.score for match in matches} for matches in ranked]
            for k, ranked in ((K, first), (DEEP, deep))
        }
        Path(rankings).write_text(json.dumps(found))
    p50, p95 = np.percentile(took, [50, 95])
    return {
        "threads": torch.get_num_threads(),
        "effort": {"probes": effort.probes, "tokens": effort.tokens, "rescore": effort.rescore},
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "first_search_ms": round(cold, 1),
    }


def update(vectors: str, index: str, others: str) -> dict[str, Any]:
    """Put the vectors of other functions in the place of some, one document a commit."""
    source = open_encoded(Path(others))
    took, after = [], []
    with MultiVectorIndex.open(index) as opened:
        query, count = open_encoded(Path(vectors)).queries[:1], len(opened)
        opened.search(query, K)
        for i, row in enumerate(np.linspace(0, count - 1, UPDATES).astype(int)):
            rows = np.array(source.x[source.offsets[i] : source.offsets[i + 1]])
            began = time.perf_counter()
            with opened.writer() as writer:
                writer.add([Entry(name(int(row)), [rows], [(0, 0)])])
            took.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            opened.search(query, K)
            after.append(1000 * (time.perf_counter() - began))
    return {
        "updates": UPDATES,
        "median_ms": round(float(np.median(took)), 1),
        "worst_ms": round(max(took), 1),
        "search_after_it_median_ms": round(float(np.median(after)), 1),
    }


JOBS = {job.__name__: job for job in (build, search, update)}

if __name__ == "__main__":
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(json.dumps(JOBS[sys.argv[1]](**json.loads(sys.argv[2]))))
