"""Evaluation during training: exact search over folders in BEIR layout, encoded by the model as it is now.

No index is built, so that nothing but the model is measured; documents are cut at the model's length. Sets are read
once and kept: they are for development, not whole benchmarks.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mbretrieve.errors import DataError
from mbretrieve.evaluation import datasets, exact, metrics
from mbretrieve.evaluation.datasets import TaskData
from mbretrieve.evaluation.suites import Part
from mbretrieve.training.config import EvaluationConfig

_AT_ONCE = 1024  # documents
_DEPTH = 100


def evaluator(config: EvaluationConfig) -> Callable[[Any], dict[str, float]] | None:
    """Return what evaluates an encoder as a recipe says: the metric's mean over the sets first, then each set's.

    None if the recipe has no sets. Raises: DataError for a set that cannot be read; MissingExtraError.
    """
    if not config.sets:
        return None
    metrics.parse_metric(config.metric)
    sets = {Path(folder).name: _load(Path(folder).expanduser(), config) for folder in config.sets}
    if len(sets) < len(config.sets):
        raise DataError("two folders of evaluation.sets have one name: rename one")

    def evaluate(model: Any) -> dict[str, float]:
        found = {name: _score(model, data, config.metric) for name, data in sets.items()}
        mean = sum(found.values()) / len(found)
        return {config.metric: mean} | {f"{config.metric} {name}": value for name, value in found.items()}

    return evaluate


def _load(folder: Path, config: EvaluationConfig) -> TaskData:
    if not folder.is_dir():
        raise DataError(f"evaluation.sets names {folder}, which is no folder: expected one in BEIR layout")
    data = datasets.load(Part(str(folder.resolve()), split=config.split), folder)
    queries = dict(islice(data.queries.items(), config.limit))
    return replace(data, queries=queries, qrels={name: data.qrels[name] for name in queries})


def _score(model: Any, data: TaskData, metric: str) -> float:
    queries = list(data.queries.items())
    encoded = model.encode_queries([text for _, text in queries])
    rows = [query.reshape(-1, model.dim) for query in encoded]
    rankings = exact.search(model.kind, rows, exact.grouped(_documents(model, data)), _DEPTH)
    run = {name: dict(ranking) for (name, _), ranking in zip(queries, rankings, strict=True)}
    return metrics.evaluate(run, data.qrels, (metric,)).means[metric]


def _documents(model: Any, data: TaskData) -> Iterator[tuple[str, list[Any]]]:
    for first in range(0, len(data.corpus), _AT_ONCE):
        some = data.corpus[first : first + _AT_ONCE]
        encoded = model.encode_documents([document.text for document in some])
        for document, rows in zip(some, encoded, strict=True):
            yield document.id, [rows.reshape(-1, model.dim)]
