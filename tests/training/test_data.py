"""Batches: full, of one source, the same for a seed, and from any place on; what is broken names its line."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.errors import DataError
from mbretrieve.training.config import Columns, RunConfig, SourceConfig
from mbretrieve.training.data import Batches, Example, digests, documents, duplicates, positives, shard, sources


def write(path: Path, rows: Iterable[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def pairs(name: str, count: int) -> list[dict[str, str]]:
    return [{"query": f"{name} q{at}", "positive": f"{name} p{at} " + "é" * (at % 7)} for at in range(count)]


def take(batches: Batches, count: int) -> list[list[Example]]:
    return list(islice(batches, count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "a.jsonl", pairs("a", 103))
    write(folder / "b.jsonl.gz", pairs("b", 47))
    write(folder / "c.jsonl", pairs("c", 20))
    return folder


def test_an_epoch_has_every_example_once_but_for_less_than_a_batch(folder: Path) -> None:
    batches = Batches([SourceConfig(path=str(folder / "a.jsonl"))], 10, seed=1)
    epochs = [[example for batch in take(batches, 10) for example in batch] for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 100
    assert epochs[0] != epochs[1]
    assert batches.shares[0].epoch == 3.0


def test_gzip_and_plain_are_the_same(folder: Path) -> None:
    write(folder / "plain.jsonl", pairs("b", 47))
    one = take(Batches([SourceConfig(path=str(folder / "b.jsonl.gz"), name="x")], 8, seed=3), 12)
    other = take(Batches([SourceConfig(path=str(folder / "plain.jsonl"), name="x")], 8, seed=3), 12)
    assert one == other


def mixture(folder: Path, *, streaming: bool = False) -> list[SourceConfig]:
    return [
        SourceConfig(path=str(folder / "a.jsonl"), weight=3, streaming=streaming),
        SourceConfig(path=str(folder / "b.jsonl.gz"), weight=1, streaming=streaming),
        SourceConfig(path=str(folder / "c.jsonl"), weight=0.5),
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_batches_are_of_one_source_and_sources_have_their_share(folder: Path, streaming: bool) -> None:
    batches = Batches(mixture(folder, streaming=streaming), 6, seed=1)
    drawn: Counter[str] = Counter()
    for step, batch in enumerate(take(batches, 90), 1):
        assert len(batch) == 6
        (source,) = {example.source for example in batch}
        drawn[source] += 1
        for title, weight in (("a.jsonl", 3), ("b.jsonl.gz", 1), ("c.jsonl", 0.5)):
            assert abs(drawn[title] - step * weight / 4.5) < 2
    assert {share.title: share.batches for share in batches.shares} == drawn


def test_without_weights_sources_end_their_epochs_together(folder: Path) -> None:
    data = [SourceConfig(path=str(folder / name)) for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")]
    batches = Batches(data, 5, seed=1)
    assert batches.steps(RunConfig(epochs=1)) == 20 + 9 + 4
    assert batches.steps(RunConfig(epochs=0.5)) == 17
    assert batches.steps(RunConfig(steps=8)) == 8
    take(batches, 33)
    assert [share.epoch for share in batches.shares] == [1.0, 1.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 40), bucket=st.integers(1, 4), streaming=st.booleans(), seed=st.integers(0, 3))
def test_a_restored_place_goes_on_as_if_nothing_had_been(
    folder: Path, before: int, bucket: int, streaming: bool, seed: int
) -> None:
    data = mixture(folder, streaming=streaming)
    kept = sources._BLOCK
    sources._BLOCK = 16  # several blocks an epoch
    try:
        whole = Batches(data, 4, seed, bucket)
        take(whole, before)
        place = json.loads(json.dumps(whole.state()))
        resumed = Batches(data, 4, seed, bucket)
        resumed.restore(place)
        assert take(resumed, 30) == take(whole, 30)
        assert resumed.state() == whole.state()
        assert resumed.shares == whole.shares
    finally:
        sources._BLOCK = kept


def test_a_seed_decides_everything(folder: Path) -> None:
    data = mixture(folder)
    assert take(Batches(data, 4, seed=1), 30) == take(Batches(data, 4, seed=1), 30)
    assert take(Batches(data, 4, seed=1), 30) != take(Batches(data, 4, seed=2), 30)


def test_a_stream_has_every_example_once_an_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BLOCK", 40)
    data = [SourceConfig(path=str(folder / "a.jsonl"), streaming=True, limit=100)]
    batches = Batches(data, 10, seed=1)
    epochs = [[example for batch in take(batches, 10) for example in batch] for _ in range(2)]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 100
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0], key=lambda example: int(example.query.split("q")[1]))


def test_buckets_hold_neighbours_in_length(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = [{"query": "q", "positive": "x" * int(size)} for size in random.integers(1, 2000, 400)]
    data = [SourceConfig(path=str(write(tmp_path / "a.jsonl", rows)))]

    def spread(bucket: int) -> float:
        return float(
            np.mean([np.ptp([len(e.positive) for e in batch]) for batch in take(Batches(data, 10, 1, bucket), 40)])
        )

    assert spread(20) < spread(1) / 4
    seen = [example for batch in take(Batches(data, 10, 1, 20), 40) for example in batch]
    assert Counter(e.positive for e in seen) == Counter(row["positive"] for row in rows)


def test_prompts_and_negatives_and_limits(tmp_path: Path) -> None:
    rows = [
        {"q": f"q{at}", "yes": f"y{at}", "n1": f"a{at}", "n2": [f"b{at}", f"c{at}"], "s": [3, 2.5, 1, 0]}
        for at in range(9)
    ]
    source = SourceConfig(
        path=str(write(tmp_path / "a.jsonl", rows)),
        format="tuples",
        columns=Columns(query="q", positive="yes", negatives=("n1", "n2"), scores="s"),
        negatives=2,
        query_prompt="query: ",
        document_prompt="doc: ",
        limit=4,
        name="t",
    )
    (batch,) = take(Batches([source], 4, seed=1), 1)
    assert sorted(batch, key=lambda example: example.query)[0] == Example(
        query="query: q0", positive="doc: y0", negatives=("doc: a0", "doc: b0"), scores=(3.0, 2.5, 1.0), source="t"
    )
    assert {example.query for example in batch} == {f"query: q{at}" for at in range(4)}


def test_duplicates_are_not_negatives() -> None:
    batch = [
        Example("q0", "same", ("n0", "other")),
        Example("q1", "same"),
        Example("q2", "p2", ("p2", "same")),
        Example("q0", "other"),
    ]
    columns = documents(batch)
    assert columns == ["same", "n0", "other", "same", "p2", "p2", "same", "other"]
    assert positives(batch).tolist() == [0, 3, 4, 7]
    expected = [
        [False, False, False, True, False, False, True, True],  # q0 is asked again, and `other` answers it
        [True, False, False, False, False, False, True, False],
        [False, False, False, False, False, True, False, False],
        [True, False, True, False, False, False, False, False],
    ]
    assert duplicates(batch).tolist() == expected


@given(size=st.integers(1, 60), ranks=st.integers(1, 8))
def test_shares_are_the_batch(size: int, ranks: int) -> None:
    batch = list(range(size))
    if size < ranks:
        with pytest.raises(ValueError, match="has no share"):
            shard(batch, 0, ranks)
        return
    shares = [shard(batch, rank, ranks) for rank in range(ranks)]
    assert [item for share in shares for item in share] == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


GOOD = '{"query": "q", "positive": "p"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "{path}:2: not a line of JSON"),
        ("", "{path}:2: not a line of JSON"),
        ("[1]", "{path}:2: expected a JSON object, got [1]"),
        ('{"query": "q", "positive": "  "}', "{path}:2: positive is empty, expected text"),
        ('{"query": "", "positive": "p"}', "{path}:2: query is empty, expected text"),
        ('{"query": 3, "positive": "p"}', "{path}:2: query is '3', expected text"),
        ('{"query": "q", "text": "p"}', "{path}:2: no column 'positive', it has query, text: name yours in"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_broken_line_is_named_before_training(tmp_path: Path, suffix: str, line: str, says: str) -> None:
    path = tmp_path / f"a{suffix}"
    text = "\n".join([GOOD, line, GOOD, ""])
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    with pytest.raises(DataError) as raised:
        Batches([SourceConfig(path=str(path))], 1, seed=1)
    assert str(raised.value).startswith(says.replace("{path}", str(path)))
    stream = Batches([SourceConfig(path=str(path), streaming=True)], 1, seed=1)
    with pytest.raises(DataError) as streamed:
        take(stream, 3)
    assert str(streamed.value) == str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([1.0, 2.0], "s has 2 numbers, expected 3, one for each document"),
        ("high", "s is 'high', expected a list"),
        ([1.0, 2.0, "x"], "s has 'x', expected numbers"),
        ([1.0, 2.0, float("nan")], "s has 'nan', expected numbers"),
    ],
)
def test_scores_that_do_not_fit(tmp_path: Path, scores: Any, says: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"query": "q", "positive": "p", "negatives": ["a", "b"], "s": scores}])
    source = SourceConfig(path=str(path), format="tuples", columns=Columns(scores="s"))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: {says}"):
        Batches([source], 1, seed=1)


def test_scored_rows_have_one_width(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "p", "negatives": ["a", "b"], "s": [1, 2, 3]},
        {"query": "q", "positive": "p", "negatives": ["a"], "s": [1, 2]},
    ]
    source = {"path": str(write(tmp_path / "a.jsonl", rows)), "format": "tuples", "columns": Columns(scores="s")}
    with pytest.raises(DataError, match=r"a\.jsonl:2: 2 documents with scores, expected 3 in every row"):
        Batches([SourceConfig(**source)], 1, seed=1)
    (batch,) = take(Batches([SourceConfig(**source, negatives=1)], 2, seed=1), 1)
    assert {example.scores for example in batch} == {(1.0, 2.0)}


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD.encode() * 99)[:-9])
    (tmp_path / "a.csv").write_text("query,positive")
    write(tmp_path / "few.jsonl", pairs("a", 3))
    for name, says in (
        ("nowhere.jsonl", r"nowhere\.jsonl is not there"),
        ("empty.jsonl", r"empty\.jsonl is empty"),
        ("cut.jsonl.gz", r"cut\.jsonl\.gz is not a whole gzip file"),
        ("a.csv", r"a\.csv is of no kind that is read"),
        ("few.jsonl", r"few\.jsonl has 3 examples, expected at least the 4 of a batch"),
        (".", "has no train.jsonl"),
    ):
        with pytest.raises(DataError, match=says):
            Batches([SourceConfig(path=str(tmp_path / name))], 4, seed=1)
    stream = Batches([SourceConfig(path=str(tmp_path / "few.jsonl"), streaming=True)], 4, seed=1)
    with pytest.raises(DataError, match=r"few\.jsonl has less than the 4 examples of a batch"):
        next(stream)


def vectors(folder: Path, queries: Any, positives: Any) -> str:
    folder.mkdir()
    np.save(folder / "queries.npy", queries)
    np.save(folder / "positives.npy", positives)
    return str(folder)


def test_a_teachers_vectors_stay_with_their_rows(folder: Path, tmp_path: Path) -> None:
    numbers = np.arange(47 * 3, dtype=np.float16).reshape(47, 3)
    taught = SourceConfig(path=str(folder / "b.jsonl.gz"), teacher_vectors=vectors(tmp_path / "v", numbers, -numbers))
    batches = Batches([taught, SourceConfig(path=str(folder / "c.jsonl"))], 5, seed=1, length_bucket=2)
    assert batches.teacher_dim == 3
    for batch in take(batches, 30):
        for example in batch:
            if example.source == "c.jsonl":
                assert example.vectors is None
            else:
                row = int(example.query.removeprefix("b q"))
                assert example.vectors is not None
                assert example.vectors.tolist() == [numbers[row].tolist(), (-numbers[row]).tolist()]


def test_vectors_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    def opened(name: str, *arrays: Any) -> None:
        path = vectors(tmp_path / name, *arrays)
        Batches([SourceConfig(path=str(folder / "b.jsonl.gz"), teacher_vectors=path)], 5, seed=1)

    good = np.zeros((47, 3), np.float16)
    with pytest.raises(DataError, match=r"queries\.npy has 46 vectors, expected 47, one for each row"):
        opened("short", good[:46], good)
    with pytest.raises(DataError, match="queries have 3 numbers and positives 2, expected as many"):
        opened("narrow", good, good[:, :2])
    for name, array in (("flat", good[0]), ("whole numbers", good.astype(np.int64))):
        with pytest.raises(DataError, match=r"positives\.npy is no array of vectors, expected \(rows, dim\)"):
            opened(name, good, array)
    (tmp_path / "flat" / "queries.npy").write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match=r"queries\.npy cannot be read as an array"):
        Batches([SourceConfig(path=str(folder / "b.jsonl.gz"), teacher_vectors=str(tmp_path / "flat"))], 5, seed=1)
    wide = vectors(tmp_path / "wide", np.zeros((20, 4), np.float32), np.zeros((20, 4), np.float32))
    sources = [
        SourceConfig(path=str(folder / "b.jsonl.gz"), teacher_vectors=vectors(tmp_path / "fine", good, good)),
        SourceConfig(path=str(folder / "c.jsonl"), teacher_vectors=wide),
    ]
    with pytest.raises(DataError, match="unlike widths"):
        Batches(sources, 5, seed=1)
    with pytest.raises(DataError, match="which a stream has not"):
        SourceConfig(path="x", streaming=True, teacher_vectors="v")


def test_a_place_in_other_data_is_refused(folder: Path) -> None:
    data = mixture(folder)
    state = Batches(data, 4, seed=1).state()
    for other, says in (
        (Batches(data, 4, seed=2), "seed was 1, is 2"),
        (Batches(data, 5, seed=1), "batch_size was 4, is 5"),
        (Batches(data[:2], 4, seed=1), "sources was"),
    ):
        with pytest.raises(DataError, match=says):
            other.restore(state)
    for damage in ({"drawn": [1]}, {"drawn": ["x", 1, 1]}, {"sources": [{}, {}, {}]}, {"sources": None}):
        with pytest.raises(DataError, match="the saved place in the data is damaged"):
            Batches(data, 4, seed=1).restore({**state, **damage})


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz", "table.parquet", "long.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_place_in_a_file_that_now_says_something_else_is_refused(
    name: str, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows, as many bytes and the same times: only what they say is another."""
    if name == "long.jsonl":
        monkeypatch.setattr(digests, "_WHOLE", 100)  # beyond which blocks are hashed
        monkeypatch.setattr(digests, "_BLOCK_BYTES", 16)
    path = tmp_path / name
    source = [SourceConfig(path=str(path), streaming=streaming)]

    def written(rows: list[dict[str, str]]) -> Batches:
        if path.suffix == ".parquet":
            pytest.importorskip("datasets").Dataset.from_list(rows).to_parquet(path)
        else:
            write(path, rows)
        os.utime(path, (10**9, 10**9))
        return Batches(source, 4, seed=1)

    rows = pairs("a", 20)
    batches = written(rows)
    take(batches, 2)
    place = batches.state()
    written(rows).restore(json.loads(json.dumps(place)))
    rows[7]["positive"] = rows[7]["positive"].replace("p7", "p8")
    with pytest.raises(DataError, match=f"the rows of {name}, or its teacher's vectors, are not those"):
        written(rows).restore(place)


