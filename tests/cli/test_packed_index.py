"""``--bits`` and ``--memory`` of ``index``, and what ``status`` says of an index that is large enough to be packed."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mbretrieve import retriever
from mbretrieve.index import base, plan, store
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
def test_memory_that_is_no_size_is_one_line(indexed: Path, mbretrieve: Command, size: str) -> None:
    for command in ("index", "compact", "repair"):
        assert f"--memory {size}: " in one_line(mbretrieve(command, indexed, "--memory", size))


def test_what_works_in_less_gives_the_same(repo: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Told(store.Writer):
        def __init__(self, index: Path, memory: int = store.MEMORY) -> None:
            told.append(memory)
            super().__init__(index, memory)

    assert mbretrieve("index", repo).status == 0
    monkeypatch.setattr(base, "Writer", Told)
    assert mbretrieve("compact", "--memory", "64MiB").status == 0
    assert mbretrieve("compact", "--retrain", "--memory", "65MiB").status == 0
    assert mbretrieve("compact").status == 0
    assert mbretrieve("repair", "--memory", "64MiB").status == 0
    assert told == [64 << 20, 65 << 20, store.MEMORY]
    assert mbretrieve("verify").status == 0


class Shown:
    """Bars that write down what they are told."""

    phases: ClassVar[list[list[Any]]] = []

    def start(self, description: str, total: int | None) -> None:
        self.phases.append([description, total, 0, 0])

    def advance(self, steps: int, *, tokens: int = 0) -> None:
        self.phases[-1][2] += steps
        self.phases[-1][3] += tokens

    def finish(self) -> None:
        self.phases.append(["finish", None, 0, 0])


def test_compact_says_how_far_it_is(repo: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mbretrieve("index", repo).status == 0
    (repo / "app/net.py").write_text("import socket\n\n\ndef connect():\n    return socket.create_connection()\n")
    assert mbretrieve("index", repo).status == 0
    record = json.loads(mbretrieve("status", "--json").out)
    monkeypatch.setattr("mbretrieve.cli.compact.progress_bars", Shown)
    monkeypatch.setattr(Shown, "phases", [])
    everything = (record["windows"], record["windows"], record["tokens"])
    assert mbretrieve("compact").status == 0
    assert ["merging", *everything] in Shown.phases
    assert Shown.phases[-1][0] == "finish"
    Shown.phases.clear()
    assert mbretrieve("compact", "--retrain").status == 0
    assert [phase[0] for phase in Shown.phases] == ["training a codebook", "packing again", "finish"]
    assert Shown.phases[1] == ["packing again", *everything]


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


def test_how_far_to_look_can_be_said(repo: Path, mbretrieve: Command) -> None:
    assert mbretrieve("index", repo, "--bits", 8).status == 0

    def found(*options: str) -> dict[str, float]:
        done = mbretrieve("search", "read the configuration file", "--json", *options)
        assert done.status == 0, done
        return {hit["id"]: hit["score"] for hit in json.loads(done.out)}

    for mode in ("semantic", "hybrid"):
        everything = found("--mode", mode, "--exact")
        assert found("--mode", mode, "--effort", "1000,100000,1000") == pytest.approx(everything)
        assert len(everything) == json.loads(mbretrieve("status", "--json").out)["documents"]
    assert len(found("--mode", "semantic", "--effort", "1,1,1")) == 1, "one window is all that was asked for"
    for effort in ("1,2", "1,2,3,4", "0,1,1", "1,x,1", "-1,1,1"):
        assert f"--effort {effort}: expected three numbers" in one_line(mbretrieve("search", "q", "--effort", effort))
    assert "expected one of them" in one_line(mbretrieve("search", "q", "--exact", "--effort", "1,1,1"))
