"""Evaluation during training gives what the evaluation room gives for the same ranking."""

from pathlib import Path

import pytest
from models import small

from mbretrieve.errors import DataError
from mbretrieve.evaluation import metrics
from mbretrieve.models import load_encoder
from mbretrieve.training.config import EvaluationConfig
from mbretrieve.training.validation import evaluator
from mbretrieve.types import Kind

from .runs import TEXTS, beir


@pytest.mark.parametrize("kind", ["colbert", "dense"])
def test_a_set_scores_as_its_ranking_does(kind: Kind, tmp_path: Path) -> None:
    model = load_encoder(kind, small.pylate(tmp_path / "model"), device="cpu", dtype="float32")
    folder = beir(tmp_path / "beir")
    evaluate = evaluator(EvaluationConfig(sets=(str(folder),), metric="mrr@10"))
    assert evaluate is not None
    ranked = model.rerank([text[3:] for text in TEXTS], [TEXTS] * len(TEXTS))
    run = {f"q{n}": {f"d{place}": score for place, score in of_query} for n, of_query in enumerate(ranked)}
    qrels = {f"q{n}": {f"d{n}": 1} for n in range(len(TEXTS))}
    want = metrics.evaluate(run, qrels, ("mrr@10",)).means["mrr@10"]
    assert evaluate(model) == {"mrr@10": pytest.approx(want), "mrr@10 beir": pytest.approx(want)}


def test_no_sets_no_evaluation_and_a_set_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert evaluator(EvaluationConfig()) is None
    with pytest.raises(DataError, match="no folder"):
        evaluator(EvaluationConfig(sets=(str(tmp_path / "none"),)))
    one = evaluator(EvaluationConfig(sets=(str(beir(tmp_path / "beir")),), limit=1))
    assert one is not None
