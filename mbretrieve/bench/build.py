"""What building an index takes: a copy of it is written again, in a process of its own that does nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from mbretrieve.errors import DataError
from mbretrieve.evaluation import provenance
from mbretrieve.index import AnyIndex, open_index

MADE = {"graph": "with a graph (HNSW)", "lists": "with inverted lists (IVF-PQ)"}
TRIED = 100  # documents that are dropped, one after another, until one of them had vectors of its own


def building(index: Path, memory: int) -> dict[str, Any]:
    """Return tokens a second on one thread, and bytes in memory at the peak beyond what imports take; "what" says what
    was done, in ``memory`` bytes, about.

    A packed index has a codebook trained anew and every vector packed under it. Any other loses a document, so that its
    vectors are written anew, with the graph or the lists by which they are searched.
    Raises: DataError, which names no path, if the copy cannot be made or written.
    """
    with tempfile.TemporaryDirectory(prefix="mbretrieve-bench-") as place:
        copy = Path(place) / "index"
        try:
            shutil.copytree(index, copy)
        except OSError as error:  # shutil.Error, too, which says it of each file
            why = "" if isinstance(error, shutil.Error) else f" ({error.strerror})"
            raise DataError(f"the index cannot be copied{why}: free some space, or set TMPDIR") from error
        command = [sys.executable, "-m", "mbretrieve.bench.build", str(copy), str(memory)]
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)  # noqa: S603
        if done.returncode:
            said = done.stderr.replace(place, "").strip().splitlines() or ["no word"]
            raise DataError(
                f"the index could not be written again ({said[-1]}): `mbretrieve verify` says whether it is sound"
            )
        figures: dict[str, Any] = json.loads(done.stdout)
        if not figures["tokens"]:
            raise DataError("no document has vectors of its own beside others, so that nothing is written again")
        return figures


def _write_again(index: AnyIndex, memory: int) -> tuple[int, float]:
    """Return how many vectors were written and the seconds it took; none if there is too little to write."""
    before = index.status()["tokens"]
    if index.status()["packed_tokens"]:
        began = time.perf_counter()
        index.compact(retrain=True, memory=memory)
        return before, time.perf_counter() - began
    for id in [document.id for document in islice(index.scan(), TRIED)]:
        began = time.perf_counter()
        with index.writer(memory) as writer:
            writer.delete([id])
            writer.compact()
        seconds, left = time.perf_counter() - began, index.status()["tokens"]
        if left < before:
            return left, seconds
    return 0, 0.0


def _what(status: dict[str, Any]) -> str:
    """Say what was done, by what came of it."""
    if status["packed_tokens"]:
        return "the index's own vectors, packed again under a codebook trained anew"
    made = [f", {words} of {status['searched'][way]:,}" for way, words in MADE.items() if status["searched"][way]]
    return f"the index's own vectors, written again as they came{''.join(made)}"


def main() -> None:
    """Write the index named again, and print what it took."""
    with open_index(sys.argv[1]) as index:
        import faiss  # noqa: F401 - beforehand, so that it is not counted
        import torch  # noqa: F401

        provenance.forget_peak_memory()
        before = provenance.peak_memory()
        tokens, seconds = _write_again(index, int(sys.argv[2]))
        peak = provenance.peak_memory() - before
        figures = {
            "tokens": tokens,
            "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "seconds": round(seconds, 2),
            "peak_memory_bytes": peak,
            "threads": 1,
            "what": _what(index.status()),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
