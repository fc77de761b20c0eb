"""Runs on disk as TREC run files: ``query Q0 document rank score tag``, what trec_eval and ir_measures read."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mbretrieve.errors import DataError
from mbretrieve.types import Run


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Write a run, each query's documents in trec_eval's order: float32 score, then document id, both descending.

    The format separates by spaces and cannot quote. Raises: DataError for an id or tag that is empty or holds space.
    """
    _check(tag, "run tag")
    for query, scores in run.items():
        _check(query, "query id")
        for document in scores:
            _check(document, "document id")
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for query, scores in run.items():
            ranked = sorted(((float(np.float32(score)), document) for document, score in scores.items()), reverse=True)
            for rank, (score, document) in enumerate(ranked, 1):
                file.write(f"{query} Q0 {document} {rank} {score!r} {tag}\n")
    partial.replace(path)


def read_run(path: Path) -> Run:
    """Read a run file. The rank column is ignored, as trec_eval does: the scores rank.

    Raises: DataError naming file and line where a line is malformed or a query has a document twice.
    """
    run: Run = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                query, _, document, _, text, _ = fields
                score = float(text)
            except ValueError:
                got = line.strip()[:80]
                raise DataError(f"{path}:{number}: expected query Q0 document rank score tag, got {got!r}") from None
            if math.isnan(score):
                raise DataError(f"{path}:{number}: the score is not a number; a run needs finite scores")
            scores = run.setdefault(query, {})
            if document in scores:
                raise DataError(f"{path}:{number}: document {document!r} comes twice for query {query!r}")
            scores[document] = score
    return run


def _check(word: str, what: str) -> None:
    if len(word.split()) != 1 or word.strip() != word:
        raise DataError(f"the {what} {word!r} cannot stand in a TREC run file: it is empty or holds whitespace")
