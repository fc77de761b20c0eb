"""Metrics against trec_eval's own code (pytrec_eval), ir_measures, and values worked out by hand."""

import math
from collections import defaultdict

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from mbretrieve.errors import DataError
from mbretrieve.evaluation.metrics import agreement, evaluate, without_own
from mbretrieve.types import Qrels, Run

CUTS = (1, 3, 10, 100)
# ours -> pytrec_eval's measure and the key of its answer
PYTREC = {
    **{f"ndcg@{k}": (f"ndcg_cut.{k}", f"ndcg_cut_{k}") for k in CUTS},
    **{f"map@{k}": (f"map_cut.{k}", f"map_cut_{k}") for k in CUTS},
    **{f"recall@{k}": (f"recall.{k}", f"recall_{k}") for k in CUTS},
    **{f"precision@{k}": (f"P.{k}", f"P_{k}") for k in CUTS},
    **{f"hit@{k}": (f"success.{k}", f"success_{k}") for k in CUTS},
    "mrr@100000": ("recip_rank", "recip_rank"),
}
IR_MEASURES = {
    **{f"ndcg@{k}": nDCG @ k for k in CUTS},
    **{f"map@{k}": AP @ k for k in CUTS},
    **{f"recall@{k}": R @ k for k in CUTS},
    **{f"precision@{k}": P @ k for k in CUTS},
    **{f"hit@{k}": Success @ k for k in CUTS},
    "mrr@100000": RR,
}


def random_case(seed: int, queries: int = 40) -> tuple[Run, Qrels]:
    """Runs with ties (few distinct scores), gaps (queries not in the run, judged documents not found), graded and
    negative judgements, and float64 scores that only float32 makes equal."""
    rng = np.random.default_rng(seed)
    run: Run = {}
    qrels: Qrels = {}
    for query in range(queries):
        pool = [f"d{number}" for number in rng.permutation(400)]
        found = pool[: rng.integers(0, 250)]
        scores = rng.integers(0, 30, len(found)) / 7 if query % 2 else rng.normal(size=len(found))
        if query % 5 == 0:
            scores = 16777216.0 + np.arange(len(found)) / 8  # neighbours collapse in float32
        if found and query % 7:
            run[f"q{query}"] = dict(zip(found, scores.tolist(), strict=True))
        judged = rng.permutation(pool)[: rng.integers(1, 40)].tolist()
        qrels[f"q{query}"] = {document: int(rng.integers(-2, 4)) for document in judged}
    return run, qrels


def with_a_positive(qrels: Qrels) -> Qrels:
    """The queries that count. pytrec_eval crashes (a segmentation fault) on one whose judgements are all -2."""
    return {query: judgements for query, judgements in qrels.items() if max(judgements.values()) > 0}


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_pytrec_eval(seed: int) -> None:
    run, qrels = random_case(seed)
    ours = evaluate(run, qrels, list(PYTREC))
    counted = with_a_positive(qrels)
    assert ours.unjudged == len(qrels) - len(counted)
    theirs = pytrec_eval.RelevanceEvaluator(counted, {measure for measure, _ in PYTREC.values()}).evaluate(run)
    assert ours.missing == len([query for query in ours.queries if query not in run]) > 0
    for name, (_, key) in PYTREC.items():
        for query, value in ours.per_query(name).items():
            expected = theirs[query][key] if query in run else 0.0  # it leaves out what the run lacks
            assert value == pytest.approx(expected, abs=1e-4), (name, query)


@pytest.mark.parametrize("k", CUTS)
def test_a_cut_mrr_is_the_uncut_one_or_zero(k: int) -> None:
    """Neither oracle cuts it with trec_eval's ties: ir_measures' RR@k ranks in float64, by another provider."""
    run, qrels = random_case(7)
    ours = evaluate(run, qrels, ["mrr@100000", f"mrr@{k}"])
    whole = ours.values["mrr@100000"]
    assert ours.values[f"mrr@{k}"].tolist() == np.where(whole >= 1 / k, whole, 0.0).tolist()


@pytest.mark.parametrize("seed", range(20, 26))
def test_equal_to_ir_measures(seed: int) -> None:
    run, qrels = random_case(seed)
    ours = evaluate(run, qrels, list(IR_MEASURES))
    theirs: dict[tuple[str, str], float] = defaultdict(float)
    for metric in ir_measures.iter_calc(list(IR_MEASURES.values()), with_a_positive(qrels), run):
        theirs[str(metric.measure), metric.query_id] = metric.value
    for name, measure in IR_MEASURES.items():
        for query, value in ours.per_query(name).items():
            assert value == pytest.approx(theirs[str(measure), query], abs=1e-4), (name, query)


