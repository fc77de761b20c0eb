"""Time `metrics.evaluate` beside pytrec_eval on the same runs, in one process, in alternation.

    python eval/bench/metrics.py [--queries 100000] [--depth 1000] [--output eval/results/metrics.json]

A run of 100,000 queries at depth 1,000 does not fit in memory as dictionaries, so both score the same slices of 500
queries and their seconds are summed; making the slices is not counted. Judgements are 11 to 40 a query, graded 0 to 3.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytrec_eval

from mbretrieve.evaluation.metrics import evaluate

SLICE = 500
OURS = ["ndcg@10", "map@100", "recall@100", "precision@10"]
THEIRS = {"ndcg_cut.10", "map_cut.100", "recall.100", "P.10"}
KEYS = {"ndcg@10": "ndcg_cut_10", "map@100": "map_cut_100", "recall@100": "recall_100", "precision@10": "P_10"}


def main() -> None:
    """Measure, print one JSON object, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--depth", type=int, default=1_000)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    pool = np.array([f"d{number}" for number in range(50_000)], dtype=object)
    seconds = {"mbretrieve": 0.0, "pytrec_eval": 0.0}
    gap = 0.0
    for start in range(0, arguments.queries, SLICE):
        size = min(SLICE, arguments.queries - start)
        run, qrels = {}, {}
        for query in range(size):
            found = pool[rng.choice(len(pool), arguments.depth, replace=False)].tolist()
            scores = np.round(rng.normal(size=arguments.depth), 3).tolist()
            run[f"q{query}"] = dict(zip(found, scores, strict=True))
            judged = found[: rng.integers(1, 31)] + pool[rng.integers(0, len(pool), 10)].tolist()
            qrels[f"q{query}"] = {
                document: int(grade) for document, grade in zip(judged, rng.integers(0, 4, 40), strict=False)
            }
            qrels[f"q{query}"][found[0]] = 1
        began = time.perf_counter()
        ours = evaluate(run, qrels, OURS)
        seconds["mbretrieve"] += time.perf_counter() - began
        began = time.perf_counter()
        theirs = pytrec_eval.RelevanceEvaluator(qrels, THEIRS).evaluate(run)
        seconds["pytrec_eval"] += time.perf_counter() - began
        for name, key in KEYS.items():
            gap = max(gap, *(abs(value - theirs[query][key]) for query, value in ours.per_query(name).items()))
    result = {
        "queries": arguments.queries,
        "depth": arguments.depth,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "ratio": round(seconds["pytrec_eval"] / seconds["mbretrieve"], 2),
        "largest_difference": gap,
        "versions": {name: version(name) for name in ("numpy", "pytrec_eval-terrier")},
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
