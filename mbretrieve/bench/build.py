"""What building an index takes: a copy of it is packed again, in a process of its own that does nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mbretrieve.errors import DataError
from mbretrieve.evaluation import provenance
from mbretrieve.index import open_index


def packing(index: Path, memory: int) -> dict[str, Any]:
    """Return tokens a second on one thread, and bytes in memory at the peak beyond what imports take.

    A codebook is trained anew and every vector packed under it, in ``memory`` bytes, about. Raises: DataError if the
    copy cannot be made or packed.
    """
    with tempfile.TemporaryDirectory(prefix="mbretrieve-bench-") as place:
        copy = Path(place) / "index"
        try:
            shutil.copytree(index, copy)
        except OSError as error:
            raise DataError(f"{index} cannot be copied to {place} ({error}): free some space, or set TMPDIR") from error
        command = [sys.executable, "-m", "mbretrieve.bench.build", str(copy), str(memory)]
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)  # noqa: S603
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no word"]
            raise DataError(
                f"{index} could not be packed again ({said[-1]}): `mbretrieve verify` says whether it is sound"
            )
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures


def main() -> None:
    """Pack the index named again, and print what it took."""
    with open_index(sys.argv[1]) as index:
        tokens = index.status()["tokens"]
        import faiss  # noqa: F401 - beforehand, so that it is not counted
        import torch  # noqa: F401

        provenance.forget_peak_memory()
        before, began = provenance.peak_memory(), time.perf_counter()
        index.compact(retrain=True, memory=int(sys.argv[2]))
        seconds = time.perf_counter() - began
    figures = {
        "tokens_per_second": round(tokens / seconds),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": provenance.peak_memory() - before,
        "threads": 1,
        "what": "the index's own vectors, packed again under a codebook trained anew",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
