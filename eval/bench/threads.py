"""What it costs that OpenMP's threads spin while they wait, on a quiet machine and beside other busy programs.

``python eval/bench/threads.py [--json OUT]`` encodes the same texts with the bundled model in processes that differ in
OMP_WAIT_POLICY and in the number of threads, in turn, first alone and then beside one busy loop a core.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from machine import provenance, write

ENCODE = """
import sys, time
from pathlib import Path
from mbretrieve import ColBERT
model = ColBERT.from_pretrained()
texts = [path.read_text("utf-8")[:1500] for path in sorted(Path(sys.argv[1]).rglob("*.py"))][:150]
model.encode_documents(texts[:10])
start = time.perf_counter()
print(sum(map(len, model.encode_documents(texts))) / (time.perf_counter() - start))
"""
SETTINGS = {
    "spinning (the default)": {},
    "sleeping (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def tokens_per_second(settings: dict[str, str]) -> float:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", ENCODE, str(Path(__file__).parents[2])]
    done = subprocess.run(command, env=inherited | settings, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, dict[str, int]] = {}
    for name, busy in (("alone", 0), ("beside one busy loop a core", os.cpu_count() or 1)):
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            speeds = [{key: tokens_per_second(env) for key, env in SETTINGS.items()} for _ in range(arguments.repeats)]
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        result[name] = {key: round(statistics.median(speed[key] for speed in speeds)) for key in SETTINGS}
    write({"tokens_per_second": result, **provenance("torch")}, arguments.json)


if __name__ == "__main__":
    main()
