"""``mbretrieve bench index``: what it writes is what the index does, and what bad input gets."""

import json
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from mbretrieve.index import open_index, plan
from tests.cli.conftest import Command, one_line
from tests.evaluation.sets import write_set

FIGURES = {"recall@10", "recall@100", "p50_ms", "p95_ms", "qps"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_set(tmp_path_factory.mktemp("sets") / "library", copies=2)
    queries = folder / "queries.jsonl"
    queries.write_text("".join(queries.read_text().splitlines(keepends=True)[::8]))
    return folder


@pytest.fixture
def index(library: Path, tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of the set's functions, packed at one bit a dimension: so little that something is lost."""
    monkeypatch.setattr(plan, "EXACT_TOKENS", 1000)
    place = tmp_path / "packed"
    assert mbretrieve("index", library / "corpus.jsonl", "--index", place, "--bits", 1).status == 0
    return place


def figures(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_the_figures_are_there_and_the_picture_too(
    index: Path, library: Path, tmp_path: Path, mbretrieve: Command
) -> None:
    out = tmp_path / "out.json"
    arguments = ("bench", "index", "--index", index, "--queries", library / "queries.jsonl", "--json", out)
    done = mbretrieve(*arguments)
    assert done.status == 0, done
    record = figures(out)
    status = json.loads(mbretrieve("status", "--index", index, "--json").out)
    for name in ("tokens", "documents", "bytes_per_token", "bits", "lists", "segments"):
        assert record[name] == status[name], name
    assert record["exact"]["p50_ms"] > 0
    assert record["exact"]["from"] == "stored"
    assert record["default"] in record["settings"]
    assert len(record["settings"]) == 9
    for setting in record["settings"]:
        assert {"probes", "tokens", "rescore"} | FIGURES <= setting.keys()
        assert 0.5 < setting["recall@10"] <= 1
        assert 0 < setting["p50_ms"] <= setting["p95_ms"]
        assert setting["qps"] > 0
        further = setting["effort@100"]
        assert all(further[part] >= setting[part] for part in ("probes", "tokens", "rescore"))
        assert setting["p50_ms@100"] > 0
    with open_index(index) as opened:
        for effort, k in ((record["default"], 10), (record["default"]["effort@100"], 100)):
            planned = opened.effort(k)
            assert [effort[part] for part in ("probes", "tokens", "rescore", "sure")] == list(astuple(planned))
    assert "k=100 at effort@100" in record["measured"]
    assert "effort, k=100" in done.out
    assert max(map(len, done.out.splitlines())) <= 120, "no figure is cut off"
    by_probes = sorted(record["settings"], key=lambda setting: setting["probes"])
    assert by_probes[0]["recall@100"] <= by_probes[-1]["recall@100"] == 1, "all lists probed: nothing is lost"
    assert record["build"]["tokens_per_second"] > 0
    assert record["build"]["threads"] == 1
    assert "packed again" in record["build"]["what"]
    assert record["build"]["tokens"] == record["tokens"]
    assert {"machine", "versions", "threads", "date"} <= record.keys()
    assert str(tmp_path) not in json.dumps(record), "no path of this machine"
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "the vectors in the index" in done.out
    assert "default" in done.out

    assert mbretrieve(*arguments, "--exact-from", "model").status == 0
    honest = figures(out)
    assert honest["exact"]["from"] == "model"
    assert honest["default"]["recall@10"] < record["default"]["recall@10"], "what packing loses is counted"


def test_an_index_that_is_exact_has_one_setting(indexed: Path, tmp_path: Path, mbretrieve: Command) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out.json"
    lines = ({"query": "read the configuration"}, {"text": "  "}, {"_id": "b", "text": "water the plants"})
    queries.write_text("\n".join(map(json.dumps, lines)))
    place = json.loads(mbretrieve("status", "--json").out)["index"]
    for kind in ("stored", "model"):
        arguments = ("--index", place, "--queries", queries, "--json", out, "--exact-from", kind)
        assert mbretrieve("bench", "index", *arguments).status == 0
        record = figures(out)
        assert record["settings"] == [record["default"]]
        assert (record["default"]["recall@10"], record["default"]["recall@100"]) == (1, 1)
        assert (record["queries"], record["bits"], record["bits_when_packed"]) == (2, None, 2)
        assert "written again as they came" in record["build"]["what"]
        assert 0 < record["build"]["tokens"] < record["tokens"], "one document less"


def test_without_matplotlib_the_figures_are_written(
    indexed: Path, tmp_path: Path, mbretrieve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out.json"
    queries.write_text('{"text": "read the configuration"}\n')
    place = json.loads(mbretrieve("status", "--json").out)["index"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = mbretrieve("bench", "index", "--index", place, "--queries", queries, "--json", out)
    assert done.status == 0
    assert 'pip install "mbretrieve[eval]"' in done.err
    assert done.err.count("\n") == 1
    assert figures(out)["documents"] > 0
    assert not out.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no query"),
        ('{"text": " "}\n', "has no query"),
        ('{"text": "a"}\nnot json\n', "queries.jsonl:2: not a line of JSON"),
        ('{"text": 7}\n', 'queries.jsonl:1: expected an object with a string under "text" or "query"'),
        ("[1]\n", "queries.jsonl:1: expected a JSON object"),
        ('{"vector": 7}\n', 'queries.jsonl:1: "vector": expected a list of numbers'),
        ('{"vector": [1, null]}\n', 'queries.jsonl:1: "vector": expected a list of numbers'),
        ('{"vectors": [1, 2]}\n', 'queries.jsonl:1: "vectors": expected a list of lists of numbers'),
        ('{"vectors": [[1], [1, 2]]}\n', 'queries.jsonl:1: "vectors": expected a list of lists of numbers'),
        ('{"vectors": []}\n', 'queries.jsonl:1: "vectors": expected a list of lists of numbers'),
        (None, "cannot be read"),
    ],
)
def test_queries_that_are_none_are_one_line(text: str | None, said: str, tmp_path: Path, mbretrieve: Command) -> None:
    queries = tmp_path / "queries.jsonl"
    if text is not None:
        queries.write_text(text)
    error = one_line(mbretrieve("bench", "index", "--index", tmp_path / "none", "--queries", queries))
    assert said in error


def test_an_index_or_a_folder_that_is_not_there_is_one_line(tmp_path: Path, mbretrieve: Command) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"text": "a"}\n')
    arguments = ("bench", "index", "--index", tmp_path / "none", "--queries", queries)
    assert "there is no index" in one_line(mbretrieve(*arguments))
    assert "is no folder" in one_line(mbretrieve(*arguments, "--json", tmp_path / "no" / "out.json"))


def test_figures_that_could_not_be_written_are_not_measured(indexed: Path, tmp_path: Path, mbretrieve: Command) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"text": "a"}\n')
    (tmp_path / "taken.png").mkdir()
    place = json.loads(mbretrieve("status", "--json").out)["index"]
    for bench in (("index", "--index", place, "--queries", queries), ("encode",)):
        for name, said in (
            (".", "is a folder"),
            ("out.png", "the picture goes there; name the figures otherwise, as in out.json"),
            ("out.PNG", "the picture goes there"),
            ("taken.json", "taken.png is a folder, but the picture goes there"),
        ):
            assert said in one_line(mbretrieve("bench", *bench, "--json", tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "queries.jsonl", "taken.png"]
