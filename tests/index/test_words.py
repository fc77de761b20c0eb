"""The words of full-text search: what they are, that any text and any query are taken, and that BM25 ranks them."""

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbretrieve.index import Entry, MultiVectorIndex
from mbretrieve.index.words import MAX_TERMS, query_words, tokenize

TOKENS = {
    "HTTPServer2Error": ["httpserver2error", "http", "server", "2", "error"],
    "parse_arguments": ["parse_arguments", "parse", "arguments"],
    "JsonParser": ["jsonparser", "json", "parser"],
    "getURLs": ["geturls", "get", "urls"],
    "__init__": ["init"],
    "_ __": [],
    "utf8": ["utf8", "utf", "8"],
    "a.b->c[0]": ["a", "b", "c", "0"],
    "Café": ["café", "cafe"],
    "ﬁne \uff26\uff55\uff4c\uff4c": ["fine", "full"],
    "größe": ["größe", "große"],
    "naïveMode": ["naïvemode", "naivemode", "naive", "mode"],
    "東京都 猫": ["東京", "京都", "都", "猫"],
    "日本語parseだ": ["日本", "本語", "語", "parse", "だ"],
    "한국어": ["한국", "국어", "어"],
    "हिन्दी मे": ["हिन्दी", "हिनदी", "मे"],
    "שלום עולם": ["שלום", "עולם"],
    "fire🔥x 👨‍👩 ❤️": ["fire", "🔥", "x", "👨", "👩", "❤"],
    "a\0b\r\nc": ["a", "b", "c"],
    'NEAR("x*" - ^y) {z}:': ["near", "x", "y", "z"],
}


@pytest.mark.parametrize("text", TOKENS)
def test_words(text: str) -> None:
    assert tokenize(text) == TOKENS[text]


def test_queries_lose_stop_words_only_where_others_remain() -> None:
    assert query_words("how is the parser used") == ["parser"]
    assert query_words("How is it?") == ["how", "is", "it"]
    assert query_words(' "* -- ') == []


def test_a_query_of_any_length_is_cut() -> None:
    assert len(query_words(" ".join(f"w{i}" for i in range(50_000)))) == MAX_TERMS


def entry(id: str, text: str) -> Entry:
    return Entry(id, [[[1.0]]], [(0, len(text))], text)  # type: ignore[list-item]


FOUND = [
    ("parse", "def parse_arguments(): pass"),
    ("parse", "class JsonParser"),
    ("PARSE", "parser"),
    ("arguments", "parse_arguments"),
    ("server error", "HTTPServer2Error"),
    ("京", "東京都"),
    ("都", "東京都"),
    ("東京", "東京都"),
    ("cafe", "Café"),
    ("café", "cafe\u0301"),
    ("🔥", "on fire🔥!"),
    ("עולם", "שלום עולם"),
    ("tail", "a\0tail\r\n"),
    ("who are you", "who are you"),
]


@pytest.mark.parametrize(("query", "text"), FOUND)
def test_it_is_found(tmp_path: Path, query: str, text: str) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add([entry("it", text), entry("other", "qqq zzz")])
        assert [match.id for match in index.lexical([query], 10)[0]] == ["it"]
        assert index.documents(["it"])[0].text == text


def test_a_word_itself_is_better_than_a_completion_of_it(tmp_path: Path) -> None:
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add(
                [entry("a", "x parser y"), entry("b", "x parse y"), *(entry(f"c{i}", "q r s") for i in range(9))]
            )
        assert [match.id for match in index.lexical(["parse"], 10)[0]] == ["b", "a"]


def test_scores_are_bm25(tmp_path: Path) -> None:
    """Robertson and Zaragoza 2009, with k1 = 1.2 and b = 0.75; a word counts as itself and as a beginning."""
    texts = {"a": "lock the lock file", "b": "locks open", "c": "file the file the file", "d": "nothing at all here"}
    with MultiVectorIndex.create(tmp_path / "index", 1) as index:
        with index.writer() as writer:
            writer.add([entry(id, text) for id, text in texts.items()])
        [matches] = index.lexical(["lock nothing"], 10)
    words = {id: tokenize(text) for id, text in texts.items()}
    average = sum(map(len, words.values())) / len(words)
    expected: dict[str, float] = {}
    for term, whole in [("lock", True), ("lock", False), ("nothing", True), ("nothing", False)]:
        counts = {id: sum(w == term if whole else w.startswith(term) for w in words[id]) for id in words}
        having = sum(count > 0 for count in counts.values())
        weight = max(1e-6, math.log((len(words) - having + 0.5) / (having + 0.5)))
        for id, count in counts.items():
            if count:
                norm = count + 1.2 * (0.25 + 0.75 * len(words[id]) / average)
                expected[id] = expected.get(id, 0.0) + weight * count * 2.2 / norm
    assert {match.id: match.score for match in matches} == pytest.approx(expected)
    assert [match.window for match in matches] == [-1] * len(matches)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> MultiVectorIndex:
    return MultiVectorIndex.create(tmp_path_factory.mktemp("words") / "index", 1)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from([*'aB1_ "*^:(){}-+.\0\n日本🔥é', " AND ", " OR ", "NEAR("]), max_size=30
).map("".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, query=TEXT)
def test_any_text_and_any_query_are_taken(shared: MultiVectorIndex, text: str, query: str) -> None:
    with shared.writer() as writer:
        writer.add([entry("it", text)])
    assert shared.documents(["it"])[0].text == text
    shared.lexical([query], 5)
    for word in tokenize(text):
        assert [match.id for match in shared.lexical([word], 5)[0]] == ["it"], word
    assert shared.verify() == []


def test_long_texts_and_queries(shared: MultiVectorIndex) -> None:
    text = "alpha " * 20_000 + "Ω" * 100_000 + " 東" + "京" * 50_000 + " omega"
    with shared.writer() as writer:
        writer.add([entry("it", text)])
    assert shared.lexical(["omega", "x" * 100_000, "alpha " * 20_000], 5)[0][0].id == "it"
    assert shared.verify() == []
