"""Each format reads rows of the schema that its data set has, from files and through Hugging Face's ``datasets``."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.training.config import SourceConfig
from mbretrieve.training.data import Batches, Example

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(count: int, **source: Any) -> list[Example]:
    """Read one batch, in the order of its queries and texts."""
    (batch,) = islice(Batches([SourceConfig(name="s", **source)], count, seed=1), 1)
    return sorted(batch, key=lambda example: (example.query, example.positive))


def hub(folder: Path, configs: dict[str, tuple[str, str]]) -> None:
    """Write a dataset card that names each configuration's split and file, as on the Hub."""
    card = ["---", "configs:"]
    for config, (split, file) in configs.items():
        card += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {file}"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    rows = [{"query": f"q{at}", "positive": f"p{at}", "negative": f"n{at}"} for at in range(6)]
    lines(tmp_path / "a.jsonl", rows)
    parquet(tmp_path / "a.parquet", rows)
    expected = [Example(f"q{at}", f"p{at}", (f"n{at}",), None, "s") for at in range(6)]
    assert read(6, path=str(tmp_path / "a.jsonl"), format="triples") == expected
    assert read(6, path=str(tmp_path / "a.parquet"), format="triples") == expected
    assert read(6, path=str(tmp_path / "a.parquet"), format="triples", streaming=True) == expected


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"query": "q", "text": "p"}])
    with pytest.raises(DataError, match=r"a\.parquet row 0: no column 'positive', it has query, text"):
        read(1, path=str(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as a dataset"):
        read(1, path=str(tmp_path / "b.parquet"))


def test_hub_datasets_by_configuration_and_split(tmp_path: Path) -> None:
    hub(tmp_path, {"small": ("dev", "d.jsonl"), "pair": ("train", "t.jsonl")})
    lines(tmp_path / "d.jsonl", [{"query": "dq", "positive": "dp"}])
    lines(tmp_path / "t.jsonl", [{"query": "tq", "positive": "tp"}] * 3)
    assert read(1, hub=str(tmp_path), config="small", split="dev") == [Example("dq", "dp", source="s")]
    assert read(3, hub=str(tmp_path), config="pair", streaming=True)[0].query == "tq"
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        read(1, hub=str(tmp_path), config="large")
    with pytest.raises(DataError, match="nobody/nothing cannot be read as a dataset"):
        read(1, hub="nobody/nothing")


def test_msmarco_bm25(tmp_path: Path) -> None:
    """Configurations `triplet` and `triplet-50`; a query with fewer finds has None behind them."""
    lines(tmp_path / "triplet.jsonl", [{"query": "q", "positive": "p", "negative": "n"}])
    assert read(1, path=str(tmp_path / "triplet.jsonl"), format="msmarco-bm25") == [
        Example("q", "p", ("n",), None, "s")
    ]
    row = {"query": "q", "positive": "p"} | {f"negative_{at}": f"n{at}" for at in range(1, 13)}
    lines(tmp_path / "fifty.jsonl", [row | {"negative_12": None}])
    (example,) = read(1, path=str(tmp_path / "fifty.jsonl"), format="msmarco-bm25")
    assert example.negatives == tuple(f"n{at}" for at in range(1, 12))
    (example,) = read(1, path=str(tmp_path / "fifty.jsonl"), format="msmarco-bm25", negatives=2)
    assert example.negatives == ("n1", "n2")


BGE = {
    "train": [
        {"query_id": "7", "document_ids": ["12", "3", "40"], "scores": [0.9, 0.5, 0.25]},
        {"query_id": "9", "document_ids": ["40", "12", "3"], "scores": [0.75, 0.5, 0.0]},
    ],
    "queries": [{"query_id": "9", "text": "nine"}, {"query_id": "7", "text": "seven"}],
    "documents": [{"document_id": key, "text": f"d{key}"} for key in ("40", "12", "3")],
}


@pytest.mark.parametrize("as_strings", [False, True], ids=["lists", "strings"])
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_msmarco_bge(tmp_path: Path, where: str, as_strings: bool) -> None:
    """Three tables; ids and scores are lists, in some copies their notation as strings."""
    tables = dict(BGE)
    if as_strings:
        tables["train"] = [{**row, "document_ids": str(row["document_ids"]), "scores": str(row["scores"])}
                           for row in BGE["train"]]  # fmt: skip
    for name, rows in tables.items():
        parquet(tmp_path / f"{name}.parquet", rows)
    hub(tmp_path, {name: ("train", f"{name}.parquet") for name in tables})
    source = {"path": str(tmp_path)} if where == "folder" else {"hub": str(tmp_path)}
    assert read(2, format="msmarco-bge", **source) == [
        Example("nine", "d40", ("d12", "d3"), (0.75, 0.5, 0.0), "s"),
        Example("seven", "d12", ("d3", "d40"), (0.9, 0.5, 0.25), "s"),
    ]
    assert read(2, format="msmarco-bge", negatives=1, **source)[0].scores == (0.75, 0.5)


def test_msmarco_bge_with_an_unknown_document(tmp_path: Path) -> None:
    for name, rows in BGE.items():
        lines(tmp_path / f"{name}.jsonl", [row for row in rows if row.get("document_id") != "3"])
    with pytest.raises(DataError, match=r"train\.jsonl:1: documents has no document_id '3'"):
        read(2, path=str(tmp_path), format="msmarco-bge")
    with pytest.raises(DataError, match="keeps its texts in tables of their own, which are not streamed"):
        read(2, path=str(tmp_path), format="msmarco-bge", streaming=True)


CODE = 'def add(a, b):\n    """Add two numbers.\n\n    And carry.\n    """\n    return a + b'
DOC = "Add two numbers.\n\n    And carry."


@pytest.mark.parametrize(
    "row",
    [
        {"repo": "r", "path": "p", "func_name": "add", "original_string": CODE, "language": "python", "code": CODE,
         "code_tokens": ["def"], "docstring": DOC, "docstring_tokens": ["Add"], "sha": "0", "url": "u",
         "partition": "train"},
        {"repository_name": "r", "func_path_in_repository": "p", "func_name": "add", "whole_func_string": CODE,
         "language": "python", "func_code_string": CODE, "func_code_tokens": ["def"], "func_documentation_string": DOC,
         "func_documentation_tokens": ["Add"], "split_name": "train", "func_code_url": "u"},
    ],
    ids=["original", "hub"],
)  # fmt: skip
def test_codesearchnet(tmp_path: Path, row: dict[str, Any]) -> None:
    doc = "docstring" if "docstring" in row else "func_documentation_string"
    lines(tmp_path / "train.jsonl", [row, {**row, doc: "  "}, row])
    (example, _) = read(2, path=str(tmp_path), format="codesearchnet")
    assert example.query == "Add two numbers."
    assert "And carry" not in example.positive
    assert example.positive.startswith("def add(a, b):")
    assert example.positive.endswith("return a + b")


def test_nli(tmp_path: Path) -> None:
    lines(tmp_path / "triplet.jsonl", [{"anchor": "a", "positive": "p", "negative": "n"}])
    lines(tmp_path / "pair.jsonl", [{"anchor": "a", "positive": "p"}])
    lines(tmp_path / "class.jsonl", [{"premise": f"a{at}", "hypothesis": "h", "label": at % 3} for at in range(7)])
    assert read(1, path=str(tmp_path / "triplet.jsonl"), format="nli") == [Example("a", "p", ("n",), None, "s")]
    assert read(1, path=str(tmp_path / "pair.jsonl"), format="nli") == [Example("a", "p", source="s")]
    assert [e.query for e in read(3, path=str(tmp_path / "class.jsonl"), format="nli")] == ["a0", "a3", "a6"]


QUERIES = [{"_id": "q1", "text": "sort a list", "partition": "train"}, {"_id": "q2", "text": "unjudged"}]
CORPUS = [{"_id": "d1", "text": "sorted(x)", "title": ""}, {"_id": "d2", "text": "x.sort()", "title": "Sort"}]
JUDGED = [("q1", "d1", 1), ("q1", "d2", 2), ("q2", "d1", 0)]
EXPECTED = [Example("sort a list", "Sort x.sort()", source="s"), Example("sort a list", "sorted(x)", source="s")]


def test_coir_in_a_folder_of_beirs_layout(tmp_path: Path) -> None:
    lines(tmp_path / "queries.jsonl", QUERIES)
    lines(tmp_path / "corpus.jsonl", CORPUS)
    (tmp_path / "qrels").mkdir()
    rows = [("query-id", "corpus-id", "score"), *JUDGED]
    (tmp_path / "qrels" / "train.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    assert read(2, path=str(tmp_path), format="coir") == EXPECTED
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td9\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv:2: corpus has no _id 'd9'"):
        read(1, path=str(tmp_path), format="coir")
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\n")
    with pytest.raises(DataError, match=r"train\.tsv:2: 2 values parted by tabs, expected query-id, corpus-id, score"):
        read(1, path=str(tmp_path), format="coir")


@pytest.mark.parametrize("prefix", ["", "python-"])
@pytest.mark.parametrize("names", [("query-id", "corpus-id", "score"), ("query_id", "corpus_id", "score")])
def test_coir_on_the_hub(tmp_path: Path, prefix: str, names: tuple[str, str, str]) -> None:
    parquet(tmp_path / "q.parquet", [{"partition": "train", **row} for row in QUERIES])
    parquet(tmp_path / "c.parquet", CORPUS)
    parquet(tmp_path / "j.parquet", [dict(zip(names, row, strict=True)) for row in JUDGED])
    judged = "qrels" if prefix else "default"
    hub(
        tmp_path,
        {f"{prefix}queries": ("queries", "q.parquet"), f"{prefix}corpus": ("corpus", "c.parquet"),
         f"{prefix}{judged}": ("train", "j.parquet")},
    )  # fmt: skip
    config = prefix.removesuffix("-") or None
    assert read(2, hub=str(tmp_path), config=config, format="coir") == EXPECTED


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'parquet .* needs datasets.*: pip install "mbretrieve\[train\]"'):
        read(1, path=str(tmp_path / "a.parquet"))
    assert read(1, path=str(tmp_path / "a.jsonl")) == [Example("q", "p", source="s")]
