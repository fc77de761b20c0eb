"""Loading: fixtures with exactly the files and columns of each source, and what bad input gets."""

import json
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from beir.datasets.data_loader import GenericDataLoader

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.evaluation.datasets import TaskData, load
from mbretrieve.evaluation.suites import Part
from mbretrieve.types import Document

CORPUS = [
    {"_id": "d1", "title": "Paris", "text": "is in France.", "metadata": {}},
    {"_id": "d2", "title": "", "text": "  Rome\u2028is in Italy. "},
    {"_id": "d3", "text": "Łódź \U0001f600"},
]
QUERIES = [{"_id": "q1", "text": "capital of France"}, {"_id": "q2", "text": "unjudged"}, {"_id": "q3", "text": "Łódź"}]
QRELS = [("q1", "d1", 1), ("q3", "d3", 2), ("q3", "d1", -1)]
LOADED = [
    Document("d1", "Paris is in France."),
    Document("d2", "Rome\u2028is in Italy."),
    Document("d3", "Łódź \U0001f600"),
]


def write_folder(
    folder: Path,
    corpus: Sequence[Any] = CORPUS,
    queries: Sequence[Any] = QUERIES,
    qrels: Sequence[tuple[Any, ...]] = QRELS,
    split: str = "test",
) -> Path:
    """A folder in BEIR layout."""
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    lines = ("\t".join(map(str, row)) for row in [("query-id", "corpus-id", "score"), *qrels])
    (folder / "qrels" / f"{split}.tsv").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder


def check(data: TaskData, notes: tuple[str, ...] = ()) -> None:
    """What every source of the fixture must give."""
    assert data.corpus == LOADED
    assert data.queries == {"q1": "capital of France", "q3": "Łódź"}
    assert data.qrels == {"q1": {"d1": 1}, "q3": {"d3": 2, "d1": -1}}
    assert (data.unknown_queries, data.unknown_documents, data.notes) == (0, 0, notes)


def test_a_folder_by_path_and_by_data_dir(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data" / "set")
    by_path = load(Part(str(folder)), tmp_path / "cache")
    by_name = load(Part("set"), tmp_path / "cache", tmp_path / "data")
    check(by_path)
    assert by_path == by_name


def test_a_folder_is_read_as_beir_reads_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    documents, queries, qrels = GenericDataLoader(str(folder)).load("test")
    ours = load(Part(str(folder)), tmp_path)
    assert (ours.queries, ours.qrels) == (queries, qrels)
    assert [document.id for document in ours.corpus] == list(documents)


def test_beir_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(Part(str(write_folder(tmp_path / "set"))), tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_single_split_need_not_bear_the_name(tmp_path: Path, split: str) -> None:
    notes = () if split == "test" else ("judged by test, its only split",)
    check(load(Part(str(write_folder(tmp_path / "set", split="test")), split=split), tmp_path), notes)


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "made" / "forums" / "android")
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data" / "forums.zip", "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "made"))
    part, cache = Part("forums/android"), tmp_path / "cache"
    first = load(part, cache, tmp_path / "data")
    check(first)
    unpacked = sorted(path.stat().st_mtime_ns for path in cache.rglob("*"))
    assert load(part, cache, tmp_path / "data") == first
    assert sorted(path.stat().st_mtime_ns for path in cache.rglob("*")) == unpacked


def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match=r"set\.zip is not a whole zip archive"):
        load(Part("set"), tmp_path / "cache", tmp_path)
    assert not list((tmp_path / "cache" / "archives").iterdir())


