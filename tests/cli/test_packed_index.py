"""``--bits`` and ``--memory`` of ``index``, and what ``status`` says of an index that is large enough to be packed."""

import json
from pathlib import Path

import pytest

from mbretrieve import retriever
from mbretrieve.index import plan
from tests.cli.conftest import Command, one_line


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index is large enough."""
    monkeypatch.setattr(plan, "EXACT_TOKENS", 100)
    monkeypatch.setattr(plan, "RAW_TOKENS", 10)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_are_kept_and_told(repo: Path, mbretrieve: Command, bits: int) -> None:
    assert mbretrieve("index", repo, "--bits", bits, "--memory", "64MiB").status == 0
    record = json.loads(mbretrieve("status", "--json").out)
    assert record["bits"] == bits
    [lists] = record["lists"]
    assert 0 < lists < record["tokens"]
    assert record["segments"] == 1
    assert 0 < record["bytes_per_token"] <= record["bytes"] / record["tokens"]
    shown = mbretrieve("status").out
    for line in (
        f"bits:       {bits} a dimension",
        f"lists:      {lists}",
        f"vectors {record['bytes_per_token']} bytes per",
    ):
        assert line in shown
    found = json.loads(mbretrieve("search", "read the configuration file", "-k", 1, "--json").out)
    assert found[0]["metadata"]["name"] == "read_config"


def test_other_bits_are_refused_and_nothing_is_lost(repo: Path, mbretrieve: Command) -> None:
    assert mbretrieve("index", repo, "--bits", 4).status == 0
    before = json.loads(mbretrieve("status", "--json").out)
    for arguments in ((), ("--model", Path(retriever.__file__).parent / "assets" / "mini-v3")):
        error = one_line(mbretrieve("index", repo, "--bits", 2, *arguments))
        assert "has 4 bits a dimension, not 2 bits: leave --bits out" in error
    assert json.loads(mbretrieve("status", "--json").out) == before
    assert mbretrieve("index", repo, "--bits", 4).status == 0
    assert mbretrieve("index", repo).status == 0


def test_a_dense_index_has_no_bits(repo: Path, mbretrieve: Command) -> None:
    assert "dense index" in one_line(mbretrieve("index", repo, "--kind", "dense", "--bits", 2))
    assert mbretrieve("index", repo, "--kind", "dense").status == 0
    assert "keeps vectors as they are, not 2 bits" in one_line(mbretrieve("index", repo, "--bits", 2))
    record = json.loads(mbretrieve("status", "--json").out)
    assert (record["bits"], record["lists"]) == (None, [])
    assert "lists:      none" in mbretrieve("status").out


def test_another_kind_has_bits_of_its_own(repo: Path, mbretrieve: Command) -> None:
    assert mbretrieve("index", repo, "--kind", "dense").status == 0
    assert mbretrieve("index", repo, "--kind", "colbert", "--bits", 8).status == 0
    assert json.loads(mbretrieve("status", "--json").out)["bits"] == 8
    assert mbretrieve("index", repo, "--kind", "dense").status == 0
    assert json.loads(mbretrieve("status", "--json").out)["bits"] is None


@pytest.mark.parametrize("size", ["much", "2", "1KiB"])
def test_memory_that_is_no_size_is_one_line(repo: Path, mbretrieve: Command, size: str) -> None:
    assert f"--memory {size}: " in one_line(mbretrieve("index", repo, "--memory", size))


def test_a_build_ends_with_one_segment(repo: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COMMIT_TOKENS": 50, "BATCH_TOKENS": 50}.items():
        monkeypatch.setattr(retriever, name, value)
    assert mbretrieve("index", repo).status == 0
    assert json.loads(mbretrieve("status", "--json").out)["segments"] > 1
    monkeypatch.setattr(retriever, "SETTLE_TOKENS", 1)
    assert mbretrieve("delete", "--all", "--yes").status == 0
    assert mbretrieve("index", repo).status == 0
    assert json.loads(mbretrieve("status", "--json").out)["segments"] == 1
    (repo / "app/net.py").write_text("pass\n")
    assert mbretrieve("index", repo).status == 0
    assert json.loads(mbretrieve("status", "--json").out)["segments"] == 2, "a small change copies nothing"
    assert mbretrieve("verify").status == 0
