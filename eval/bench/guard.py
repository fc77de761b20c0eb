"""Whether anything became slower: what ``make bench`` runs.

``python eval/bench/guard.py compare`` measures the parts of ``guard_parts.py`` and fails where a ratio is more than 15%
below the one in ``eval/results/bench/guard.json``, twice in a row; ``update`` writes that file anew; ``show`` measures
fewer rounds, compares, and never fails. Every figure is a ratio of times of one run, in turns and on one thread: how
fast the machine is, how many cores it has and what else they do cancels out, but for what disturbs one kind of work
more than another; how a core is built does not: ratios of one kind of processor say little about those of another.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import processor, provenance

COMMITTED = Path(__file__).parents[1] / "results" / "bench" / "guard.json"
FALL = 0.15
"""A ratio may be so much lower than the committed one."""
COMPARED, SHOWN = (11, 6.0), (5, 1.5)
"""How many rounds of a part, and for how many seconds either side of it, at most."""
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
PACKAGES = ("torch", "faiss-cpu", "numpy", "tokenizers")


def falls(found: Mapping[str, float], committed: Mapping[str, float]) -> list[str]:
    """Say of each ratio what is wrong with it: lower than allowed, not measured, or measured for the first time."""
    wrong = []
    for name, before in committed.items():
        if name not in found:
            wrong.append(f"{name}: not measured, expected {before:.3g}")
        elif found[name] < (1 - FALL) * before:
            wrong.append(f"{name}: {found[name]:.3g}, was {before:.3g}: {1 - found[name] / before:.0%} less")
    wrong += [f"{name}: {value:.3g}, not committed yet" for name, value in found.items() if name not in committed]
    return wrong


def table(found: Mapping[str, float], committed: Mapping[str, float]) -> str:
    """Return a line a ratio: now, as committed, and the change."""
    lines = [f"{'ratio to what is steady (higher is better)':58} {'now':>8} {'committed':>10} {'change':>8}"]
    for name, value in found.items():
        before = committed.get(name)
        change = "" if before is None else f"{value / before - 1:+.0%}"
        lines.append(f"{name:58} {value:8.3f} {'' if before is None else f'{before:.3f}':>10} {change:>8}")
    return "\n".join(lines)


def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Measure every part: each ratio's values, round by round."""
    from guard_parts import PARTS, Limit

    found: dict[str, list[float]] = {}
    for part in PARTS:
        print(f"measuring: {part.__name__}", file=sys.stderr, flush=True)
        found |= part(Limit(rounds, seconds))
    return found


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each ratio's rounds."""
    return {name: statistics.median(values) for name, values in found.items()}


def record(found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return what is committed: medians, how far the rounds lie apart, and where they were measured."""
    ranges = {name: [round(min(values), 4), round(max(values), 4)] for name, values in found.items()}
    return {
        "what": "seconds of something steady over seconds of a part, medians of rounds in turns; higher is better",
        "ratios": {name: round(value, 4) for name, value in medians(found).items()},
        "ranges": ranges,
        "rounds": {name: len(values) for name, values in found.items()},
        **provenance(*PACKAGES),
    }


def main(words: list[str] | None = None) -> int:
    """Measure and compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "update", "show"])
    parser.add_argument("--committed", type=Path, default=COMMITTED, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    values = measure(*(SHOWN if arguments.what == "show" else COMPARED))
    if arguments.what == "update":
        arguments.committed.write_text(json.dumps(record(values), indent=1) + "\n", "utf-8")
    committed: dict[str, Any] = {"ratios": {}, "machine": {"processor": processor()}}
    if arguments.committed.exists():
        committed = json.loads(arguments.committed.read_text("utf-8"))
    found = medians(values)
    if arguments.what == "compare" and falls(found, committed["ratios"]):
        print("something fell; measuring once more: what became slower is slow both times", file=sys.stderr)
        again = medians(measure(*COMPARED))
        found = {name: max(value, again.get(name, value)) for name, value in found.items()}
    print(table(found, committed["ratios"]))
    if (where := committed["machine"]["processor"]) != processor():
        print(f"committed ratios are of another processor, {where}; this one is {processor()}")
    wrong = falls(found, committed["ratios"])
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong and arguments.what == "compare" else 0


if __name__ == "__main__":
    # Before torch and numpy are imported.
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict.fromkeys(ONE_THREAD, "1"))
    sys.exit(main())