def test_a_place_beside_other_vectors_is_refused(folder: Path, tmp_path: Path) -> None:
    vectors = np.ones((20, 8), np.float32)
    for name in ("queries", "positives"):
        np.save(tmp_path / f"{name}.npy", vectors)
    source = [SourceConfig(path=str(folder / "c.jsonl"), teacher_vectors=str(tmp_path))]
    place = Batches(source, 4, seed=1).state()
    Batches(source, 4, seed=1).restore(place)
    np.save(tmp_path / "positives.npy", -vectors)
    with pytest.raises(DataError, match=r"the rows of c.jsonl, or its teacher's vectors, are not those"):
        Batches(source, 4, seed=1).restore(place)


def test_a_table_beside_the_rows_belongs_to_the_place(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "queries.jsonl", [{"_id": f"q{at}", "text": f"query {at}"} for at in range(8)])
    texts = [{"_id": f"d{at}", "text": f"text {at}"} for at in range(8)]
    write(tmp_path / "corpus.jsonl", texts)
    judged = "".join(f"q{at}\td{at}\t1\n" for at in range(8))
    (tmp_path / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", "utf-8")
    source = [SourceConfig(path=str(tmp_path), format="coir")]
    place = Batches(source, 4, seed=1).state()
    texts[3]["text"] = "text 4"
    write(tmp_path / "corpus.jsonl", texts)
    with pytest.raises(DataError, match="are not those that the run began with"):
        Batches(source, 4, seed=1).restore(place)


def test_rows_of_the_hub_are_sampled() -> None:
    rows = pairs("a", 2000)
    assert digests.of_rows(rows) == digests.of_rows([dict(row) for row in rows])
    assert digests.of_rows(rows) != digests.of_rows(rows[:-1])
    assert digests.of_rows(rows) != digests.of_rows([*rows[:-1], pairs("b", 1)[0]])
    assert digests.of_first_rows(rows) != digests.of_first_rows([pairs("b", 1)[0], *rows[1:]])
    assert digests.joined(["ab", "c"]) != digests.joined(["a", "bc"])