def test_order_does_not_change_the_fingerprint_but_content_does(tmp_path: Path) -> None:
    prints = [
        load(Part(str(write_folder(tmp_path / name, **change))), tmp_path).fingerprint
        for name, change in {
            "a": {},
            "b": {"corpus": CORPUS[::-1], "queries": QUERIES[::-1], "qrels": QRELS[::-1]},
            "c": {"corpus": [*CORPUS[:2], {"_id": "d3", "text": "Łodź \U0001f600"}]},
            "d": {"qrels": [("q1", "d1", 2), *QRELS[1:]]},
        }.items()
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_what_judgements_name_in_vain_is_counted_and_said(tmp_path: Path) -> None:
    qrels = [*QRELS, ("nobody", "d1", 1), ("nobody", "d2", 1), ("q1", "d99", 1), ("q1", "d1", 1)]
    data = load(Part(str(write_folder(tmp_path / "set", qrels=qrels))), tmp_path)
    assert (data.unknown_queries, data.unknown_documents) == (1, 1)
    assert data.qrels == {"q1": {"d1": 1, "d99": 1}, "q3": {"d3": 2, "d1": -1}}
    assert data.notes == (
        "1 judged queries have no text and are left out",
        "1 judgements name documents that are not in the corpus",
        "1 judgements come more than once; the last of each counts",
    )


def test_another_corpus_under_a_published_name_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "scifact")
    data = load(Part("scifact", repository="mteb/scifact", revision="0" * 40, documents=5183), tmp_path, tmp_path)
    assert data.notes == ("3 documents where mteb/scifact has 5183: not the published set",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": []}, r"corpus\.jsonl is empty: expected one JSON object a line"),
        ({"queries": []}, r"queries\.jsonl is empty"),
        ({"qrels": []}, r"test\.tsv: no query has a judgement"),
        ({"qrels": [("nobody", "d1", 1)]}, r"test\.tsv: no query has a judgement: expected ids of queries\.jsonl"),
        ({"corpus": [*CORPUS, CORPUS[1]]}, r"corpus\.jsonl:4: id 'd2' comes a second time"),
        ({"queries": [*QUERIES, QUERIES[0]]}, r"queries\.jsonl:4: id 'q1' comes a second time"),
        (
            {
                "corpus": [CORPUS[0], '{"_id": "d2", "text": '],
            },
            r"corpus\.jsonl:2: not a line of JSON",
        ),
        ({"corpus": [CORPUS[0], ""]}, r"corpus\.jsonl:2: not a line of JSON"),
        ({"corpus": ["[" * 100_000]}, r"corpus\.jsonl:1: not a line of JSON"),
        ({"corpus": [{"_id": 7, "text": "x"}]}, r"corpus\.jsonl:1: expected .* with strings, got .*7"),
        ({"corpus": [{"_id": "d1", "text": None}]}, r"corpus\.jsonl:1: expected .* with strings"),
        ({"corpus": ["[1]"]}, r"corpus\.jsonl:1: expected"),
        ({"queries": [{"_id": "q1"}]}, r"queries\.jsonl:1: expected"),
        ({"qrels": [*QRELS, ("q1", "d2")]}, r"test\.tsv:5: expected query-id, corpus-id and a whole number"),
        ({"qrels": [("q1", "d2", "high")]}, r"test\.tsv:2: expected .* got 'q1\\td2\\thigh'"),
        ({"qrels": [("q1", "d2", 0.5)]}, r"test\.tsv:2: expected"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = write_folder(tmp_path / "set", **change)
    with pytest.raises(DataError, match=said) as caught:
        load(Part(str(folder)), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_header_would_cost_a_judgement(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    with pytest.raises(DataError, match=r"test\.tsv:1: expected the header"):
        load(Part(str(folder)), tmp_path)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    (folder / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"queries\.jsonl:1: not a line of JSON .*utf-8"):
        load(Part(str(folder)), tmp_path)


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write_folder(tmp_path / "set")
    (folder / missing).unlink()
    with pytest.raises(DataError, match=rf"set has no {missing}"):
        load(Part(str(folder)), tmp_path)


def test_splits_that_are_there_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", split="dev")
    shutil.copy(folder / "qrels" / "dev.tsv", folder / "qrels" / "train.tsv")
    with pytest.raises(DataError, match=r"no qrels/test\.tsv \(found: dev\.tsv, train\.tsv\)"):
        load(Part(str(folder)), tmp_path)


def test_the_only_split_is_taken_and_named_unless_another_was_asked_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", split="dev")
    data = load(Part(str(folder)), tmp_path)
    assert data.split == "dev"
    assert "judged by dev, its only split" in data.notes
    asked = load(Part(str(folder), split="dev", chosen=True), tmp_path)
    assert (asked.split, asked.fingerprint) == ("dev", data.fingerprint)
    assert not any("its only split" in note for note in asked.notes)
    with pytest.raises(DataError, match=r"no qrels/train\.tsv \(found: dev\.tsv\): expected one of these splits"):
        load(Part(str(folder), split="train", chosen=True), tmp_path)


@pytest.mark.parametrize("data_dir", [False, True])
def test_no_network_and_no_folder_is_one_line_that_names_the_layout(tmp_path: Path, data_dir: bool) -> None:
    part = Part("scifact", repository="mteb/no-such-data-set", revision="0" * 40)
    with pytest.raises(DataError) as caught:
        load(part, tmp_path, tmp_path if data_dir else None)
    assert "put corpus.jsonl, queries.jsonl and qrels/test.tsv in DIR/scifact and give --data-dir DIR" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_a_set_without_a_source_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="codesearchnet-annotated has no source that can be downloaded: put corpus"):
        load(Part("codesearchnet-annotated"), tmp_path)


def test_a_data_dir_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load(Part("scifact"), tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("module", ["beir.datasets.data_loader", "datasets"])
def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    part = Part("x", repository="a/b") if module == "datasets" else Part(str(write_folder(tmp_path / "set")))
    with pytest.raises(MissingExtraError, match=r'pip install "mbretrieve\[eval\]"'):
        load(part, tmp_path)


# Hub datasets: local folders with the files, columns and README of the repositories. `datasets` reads both alike.


def write_hub(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """Write the README in which a hub repository declares its configurations and the files of their splits."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def judgement_rows() -> list[dict[str, Any]]:
    return [{"query-id": query, "corpus-id": document, "score": float(score)} for query, document, score in QRELS]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, and a `datasets` cache of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_the_layout_of_mteb(hub: Path, tmp_path: Path) -> None:
    """As mteb/scifact: JSON lines, judgements as floats in `default`, and a second split."""
    write_jsonl(hub / "corpus.jsonl", [{"title": "", **row, "metadata": {}} for row in CORPUS])
    write_jsonl(hub / "queries.jsonl", QUERIES)
    write_jsonl(hub / "qrels" / "test.jsonl", judgement_rows())
    write_jsonl(hub / "qrels" / "train.jsonl", [{"query-id": "q2", "corpus-id": "d2", "score": 1.0}])
    write_hub(
        hub,
        {
            "default": {"train": "qrels/train.jsonl", "test": "qrels/test.jsonl"},
            "corpus": {"corpus": "corpus.jsonl"},
            "queries": {"queries": "queries.jsonl"},
        },
    )
    cache = tmp_path / "cache"
    part = Part("scifact", repository=str(hub), revision="r", documents=3)
    check(load(part, cache))
    assert json.loads((cache / "checksums.json").read_text()).keys() == {f"{hub}@r//test"}
    # What the hub gave, exported as a BEIR folder, is the same set.
    local = load(Part(str(write_folder(tmp_path / "scifact"))), cache)
    assert local.fingerprint == load(part, cache).fingerprint


def test_the_layout_of_coir(hub: Path, tmp_path: Path) -> None:
    """As CoIR-Retrieval/CodeSearchNet: parquet, one prefix a language, whole integers, and the queries of all splits in
    one table under ids that start again in each."""
    document = {"partition": "", "language": "go", "title": "", "meta_information": {"starter_code": "", "url": ""}}
    query = {"partition": "test", "language": "go", "title": "", "meta_information": {"starter_code": "", "url": ""}}
    train = [{**query, "_id": "q1", "text": "of the train split", "partition": "train"}]
    for language in ("go", "python"):
        write_parquet(
            hub / f"{language}-corpus/corpus-0.parquet",
            [{**document, "_id": row["_id"], "text": row["text"], "title": row.get("title", "")} for row in CORPUS],
        )
        write_parquet(hub / f"{language}-queries/queries-0.parquet", [{**query, **row} for row in QUERIES] + train)
        for split in ("train", "test"):
            rows = [{**row, "score": int(row["score"])} for row in judgement_rows()]
            write_parquet(hub / f"{language}-qrels/{split}-0.parquet", rows[: len(rows) if split == "test" else 1])
    write_hub(
        hub,
        {
            f"{language}-{table}": {split: f"{language}-{table}/{split}-*.parquet" for split in splits}
            for language in ("go", "python")
            for table, splits in {"corpus": ["corpus"], "queries": ["queries"], "qrels": ["train", "test"]}.items()
        },
    )
    check(load(Part("CodeSearchNet-go", repository=str(hub), revision="r", config="go"), tmp_path / "cache"))


def test_the_layout_of_nanobeir(hub: Path, tmp_path: Path) -> None:
    """As mteb's NanoBEIR: ids under "id", judgements in `qrels`, everything in the split `train`."""
    rows = [{"id": row["_id"], "text": row["text"], "title": row.get("title", "")} for row in CORPUS]
    write_parquet(hub / "corpus/train-0.parquet", rows)
    write_parquet(hub / "queries/train-0.parquet", [{"id": row["_id"], "text": row["text"]} for row in QUERIES])
    write_parquet(hub / "qrels/train-0.parquet", judgement_rows())
    write_hub(hub, {table: {"train": f"{table}/train-0.parquet"} for table in ("corpus", "queries", "qrels")})
    check(load(Part("NanoX", split="train", repository=str(hub), revision="r"), tmp_path / "cache"))
    asked = Part("NanoX", split="dev", repository=str(hub), revision="r", chosen=True)
    with pytest.raises(DataError, match="has no split dev: it has train"):
        load(asked, tmp_path / "cache")


@pytest.mark.parametrize("split", ["test", "test_256"])
def test_the_layout_of_longembed(hub: Path, tmp_path: Path, split: str) -> None:
    """As dwzhu/LongEmbed: three tables as splits of one configuration; the needle's with a column for the length."""
    lengths = (256, 512) if split == "test_256" else (0,)
    extra = [{"context_length": length} if length else {} for length in lengths]
    mark = {256: "", 512: "_512", 0: ""}
    tables: dict[str, list[dict[str, Any]]] = {"corpus": [], "queries": [], "qrels": []}
    for length, column in zip(lengths, extra, strict=True):
        tables["corpus"] += [{"doc_id": f"d{n}{mark[length]}", "text": f"text {n} {length}", **column} for n in (1, 2)]
        tables["queries"] += [{"qid": f"q1{mark[length]}", "text": f"question {length}", **column}]
        tables["qrels"] += [{"qid": f"q1{mark[length]}", "doc_id": f"d1{mark[length]}", **column}]
    for table, rows in tables.items():
        write_jsonl(hub / "needle" / f"{table}.jsonl", rows)
    write_hub(hub, {"needle": {table: f"needle/{table}.jsonl" for table in tables}})
    part = Part("needle", split=split, repository=str(hub), revision="r", config="needle", layout="longembed")
    data = load(part, tmp_path / "cache")
    assert data.corpus == [Document("d1", f"text 1 {lengths[0]}"), Document("d2", f"text 2 {lengths[0]}")]
    assert (data.queries, data.qrels) == ({"q1": f"question {lengths[0]}"}, {"q1": {"d1": 1}})


def test_a_damaged_copy_of_a_pinned_revision_is_refused(hub: Path, tmp_path: Path) -> None:
    write_jsonl(hub / "queries.jsonl", QUERIES)
    write_jsonl(hub / "qrels.jsonl", judgement_rows())
    write_hub(
        hub,
        {table: {"test": f"{table}.jsonl"} for table in ("corpus", "queries")} | {"default": {"test": "qrels.jsonl"}},
    )
    part, cache = Part("set", repository=str(hub), revision="r"), tmp_path / "cache"
    rows = [{"_id": row["_id"], "text": row["text"]} for row in CORPUS]
    write_jsonl(hub / "corpus.jsonl", rows)
    load(part, cache)
    write_jsonl(hub / "corpus.jsonl", [*rows[:2], {"_id": "d3", "text": "flipped"}])
    shutil.rmtree(tmp_path / "datasets")
    with pytest.raises(DataError, match="is not what it was when first read"):
        load(part, cache)


def test_a_hub_corpus_may_repeat_a_row_but_not_an_id(hub: Path, tmp_path: Path) -> None:
    write_jsonl(hub / "queries.jsonl", QUERIES)
    write_jsonl(hub / "qrels.jsonl", judgement_rows())
    write_hub(
        hub,
        {table: {"test": f"{table}.jsonl"} for table in ("corpus", "queries")} | {"default": {"test": "qrels.jsonl"}},
    )
    rows = [{"_id": row["_id"], "text": row["text"]} for row in CORPUS]
    part = Part("set", repository=str(hub), revision="r")
    write_jsonl(hub / "corpus.jsonl", [*rows, rows[0]])
    assert len(load(part, tmp_path / "a").corpus) == 3
    write_jsonl(hub / "corpus.jsonl", [*rows, {"_id": "d1", "text": "another"}])
    shutil.rmtree(tmp_path / "datasets")
    with pytest.raises(DataError, match="'d1' comes twice with different texts"):
        load(part, tmp_path / "b")
