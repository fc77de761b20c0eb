"""How long MaxSim takes to rerank documents for one question, beside bare matrix products of the same sizes.

``python eval/bench/maxsim.py [--dim 128] [--rounds 15] [--json OUT]``. Documents are unit vectors at random laid end
to end; the question has 32 tokens. In each round every case runs once, right after the bare product of all its tokens
with the question, in float32 and in one piece, so that a busy moment of the machine hits both. Compressed are 2 bits a
dimension, as indexes have them. Memory is what is resident at the peak beyond the documents themselves.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import provenance as told
from machine import write
from numpy.typing import NDArray

from mbretrieve.bench.turns import take_turns
from mbretrieve.evaluation import provenance
from mbretrieve.index.codebooks import STAGES
from mbretrieve.scoring import CompressedTokens, maxsim_compressed, maxsim_ragged

QUERY_TOKENS, DIM, ROUNDS = 32, 128, 15
CENTROIDS = 4096
BITS = 2
WANTED_MS = 15.0


class Case(NamedTuple):
    """Documents to score: of so many tokens each, kept as a number format of torch's, or as codes."""

    lengths: list[int]
    kept: str


def ragged(documents: int, mean: int) -> list[int]:
    """Lengths from nearly nothing to twice the mean, always the same."""
    return np.random.default_rng(1).integers(8, 2 * mean - 7, documents).tolist()


CASES = {
    "1,000 documents of 300 tokens, float32": Case([300] * 1000, "float32"),
    "1,000 documents of 300 tokens, float16": Case([300] * 1000, "float16"),
    "1,000 documents of 300 tokens, bfloat16": Case([300] * 1000, "bfloat16"),
    "1,000 documents of 300 tokens, 2 bits": Case([300] * 1000, "codes"),
    "1,000 documents of 8 to 592 tokens, float32": Case(ragged(1000, 300), "float32"),
    "1,000 documents of 8 to 592 tokens, float16": Case(ragged(1000, 300), "float16"),
    "1,000 documents of 8 to 592 tokens, bfloat16": Case(ragged(1000, 300), "bfloat16"),
    "1,000 documents of 8 to 592 tokens, 2 bits": Case(ragged(1000, 300), "codes"),
    "40 documents of 8,192 tokens, float32": Case([8192] * 40, "float32"),
    "40 documents of 8,192 tokens, float16": Case([8192] * 40, "float16"),
    "40 documents of 8,192 tokens, bfloat16": Case([8192] * 40, "bfloat16"),
    "40 documents of 8,192 tokens, 2 bits": Case([8192] * 40, "codes"),
}


def unit(random: np.random.Generator, rows: int, dim: int) -> NDArray[np.float32]:
    """Return unit vectors in any direction."""
    drawn = random.standard_normal((rows, dim), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def tasks(case: Case, dim: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the bare product of a case's tokens with a question, and the scoring."""
    random = np.random.default_rng(0)
    tokens = torch.from_numpy(unit(random, sum(case.lengths), dim))
    query = torch.from_numpy(unit(random, QUERY_TOKENS, dim))
    offsets = torch.from_numpy(np.cumsum([0, *case.lengths], dtype=np.int64))
    out = torch.empty(len(tokens), QUERY_TOKENS)

    def bare() -> object:
        return torch.mm(tokens, query.T, out=out)

    if case.kept != "codes":
        kept = tokens.to(getattr(torch, case.kept))
        return bare, lambda: maxsim_ragged(query, kept, offsets)
    width, stages = STAGES[BITS]
    codes = CompressedTokens(
        unit(random, CENTROIDS, dim),
        random.standard_normal((stages, dim // width, 256, width), dtype=np.float32) / 16,
        random.integers(0, CENTROIDS, len(tokens), dtype=np.uint16),
        random.integers(0, 256, (len(tokens), stages * dim // width + 1), dtype=np.uint8),
    )
    coarse = query @ torch.from_numpy(codes.centroids).T  # a search knows them already
    return bare, lambda: maxsim_compressed([query], codes, offsets, coarse=coarse)


def measure(case: Case, dim: int, rounds: int) -> dict[str, Any]:
    """Time a case and its bare product in turns, after a run that shows the memory it takes."""
    bare, scoring = tasks(case, dim)
    scoring()
    provenance.forget_peak_memory()
    before = provenance.peak_memory()
    scoring()
    peak = provenance.peak_memory() - before
    took = take_turns({"bare": bare, "maxsim": scoring}, float("inf"), rounds)
    times = [one / other for one, other in zip(took["maxsim"], took["bare"], strict=True)]
    return {
        "ms": round(1000 * statistics.median(took["maxsim"]), 2),
        "range_ms": [round(1000 * value, 2) for value in (min(took["maxsim"]), max(took["maxsim"]))],
        "bare_product_ms": round(1000 * statistics.median(took["bare"]), 2),
        "times_the_bare_product": round(statistics.median(times), 2),
        "tokens": sum(case.lengths),
        "peak_mib": round(peak / 2**20, 1),
    }


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {name: measure(case, arguments.dim, arguments.rounds) for name, case in CASES.items()}
    record = {
        "what": f"MaxSim of one question of {QUERY_TOKENS} tokens with documents, dim {arguments.dim}",
        "wanted_ms": {"1,000 documents of 300 tokens": WANTED_MS},
        "cases": found,
        "threads": torch.get_num_threads(),
    }
    write(record | told("torch", "numpy"), arguments.json)


if __name__ == "__main__":
    main()
