"""Search by words: where no bound is hit it is plain BM25, as FTS5 has it; what the bounds leave out; filters."""

import random
import sqlite3
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import Entry, MultiVectorIndex
from mbretrieve.index.catalogue import Catalogue
from mbretrieve.index.lexical import Limits, search_words
from mbretrieve.index.reading import passing
from mbretrieve.index.words import is_beginning, query_words, tokenize

WORDS = [
    "lock",
    "locks",
    "locked",
    "locker",
    "file",
    "files",
    "filename",
    "the",
    "of",
    "東京",
    "京都",
    "京",
    "http2",
    "x",
]
WORDS += ["get_file", "getFile", "ÀB", "🔥"]
NO_LIMITS = Limits(completed=1 << 60, completions=1 << 60, postings=1 << 60)


def entry(id: str, text: str) -> Entry:
    return Entry(id, [[[1.0]]], [(0, len(text))], text, metadata={"odd": int(id) % 2})  # type: ignore[list-item]


def some_text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, [1 / (1 + i) for i in range(len(WORDS))], k=rng.randint(1, 30)))


def fts5_scores(texts: Mapping[str, str], query: str) -> dict[str, float]:
    """What FTS5 gives each text for any of the query's words, each as itself and as a beginning."""
    terms = [f'"{word}"{star}' for word in query_words(query) for star in ("", " *") if not star or is_beginning(word)]
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE VIRTUAL TABLE words USING fts5(t, id UNINDEXED, tokenize=\"ascii tokenchars '_'\")")
        rows = [(" ".join(tokenize(text)), id) for id, text in texts.items()]
        database.executemany("INSERT INTO words VALUES (?, ?)", rows)
        return dict(
            database.execute("SELECT id, -bm25(words) FROM words WHERE words MATCH ?", (" OR ".join(terms),)).fetchall()
        )


def found(path: Path, query: str, k: int = 1000, limits: Limits = NO_LIMITS, **filters: object) -> dict[str, float]:
    catalogue = Catalogue.open(path)
    matches = search_words(catalogue, query, k, passing(catalogue, filters.get("where"), None), limits)  # type: ignore[arg-type]
    catalogue.close()
    assert all((-one.score, one.id) < (-other.score, other.id) for one, other in pairwise(matches))
    return {match.id: match.score for match in matches}


@pytest.mark.parametrize("seed", range(8))
def test_it_is_plain_bm25_whatever_was_written_and_deleted(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts: dict[str, str] = {}
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        for _ in range(12):
            changed = {str(rng.randrange(60)): some_text(rng) for _ in range(rng.choice([1, 1, 2, 9, 25]))}
            gone = set(rng.sample(sorted(texts), len(texts) // 5)) - set(changed)
            with index.writer() as writer:
                writer.add([entry(id, text) for id, text in changed.items()])
                writer.delete(gone)
            texts = {id: text for id, text in (texts | changed).items() if id not in gone}
            for query in (some_text(rng), "lock file", "the of", "京", "absent"):
                expected = fts5_scores(texts, query)
                assert found(tmp_path / "index", query) == pytest.approx(expected)
                best = dict(sorted(expected.items(), key=lambda one: (-round(one[1], 9), one[0]))[:3])
                assert sorted(found(tmp_path / "index", query, 3).values()) == pytest.approx(sorted(best.values()))
        assert index.verify() == []


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents: all have `data`, a third `base`, one `rare`, every tenth a word of its own that begins so."""
    path = tmp_path_factory.mktemp("lexical") / "index"
    with MultiVectorIndex.create(path, 1) as index, index.writer() as writer:
        writer.add(
            [
                entry(str(i), "data" + " base" * (i % 3 == 0) + " rare" * (i == 7) + own * (i % 10 == 0))
                for i, own in ((i, f" base{chr(97 + i // 10)}") for i in range(120))
            ]
        )
    return path


def test_defaults_bound_nothing_in_a_small_index(common: Path) -> None:
    for query in ("data base rare", "dat", "base"):
        assert found(common, query, limits=Limits()) == found(common, query)


def test_common_words_are_left_out_once_enough_is_found(common: Path) -> None:
    few = NO_LIMITS._replace(postings=1)
    assert found(common, "data rare", 1, few) == found(common, "rare", 1)
    assert list(found(common, "data rare", 2, few).items()) == list(found(common, "data rare", 2).items())
    assert found(common, "data", 5, few) == found(common, "data", 5)


def test_the_bound_acts_after_the_filter(common: Path) -> None:
    few = NO_LIMITS._replace(postings=1)
    even = found(common, "data rare", 5, few, where={"odd": 0})
    assert len(even) == 5
    assert all(int(id) % 2 == 0 for id in even)
    assert even == found(common, "data rare", 5, where={"odd": 0})


def test_documents_without_words_are_not_found(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add([entry("1", "some text"), *(entry(str(i), "") for i in range(3, 9000, 2))])
        assert [match.id for match in index.lexical(["text"], 10, where={"odd": 1})[0]] == ["1"]
        assert index.verify() == []


def test_common_words_are_not_completed_but_count_twice(common: Path) -> None:
    completed, whole = found(common, "base"), found(common, "base", limits=NO_LIMITS._replace(completed=39))
    assert set(completed) - set(whole) == {str(i) for i in range(120) if i % 10 == 0 and i % 3}
    one = found(common, "base", limits=NO_LIMITS._replace(completions=0))
    assert whole == one
    assert found(common, "base", limits=NO_LIMITS._replace(completed=40)) == completed


def test_the_commonest_completions_are_read(common: Path) -> None:
    three = found(common, "bas", limits=NO_LIMITS._replace(completions=3))  # base, basea, baseb
    assert set(three) == {str(i) for i in range(120) if i % 3 == 0} | {"0", "10"}


def test_what_has_no_words_is_not_counted_when_it_goes(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add([entry("0", "data base"), entry("1", ""), entry("2", "data file")])
        index.delete(["1"])
        assert [match.id for match in index.lexical(["data"], 3)[0]] == ["0", "2"]
        index.delete(["0"])
        assert [match.id for match in index.lexical(["data"], 3)[0]] == ["2"]
        assert index.verify() == []


CHANGES = [
    "UPDATE postings SET data = CAST(data || x'00' AS BLOB)",
    "UPDATE postings SET contents = 'x'",
    "UPDATE lengths SET data = CAST(data || x'00' AS BLOB)",
    "UPDATE lengths SET block = block + 1",
    "UPDATE runs SET run = run + 1",
    "UPDATE runs SET last = 1 << 40",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_is_never_searched(tmp_path: Path, change: str) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add([entry(str(i), "data base") for i in range(100)])
        database = sqlite3.connect(tmp_path / "index" / "catalog.sqlite")
        with database:
            database.execute(change)
        database.close()
        index.refresh()
    with MultiVectorIndex.open(tmp_path / "index") as index:
        with pytest.raises(IndexFormatError, match="damaged"):
            index.lexical(["data"], 3)
        assert any("damaged" in line for line in index.verify())
