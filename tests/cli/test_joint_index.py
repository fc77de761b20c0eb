"""``--kind joint`` from end to end: indexed once by both heads, found by the one, ranked by the other."""

import json
from pathlib import Path

import pytest

from mbretrieve.index import plan
from tests.cli.conftest import Command, one_line
from tests.evaluation.sets import write_set
from tests.models import small


def test_a_folder_is_indexed_searched_and_described(
    indexed: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "EXACT_TOKENS", 100)
    late = json.loads(mbretrieve("search", "close the socket", "--mode", "semantic", "--json").out)
    result = mbretrieve("index", indexed, "--kind", "joint")
    assert result.status == 0
    assert "indexing again" in result.err
    joint = json.loads(mbretrieve("search", "close the socket", "--mode", "semantic", "--json").out)
    assert [hit["id"] for hit in joint][:3] == [hit["id"] for hit in late][:3]
    assert mbretrieve("search", "where is the configuration file read", "-k", 1, "-l").out == "app/config.py\n"
    record = json.loads(mbretrieve("status", "--json").out)
    assert (record["model"]["kind"], record["model"]["dim"], record["model"]["pooled_dim"]) == ("joint", 128, 256)
    assert (record["bits"], record["lists"]) == (2, [])
    assert "(joint, 128 dimensions a token, 256 a text)" in mbretrieve("status").out
    (indexed / "app" / "net.py").unlink()
    assert "1 gone" in mbretrieve("index", indexed).out
    assert "net.py" not in mbretrieve("search", "close the socket", "-l").out
    for command in ("compact", "verify"):
        assert mbretrieve(command).status == 0


def test_another_model_is_refused_in_one_line(repo: Path, tmp_path: Path, mbretrieve: Command) -> None:
    model = small.bare(tmp_path / "model")
    said = one_line(mbretrieve("index", repo, "--kind", "joint", "--model", model))
    assert "is a backbone without a head" in said
    assert "take it as colbert or dense" in said


def test_it_is_evaluated_and_measured(tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "EXACT_TOKENS", 1000)
    data, out = write_set(tmp_path / "library"), tmp_path / "out"
    assert mbretrieve("eval", "--suite", data, "--kind", "joint", "--exact", "--output", out).status == 0
    result = json.loads((out / "mini-v3-joint" / "library" / "library.json").read_text())
    assert result["provenance"]["system"]["model"]["pooled_dim"] == 256
    assert result["metrics"]["ndcg@10"] == pytest.approx(result["exact_metrics"]["ndcg@10"], abs=0.02)
    place = tmp_path / "index"
    assert mbretrieve("index", data / "corpus.jsonl", "--index", place, "--kind", "joint").status == 0
    queries, figures = data / "queries.jsonl", tmp_path / "figures.json"
    for exact in (), ("--exact-from", "model"):
        done = mbretrieve("bench", "index", "--index", place, "--queries", queries, "--json", figures, *exact)
        assert done.status == 0, done
        record = json.loads(figures.read_text())
        assert record["kind"] == "joint"
        assert record["default"]["rescore"] == plan.FETCHED
        assert record["default"]["recall@10"] > 0.9
