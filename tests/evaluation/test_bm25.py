"""BM25 against its formula, and the words it sees."""

import math
import sys

import pytest

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.evaluation.bm25 import BM25, looks_like_code
from mbretrieve.types import Document, Searcher

PROSE = [
    Document("fox", "The quick brown foxes are jumping over the lazy dogs"),
    Document("dog", "A dog sleeps", {"lang": "en"}),
    Document("tea", "Tea and biscuits", context="Afternoon"),
]
CODE = [
    Document("parse", "def parseJSONFile(file_name):\n    return json.load(open(file_name))[0];"),
    Document("write", "def write_table(rows):\n    print({row: len(row) for row in rows});"),
]


def ids(searcher: BM25, query: str, k: int = 10) -> list[str]:
    return [hit.id for hit in searcher.search([query], k)[0]]


def test_scores_are_lucenes_formula() -> None:
    """Robertson's weight without its constant factor k1 + 1, and the idf ``ln(1 + (N - n + .5) / (n + .5))``."""
    documents = [Document("a", "red red blue"), Document("b", "red green yellow pink"), Document("c", "blue")]
    (hits,) = BM25(documents, code=False).search(["red"])
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (3 + 4 + 1) / 3
    expected = {
        "a": idf * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * 3 / mean)),
        "b": idf * 1 / (1 + 0.9 * (1 - 0.4 + 0.4 * 4 / mean)),
    }
    assert {hit.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5)


def test_it_is_a_searcher_whose_hits_are_whole_documents() -> None:
    searcher = BM25(PROSE)
    assert isinstance(searcher, Searcher)
    (hit,), nothing = searcher.search(["sleeping", "the of and"])
    assert (hit.id, hit.text, hit.metadata, hit.span) == ("dog", "A dog sleeps", {"lang": "en"}, (0, 12))
    assert nothing == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("JUMPED fox", ["fox"]),  # lower-cased and stemmed
        ("dog", ["dog", "fox"]),  # the shorter document first
        ("afternoon", ["tea"]),  # the context is searched
        ("the", []),  # a stop word
        ("zebra", []),  # no document is a hit without a word in common
        ("", []),
        ("!?", []),
    ],
)
def test_words(query: str, found: list[str]) -> None:
    assert ids(BM25(PROSE), query) == found


@pytest.mark.parametrize("query", ["json file", "parse", "FILE name", "parseJSONFile"])
def test_identifiers_are_cut_in_code(query: str) -> None:
    assert ids(BM25(CODE), query)[0] == "parse"
    assert BM25(CODE).report()["parameters"]["code"] is True


def test_identifiers_stay_whole_in_prose() -> None:
    assert ids(BM25(CODE, code=False), "parse") == []


def test_code_and_prose_are_told_apart() -> None:
    assert looks_like_code(CODE)
    assert not looks_like_code(PROSE)
    assert not looks_like_code([Document("a", "")])


def test_depth_is_an_argument_and_more_than_there_is_gives_all() -> None:
    searcher = BM25(PROSE)
    assert len(searcher.search(["dog fox"], k=1)[0]) == 1
    assert len(searcher.search(["dog fox"], k=1_000)[0]) == 2
    assert searcher.search([]) == []
    with pytest.raises(ValueError, match="k is at least 1"):
        searcher.search(["dog"], k=0)


def test_the_report_counts_the_index() -> None:
    report = BM25(PROSE).report()
    assert report["documents"] == 3
    assert report["bytes"] > 0
    assert report["seconds"]["index"] > 0


@pytest.mark.parametrize("documents", [[], [Document("a", "")], [Document("a", "the"), Document("b", "日本")]])
def test_a_corpus_without_words_is_refused(documents: list[Document]) -> None:
    with pytest.raises(DataError, match=r"the corpus is empty|no document has a word for BM25"):
        BM25(documents)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r'pip install "mbretrieve\[eval\]"'):
        BM25(PROSE)
