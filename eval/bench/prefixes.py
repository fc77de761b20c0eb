"""What late interaction keeps with shorter vectors, and of longer documents: nDCG@10 by exact search.

``python eval/bench/prefixes.py --data-dir FOLDER_OF_BEIR_SETS [--model NAME] --json OUT``

By dims: each vector's first so many numbers, scaled to unit length again (Matryoshka). By length: the queries of a set
parted by how many tokens their relevant document has, in a search of the whole set.
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

from fusion import judgements, rows
from machine import provenance, write

from mbretrieve import ColBERT, Document, Retriever
from mbretrieve.cutting import passage
from mbretrieve.evaluation.metrics import evaluate

DIMS = (128, 96, 64, 32)
BOUNDS = (0, 192, 300, 512)
Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]


def search(folder: Path, model: ColBERT) -> tuple[Run, Qrels]:
    """Search a set for its test queries, exactly."""
    qrels = judgements(folder / "qrels" / "test.tsv")
    asked = {row["_id"]: row["text"] for row in rows(folder / "queries.jsonl") if row["_id"] in qrels}
    with tempfile.TemporaryDirectory() as place, Retriever.create(f"{place}/index", model) as retriever:
        retriever.add(
            Document(row["_id"], row["text"], context=row.get("title", "")) for row in rows(folder / "corpus.jsonl")
        )
        found = retriever.search(list(asked.values()), 10, mode="semantic", exact=True)
    return {query: {hit.id: hit.score for hit in hits} for query, hits in zip(asked, found, strict=True)}, qrels


def ndcg(run: Run, qrels: Qrels) -> float:
    return round(evaluate(run, qrels, ["ndcg@10"]).means["ndcg@10"], 4)


def by_length(folder: Path, model: ColBERT) -> dict[str, Any]:
    """Part the queries by the tokens of their relevant documents."""
    run, qrels = search(folder, model)
    corpus = {row["_id"]: passage(row.get("title", ""), row["text"]) for row in rows(folder / "corpus.jsonl")}
    counts = dict(zip(corpus, map(len, model.token_offsets(list(corpus.values()))), strict=True))
    parts: dict[str, Any] = {}
    for least, most in itertools.pairwise(BOUNDS):
        some = {query: of for query, of in qrels.items() if all(least < counts[document] <= most for document in of)}
        figures = {"queries": len(some), "ndcg@10": ndcg({query: run[query] for query in some}, some)}
        parts[f"{least + 1} to {most} tokens"] = figures
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="cosqa,nl2bash,scifact")
    parser.add_argument("--by-length", default="csn-cloze")
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    by_dim: dict[str, dict[int, float]] = {task: {} for task in arguments.tasks.split(",")}
    for dim in DIMS:
        model = ColBERT.from_pretrained(arguments.model, dim=dim)
        for task, figures in by_dim.items():
            figures[dim] = ndcg(*search(arguments.data_dir / task, model))
            print(task, dim, figures[dim], flush=True)
    model = ColBERT.from_pretrained(arguments.model)
    lengths = {arguments.by_length: by_length(arguments.data_dir / arguments.by_length, model)}
    found = {"model": model.identity.name, "ndcg@10 by dims": by_dim, "by length of the relevant document": lengths}
    write(found | provenance("torch"), arguments.json)


if __name__ == "__main__":
    main()
