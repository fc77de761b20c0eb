"""Choose how meaning and words are joined: nDCG@10 of every candidate fusion on dev queries, then on test queries.

``python eval/bench/fusion.py --data-dir FOLDER_OF_BEIR_SETS --json OUT``. The choice looks at the CHOOSE splits alone.
"""

import argparse
import csv
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from machine import provenance, write

from mbretrieve import ColBERT, DenseEncoder, Document, Retriever
from mbretrieve.evaluation.metrics import evaluate
from mbretrieve.index import fusion

CHOOSE = {"cosqa": "dev", "csn-python-mini": "train", "scifact": "train"}
REPORT = {"cosqa": "test", "csn-python-mini": "test", "scifact": "test", "nl2bash": "test", "csn-cloze": "test"}
WEIGHTS = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]
MOST_QUERIES = 1000
DEPTH = 200


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def judgements(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    with path.open(encoding="utf-8") as lines:
        for query, document, relevance in list(csv.reader(lines, delimiter="\t"))[1:]:
            qrels[query][document] = int(float(relevance))
    return dict(qrels)


def ndcg(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> float:
    return evaluate(run, qrels, ["ndcg@10"]).means["ndcg@10"]


def pools(retriever: Retriever, queries: dict[str, str]) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Return for each query the scores by meaning and by words of the candidates of both."""
    both: list[tuple[Mapping[int, float], Mapping[int, float]]] = []

    def keep(meaning: Mapping[int, float], words: Mapping[int, float]) -> dict[int, float]:
        both.append((meaning, words))
        return {content: -place for place, content in enumerate(meaning)}  # so that a match says which of them it is

    texts = list(queries.values())
    found = retriever.index.search_both(retriever.model.encode_queries(texts), texts, 2 * DEPTH, keep, depth=DEPTH)
    scores = {}
    for query, (meaning, words), matches in zip(queries, both, found, strict=True):
        contents = list(meaning)
        ids = {match.id: contents[-int(match.score)] for match in matches}
        scores[query] = (
            {id: meaning[content] for id, content in ids.items()},
            {id: words[content] for id, content in ids.items() if content in words},
        )
    return scores


def plain(semantic: dict[str, float], lexical: dict[str, float], weight: float) -> dict[str, float]:
    """A weighted sum in which words count the same for every query."""
    best = max(semantic.values(), default=0.0) or 1.0
    return {id: s / best + weight * lexical.get(id, 0.0) / fusion.LEXICAL_UNIT for id, s in semantic.items()}


def by_best(semantic: dict[str, float], lexical: dict[str, float], weight: float) -> dict[str, float]:
    """The same, but the query's best document by words has 1, however well its words match."""
    best = max(lexical.values(), default=0.0) or 1.0
    return plain(semantic, {id: fusion.LEXICAL_UNIT * s / best for id, s in lexical.items()}, weight)


JOINS = {
    "sum": fusion.weighted_sum,
    "plain sum": plain,
    "sum by best": by_best,
    "rrf": fusion.reciprocal_rank_fusion,
}


def joined(pool: dict, how: str, weight: float) -> dict[str, dict[str, float]]:
    join = JOINS[how]
    return {query: join(*scores, weight) for query, scores in pool.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--kind", choices=["colbert", "dense"], default="colbert")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kind = ColBERT if arguments.kind == "colbert" else DenseEncoder
    model = kind.from_pretrained()
    scores: dict[str, dict[str, dict[str, float]]] = {"choose": {}, "report": {}}
    for name in sorted({*CHOOSE, *REPORT}):
        folder = arguments.data_dir / name
        queries = {row["_id"]: row["text"] for row in rows(folder / "queries.jsonl")}
        with tempfile.TemporaryDirectory() as place, Retriever.create(f"{place}/index", model) as retriever:
            retriever.add(
                Document(row["_id"], row["text"], context=row.get("title", "")) for row in rows(folder / "corpus.jsonl")
            )
            for use, split in (("choose", CHOOSE.get(name)), ("report", REPORT.get(name))):
                if split is None:
                    continue
                qrels = judgements(folder / "qrels" / f"{split}.tsv")
                rng = np.random.default_rng(0)
                kept = sorted(qrels)
                kept = sorted(rng.choice(kept, min(len(kept), MOST_QUERIES), replace=False).tolist())
                qrels = {query: qrels[query] for query in kept}
                pool = pools(retriever, {query: queries[query] for query in kept})
                table = {f"{how} {w}": ndcg(joined(pool, how, w), qrels) for how in JOINS for w in WEIGHTS}
                table["lexical"] = ndcg({query: words for query, (_, words) in pool.items()}, qrels)
                scores[use][f"{name}/{split}"] = table
                print(f"{name}/{split} ({len(kept)} queries)", {k: round(v, 4) for k, v in table.items()}, flush=True)
    means = {how: float(np.mean([table[how] for table in scores["choose"].values()])) for how in table}
    best = max(means, key=lambda how: means[how])
    print("\nmean over the choosing splits:", {how: round(value, 4) for how, value in means.items()})
    print("chosen:", best, {name: round(table[best], 4) for name, table in scores["report"].items()})
    rounded = {
        use: {name: {how: round(value, 4) for how, value in table.items()} for name, table in tables.items()}
        for use, tables in scores.items()
    }
    means = {how: round(value, 4) for how, value in means.items()}
    kind_of = {"kind": arguments.kind, "ndcg@10": rounded, "mean_over_choosing_splits": means, "chosen": best}
    write(kind_of | provenance("torch"), arguments.json)


if __name__ == "__main__":
    main()
