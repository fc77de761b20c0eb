"""The retriever against its laws: hits are brute force's, unchanged text is not encoded again, windows cover all."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.cutting import cut, passage
from mbretrieve.errors import DataError, IndexFormatError, ModelError
from mbretrieve.index import Effort
from mbretrieve.index.fusion import reciprocal_rank_fusion, weighted_sum
from mbretrieve.models import load_encoder
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.models.joint import JointEncoder
from mbretrieve.retriever import Mode, Retriever
from mbretrieve.types import Document, rows_of

DOCUMENTS = [
    Document("bread", "Knead the dough, let it rise, then bake it.", {"kind": "food", "year": 2001}),
    Document("parse", "def parse_arguments(argv):\n    return parser.parse_args(argv)", {"kind": "code", "year": 2010}),
    Document("paris", "Paris is the capital of France.", {"kind": "city", "year": 2010}, context="Cities of Europe"),
    Document("oslo", "Oslo is the capital of Norway.", {"kind": "city", "year": 2020}, context="Cities of Europe"),
    Document("empty", "", {"kind": "nothing", "year": 1999}),
]
LONG = " ".join(f"Chapter {i} tells of the {word} and what became of it in the end." for i, word in enumerate(
    ["lighthouse", "orchard", "locomotive", "monastery", "glacier", "harbour", "volcano", "telescope"] * 12
))  # fmt: skip


@pytest.fixture(scope="module", params=["colbert", "dense", "joint"])
def model(request: pytest.FixtureRequest) -> ColBERT | DenseEncoder | JointEncoder:
    return load_encoder(request.param, dtype="float32")


@pytest.fixture
def retriever(model: ColBERT | DenseEncoder | JointEncoder, tmp_path: Path) -> Iterator[Retriever]:
    with Retriever.create(tmp_path / "index", model) as made:
        yield made


def brute_force(
    model: ColBERT | DenseEncoder | JointEncoder, query: str, documents: list[Document]
) -> dict[str, float]:
    vectors = model.encode_documents([passage(d.context, d.text) for d in documents])
    question = rows_of(model.encode_queries([query])[0], "colbert")
    return {
        d.id: float((question @ rows_of(v, "colbert").T).max(axis=1).sum())
        for d, v in zip(documents, vectors, strict=True)
    }


def test_semantic_search_is_brute_force(retriever: Retriever, model: ColBERT | DenseEncoder | JointEncoder) -> None:
    retriever.add(DOCUMENTS)
    for query in ("capital of Norway", "read the command line", "baking"):
        expected = brute_force(model, query, DOCUMENTS)
        hits = retriever.search([query], k=10, mode="semantic")[0]
        assert [hit.id for hit in hits] == sorted(expected, key=lambda i: -expected[i])
        # The index keeps vectors as float16: their own rounding, times the number of query tokens.
        assert [hit.score for hit in hits] == pytest.approx([expected[hit.id] for hit in hits], abs=2e-2)


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "lexical"])
def test_a_hit_shows_the_document(retriever: Retriever, mode: str) -> None:
    retriever.add(DOCUMENTS)
    hit = retriever.search(["capital of France"], k=1, mode=mode)[0][0]  # type: ignore[arg-type]
    assert (hit.id, hit.text, hit.metadata) == ("paris", DOCUMENTS[2].text, DOCUMENTS[2].metadata)
    assert hit.text[slice(*hit.span)] == hit.text


@pytest.mark.parametrize("mode", ["hybrid", "semantic", "lexical"])
def test_many_queries_are_one_each(retriever: Retriever, mode: str) -> None:
    retriever.add(DOCUMENTS)
    queries = ["capital of France", "parse arguments", "dough", "zzz qqq"]
    together = retriever.search(queries, k=3, mode=mode)  # type: ignore[arg-type]
    for query, hits in zip(queries, together, strict=True):
        alone = retriever.search([query], k=3, mode=mode)[0]  # type: ignore[arg-type]
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-4)


def test_the_two_rankings_are_joined_by_scores_or_by_ranks(retriever: Retriever) -> None:
    retriever.add(DOCUMENTS)
    query = ["capital of France"]
    [semantic], [lexical] = (
        retriever.index.search(retriever.model.encode_queries(query), 200),
        retriever.index.lexical(query, 200),
    )
    both = [{match.id: match.score for match in matches} for matches in (semantic, lexical)]
    for fusion, join in (("weighted", weighted_sum), ("rrf", reciprocal_rank_fusion)):
        hits = retriever.search(["capital of France"], k=3, fusion=fusion, lexical_weight=0.5)[0]  # type: ignore[arg-type]
        expected = sorted(join(both[0], both[1], 0.5).items(), key=lambda one: (-one[1], one[0]))[:3]
        assert [hit.id for hit in hits] == [id for id, _ in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-4)
    with pytest.raises(ValueError, match="'weighted' or 'rrf'"):
        retriever.search(["x"], fusion="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["hybrid", "semantic"])
def test_how_far_to_look_can_be_said(retriever: Retriever, model: object, mode: Mode) -> None:
    """All but a joint index compare every vector here; that one fetches as many documents as it is told."""
    retriever.add(DOCUMENTS)
    [usual], [exact] = (retriever.search(["capital"], k=5, mode=mode, exact=exact) for exact in (False, True))
    assert [(hit.id, hit.score) for hit in exact] == [(hit.id, pytest.approx(hit.score, abs=1e-4)) for hit in usual]
    [little] = retriever.search(["capital"], k=5, mode=mode, effort=Effort(probes=1, tokens=1, rescore=1))
    if isinstance(model, JointEncoder):  # what was found by words, too, is joined to it
        assert len(little) == 1 if mode == "semantic" else len(little) < 5
    else:
        assert little == usual


def test_k_over_the_corpus_gives_every_document(retriever: Retriever) -> None:
    retriever.add(DOCUMENTS)
    for mode in ("hybrid", "semantic"):
        assert {hit.id for hit in retriever.search(["city"], k=1000, mode=mode)[0]} == {d.id for d in DOCUMENTS}  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["hybrid", "semantic"])
def test_filters_act_before_ranking(retriever: Retriever, mode: str) -> None:
    retriever.add(DOCUMENTS)
    hits = retriever.search(["bake bread"], k=2, where={"kind": "city"}, mode=mode)[0]  # type: ignore[arg-type]
    assert {hit.id for hit in hits} == {"paris", "oslo"}
    years = {"year": {"gte": 2001, "lt": 2020}}
    hits = retriever.search(["bake bread"], k=5, where=years, ids={"parse", "oslo"}, mode=mode)[0]  # type: ignore[arg-type]
    assert [hit.id for hit in hits] == ["parse"]


def test_what_is_unchanged_is_not_encoded_again(retriever: Retriever) -> None:
    report = retriever.add(DOCUMENTS)
    assert (report.added, report.encoded, report.unchanged) == (5, 5, 0)
    assert (again := retriever.add(DOCUMENTS)).unchanged == 5
    assert again.encoded == 0
    moved = Document("paris", DOCUMENTS[2].text, {"kind": "city", "year": 2011}, DOCUMENTS[2].context)
    renamed = Document("lutetia", DOCUMENTS[2].text, {}, DOCUMENTS[2].context)
    rewritten = Document("oslo", "Oslo lies on a fjord.", {}, DOCUMENTS[3].context)
    report = retriever.add([moved, renamed, rewritten])
    assert (report.added, report.updated, report.reused, report.encoded) == (1, 2, 2, 1)
    assert {hit.id for hit in retriever.search(["capital of France"], k=2, mode="semantic")[0]} == {"paris", "lutetia"}
    assert retriever.search(["paris"], k=1, where={"year": 2011})[0][0].id == "paris"
    assert retriever.verify() == []


def test_swapped_texts_keep_their_vectors(retriever: Retriever) -> None:
    retriever.add(DOCUMENTS)
    a, b = DOCUMENTS[0], DOCUMENTS[1]
    report = retriever.add([Document(a.id, b.text), Document(b.id, a.text)])
    assert (report.reused, report.encoded) == (2, 0)
    assert retriever.search(["bake bread"], k=1, mode="semantic")[0][0].id == b.id


def test_deleted_documents_do_not_come_back(retriever: Retriever) -> None:
    retriever.add(DOCUMENTS)
    assert retriever.delete(["paris", "nobody"]) == 1
    for mode in ("hybrid", "semantic", "lexical"):
        assert "paris" not in {hit.id for hit in retriever.search(["capital of France"], k=9, mode=mode)[0]}  # type: ignore[arg-type]
    assert retriever.add([DOCUMENTS[2]]).added == 1
    assert retriever.search(["capital of France"], k=1)[0][0].id == "paris"


def test_a_long_document_scores_as_its_best_window_and_is_returned_once(
    retriever: Retriever, model: ColBERT | DenseEncoder | JointEncoder
) -> None:
    book = Document("book", f"{LONG} The smugglers hid the emeralds under the floor. {LONG}", context="A long novel")
    retriever.add([*DOCUMENTS, book])
    question = "where were the emeralds hidden"
    [(context, spans)] = retriever.windows([book])
    assert len(spans) > 5
    parts = [Document(f"{start}", book.text[start:end], context=context) for start, end in spans]
    expected = brute_force(model, question, parts)
    hits = retriever.search([question], k=9, mode="semantic")[0]
    [hit] = [hit for hit in hits if hit.id == "book"]
    assert f"{hit.span[0]}" == max(expected, key=lambda start: expected[start])
    assert hit.score == pytest.approx(max(expected.values()), abs=2e-2)
    if model.kind == "colbert":
        assert hits[0] == hit
        assert "emeralds" in book.text[slice(*hit.span)]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.sampled_from(["parseArguments", "été", "漢字", "\n", "x = f(y)[0]", "🙂", "   ", '"', *LONG.split()]),
        max_size=900,
    )
)
def test_windows_cover_the_text_and_fit_the_model(words: list[str]) -> None:
    model = ColBERT.from_pretrained(dtype="float32")
    text = " ".join(words)
    retriever = Retriever(None, model)  # type: ignore[arg-type]  # only the model cuts
    [(context, windows)] = retriever.windows([Document("a", text, context="some/path.py inside of this")])
    assert windows[0][0] == 0
    assert windows[-1][1] == len(text)
    assert all(later[0] <= earlier[1] for earlier, later in pairwise(windows))
    lengths = [len(o) for o in model.token_offsets([passage(context, text[a:b]) for a, b in windows])]
    assert max(lengths) <= model.document_capacity


@settings(deadline=None)
@given(count=st.integers(0, 500), room=st.integers(1, 60))
def test_cut_makes_windows_of_at_most_the_room(count: int, room: int) -> None:
    offsets = np.stack([np.arange(count) * 2, np.arange(count) * 2 + 1], axis=1)
    windows = cut(offsets, 0, count * 2, room)
    assert windows[0][0] == 0
    assert windows[-1][1] == count * 2
    for start, end in windows:
        assert sum(start <= a and b <= end for a, b in offsets) <= room
    covered = {t for start, end in windows for t, (a, b) in enumerate(offsets) if start <= a and b <= end}
    assert covered == set(range(count))


def test_open_finds_its_model(
    retriever: Retriever, model: ColBERT | DenseEncoder | JointEncoder, tmp_path: Path
) -> None:
    retriever.add(DOCUMENTS)
    expected = retriever.search(["dough"], k=3)[0]
    with Retriever.open(tmp_path / "index", dtype="float32") as opened:
        found = opened.search(["dough"], k=3)[0]
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        assert opened.model.identity == model.identity


def test_another_model_is_refused(
    retriever: Retriever, model: ColBERT | DenseEncoder | JointEncoder, tmp_path: Path
) -> None:
    other = DenseEncoder if model.kind == "colbert" else ColBERT
    with pytest.raises(ModelError, match="index again"):
        Retriever.open(tmp_path / "index", other.from_pretrained())
    with pytest.raises(ModelError, match="dim"):
        Retriever.open(tmp_path / "index", type(model).from_pretrained(dim=32))


def test_bad_requests_are_refused(
    retriever: Retriever, model: ColBERT | DenseEncoder | JointEncoder, tmp_path: Path
) -> None:
    retriever.add(DOCUMENTS)
    with pytest.raises(ValueError, match="k is 0"):
        retriever.search(["a"], k=0)
    with pytest.raises(ValueError, match="mode"):
        retriever.search(["a"], mode="best")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="empty"):
        retriever.search(["  "])
    with pytest.raises(DataError, match="twice"):
        retriever.add([Document("new", "a"), Document("new", "b")])
    assert "new" not in {hit.id for hit in retriever.search(["a"], k=99, mode="semantic")[0]}
    with pytest.raises(DataError, match="index"):
        Retriever.create(tmp_path / "index", model)
    with pytest.raises(IndexFormatError):
        Retriever.open(tmp_path / "nothing")


def test_highlight_names_the_lines_that_answer(retriever: Retriever) -> None:
    text = "import os\n\ndef area(radius):\n    return pi * radius ** 2\n\ndef greet(name):\n    print('hello', name)\n"
    retriever.add([Document("m", text)])
    hits = retriever.search(["area of a circle from its radius"], k=1)[0]
    lines = retriever.highlight("area of a circle from its radius", hits)[0]
    assert set(lines) & {2, 3}
    assert not set(lines) & {5, 6}


def test_lines_are_marked_by_the_vectors_that_are_kept(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LONG.replace(". ", ".\n")
    retriever.add([Document("book", lines, context="Tales of old places"), *DOCUMENTS])
    hits = retriever.search(["what became of the glacier"], k=3, mode="semantic")[0]
    assert hits[0].id == "book"
    assert hits[0].span != (0, len(lines))  # one window of several
    if retriever.identity.kind != "dense":  # which has no vectors of lines
        monkeypatch.setattr(retriever.model, "encode_documents", None)
    marked = retriever.highlight("what became of the glacier", hits)[0]
    assert any("glacier" in lines.split("\n")[line] for line in marked)
    first = lines.count("\n", 0, hits[0].span[0])
    assert set(marked) <= set(range(first, first + hits[0].text[slice(*hits[0].span)].count("\n") + 1))


def test_kept_vectors_are_those_that_were_made(retriever: Retriever) -> None:
    retriever.add([Document("book", LONG, context="Tales of old places"), *DOCUMENTS])
    model, head = retriever.model, "dense" if retriever.identity.kind == "dense" else "colbert"
    [(context, spans)] = retriever.windows([Document("book", LONG, context="Tales of old places")])
    assert len(spans) > 1
    expected = [rows_of(row, head) for row in model.encode_documents([passage(context, LONG[a:b]) for a, b in spans])]  # type: ignore[arg-type]
    kept = retriever.index.vectors([*(("book", span) for span in reversed(spans)), ("book", (1, 2)), ("no", (0, 1))])
    assert kept[-2:] == [None, None]
    for rows, made in zip(reversed(kept[:-2]), expected, strict=True):
        np.testing.assert_allclose(rows, made, atol=1e-3)  # float16


def test_lexical_search_and_status_load_no_torch(retriever: Retriever, tmp_path: Path) -> None:
    retriever.add(DOCUMENTS)
    script = (
        "import sys; from mbretrieve.retriever import Retriever; r = Retriever.open(sys.argv[1]);"
        "print(r.search(['parse'], k=1, mode='lexical')[0][0].id, r.status()['documents'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index")], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["parse", "5", "False"]


def test_a_changed_id_is_named_or_changes_nothing(tmp_path: Path, model: ColBERT | DenseEncoder | JointEncoder) -> None:
    with Retriever.create(tmp_path / "index", model) as retriever:
        retriever.add([*DOCUMENTS, Document("an unusual name", "The glacier melts.")])
    catalogue = tmp_path / "index" / "catalog.sqlite"
    sound, said = catalogue.read_bytes(), set()
    places = [found.start() for found in re.finditer(b"an unusual name", sound)]
    assert len(places) >= 2  # in its row, and where ids are looked up
    for place in places:
        catalogue.write_bytes(sound[:place] + b"A" + sound[place + 1 :])
        with Retriever.open(tmp_path / "index") as retriever:
            try:
                [[hit]] = retriever.search(["glacier"], 1, mode="lexical")
                assert (hit.id, hit.text) == ("an unusual name", "The glacier melts.")
            except IndexFormatError as error:
                said.add("repair" in str(error))
    assert said == {True}