ids = st.text(alphabet="ab~éß漢😀", min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.dictionaries(ids, st.integers(0, 2).map(float), min_size=1, max_size=12),
    judgements=st.dictionaries(ids, st.integers(-1, 3), min_size=1, max_size=8),
)
def test_ties_break_by_bytes_as_trec_eval_does(scores: dict[str, float], judgements: dict[str, int]) -> None:
    ours = evaluate({"q": scores}, {"q": judgements}, ["ndcg@3", "map@3", "recall@3"])
    if max(judgements.values()) <= 0:
        assert ours.unjudged == 1
        return
    theirs = pytrec_eval.RelevanceEvaluator({"q": judgements}, {"ndcg_cut.3", "map_cut.3", "recall.3"})
    expected = theirs.evaluate({"q": scores})["q"]
    assert ours.means["ndcg@3"] == pytest.approx(expected["ndcg_cut_3"], abs=1e-6)
    assert ours.means["map@3"] == pytest.approx(expected["map_cut_3"], abs=1e-6)
    assert ours.means["recall@3"] == pytest.approx(expected["recall_3"], abs=1e-6)


def test_known_answers() -> None:
    run = {"q": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}}
    qrels = {"q": {"b": 1, "d": 3, "z": 2, "a": -1}}
    means = evaluate(
        run, qrels, ["ndcg@4", "mrr@4", "mrr@1", "map@4", "recall@2", "precision@4", "hit@1", "hit@2"]
    ).means
    gain = 1 / math.log2(3) + 3 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert means == pytest.approx(
        {
            "ndcg@4": gain / ideal,
            "mrr@4": 0.5,
            "mrr@1": 0.0,
            "map@4": (1 / 2 + 2 / 4) / 3,
            "recall@2": 1 / 3,
            "precision@4": 0.5,
            "hit@1": 0.0,
            "hit@2": 1.0,
        }
    )


@pytest.mark.parametrize(
    ("run", "qrels", "mean", "unjudged", "missing"),
    [
        ({}, {"q": {"a": 1}}, 0.0, 0, 1),
        ({"q": {}}, {"q": {"a": 1}}, 0.0, 0, 0),
        ({"q": {"a": 1.0}}, {"q": {"a": 0}}, 0.0, 1, 0),
        ({"q": {"a": 1.0}, "extra": {"a": 1.0}}, {"q": {"a": 1}, "p": {"a": -1}}, 1.0, 1, 0),
        ({"q": {"a": 1.0}}, {"q": {"a": 1}, "p": {"a": 1}}, 0.5, 0, 1),
        ({}, {}, 0.0, 0, 0),
        ({"q": {"a": math.inf, "b": 1e300}}, {"q": {"b": 1}}, 1.0, 0, 0),  # both infinite as float32: b > a
    ],
)
def test_who_is_counted(run: Run, qrels: Qrels, mean: float, unjudged: int, missing: int) -> None:
    result = evaluate(run, qrels, ["ndcg@10"])
    assert (result.means["ndcg@10"], result.unjudged, result.missing) == (mean, unjudged, missing)


@pytest.mark.parametrize(("name", "hint"), [("nDCG@10", "ndcg@10"), ("ndgc@10", "ndcg@10"), ("rekall@5", "recall@10")])
def test_unknown_metric_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(DataError, match=f"did you mean {hint}"):
        evaluate({}, {}, [name])


def test_a_cut_off_of_zero_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate({}, {}, ["ndcg@0"])


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="'q' has a score that is not a number"):
        evaluate({"q": {"a": math.nan, "b": 1.0}}, {"q": {"b": 1}})


def test_a_querys_own_document_is_dropped() -> None:
    run = {"a": {"a": 9.0, "b": 1.0}, "c": {"b": 1.0}, "d": {"d": 1.0}}
    assert without_own(run) == {"a": {"b": 1.0}, "c": {"b": 1.0}, "d": {}}
    assert run["a"] == {"a": 9.0, "b": 1.0}


@pytest.mark.parametrize(
    ("found", "share"),
    [
        ({"q": {"a": 3.0, "b": 2.0}}, 1.0),
        ({"q": {"b": 2.0, "z": 9.0}}, 0.5),
        ({"q": {"a": 3.0, "c": 2.0}}, 1.0),  # c ties with b in exact search
        ({"q": {"b": 2.0, "c": 2.0, "a": 1.0}}, 1.0),  # only the first k count, and they are as good
        ({"q": {}}, 0.0),
        ({}, 0.0),
    ],
)
def test_agreement_with_exact_search(found: Run, share: float) -> None:
    assert agreement(found, {"q": {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}, "empty": {}}, k=2) == share


def test_agreement_of_a_run_with_itself_is_whole() -> None:
    run, _ = random_case(3)
    assert agreement(run, run, k=10) == 1.0
    assert agreement({}, {}, k=10) == 1.0
    with pytest.raises(ValueError, match="at least 1"):
        agreement(run, run, k=0)
