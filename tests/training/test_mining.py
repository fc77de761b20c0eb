"""Mining against brute force: which texts become negatives, with which scores, whatever interrupts it."""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.errors import DataError
from mbretrieve.evaluation.bm25 import BM25
from mbretrieve.evaluation.rerankers import CrossEncoder
from mbretrieve.models import load_encoder
from mbretrieve.training import mining
from mbretrieve.training.finders import Bm25Finder, EncoderFinder, of_encoder, of_reranker
from mbretrieve.training.mining import MARGIN, POSITIVE, QUERY, MiningOptions, MiningReport, Teacher, mine
from mbretrieve.training.pairs import BeirFolder, Found, Pair, PairFile, open_pairs, text_id
from mbretrieve.types import Document, Kind, Progress, rows_of
from tests.evaluation.sets import MODULES, functions, write_set

Rows = list[dict[str, Any]]


def write_pairs(path: Path, pairs: Iterable[Sequence[str]]) -> PairFile:
    path.write_text("".join(json.dumps({"query": q, "positive": p}) + "\n" for q, p in pairs), "utf-8")
    return PairFile(path)


def read(path: Path) -> Rows:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


@pytest.fixture(scope="module")
def known() -> list[Pair]:
    """Docstrings and their functions; some with a second answer, a copy spaced otherwise, and a query among texts."""
    found = [Pair(said, code) for module in MODULES for said, code in functions(module).values()][:48]
    found.append(Pair(found[0].query, found[1].positive))
    found.append(Pair(found[2].query, f"  {found[2].positive} \n"))
    found.append(Pair(found[4].query, found[3].query))
    return found


def brute_force(scores: np.ndarray, texts: list[str], pairs: list[Pair], options: MiningOptions) -> Rows:
    """Mine by the definition: all scores (pairs, texts), the texts distinct; top of the range."""
    out = []
    place = {text_id(text): at for at, text in enumerate(texts)}
    for number, pair in enumerate(pairs):
        barred = {text_id(other.positive) for other in pairs if other.query == pair.query} | {text_id(pair.query)}
        ranked = [at for at in np.argsort(-scores[number], kind="stable") if text_id(texts[at]) not in barred]
        positive = scores[number, place[text_id(pair.positive)]]
        within = [
            at for at in ranked[options.first - 1 : options.last] if scores[number, at] <= options.highest(positive)
        ]
        taken = within[: options.negatives]
        if taken:
            out.append(
                {
                    "negatives": [texts[at] for at in taken],
                    "scores": scores[number, [place[text_id(pair.positive)], *taken]],
                }
            )
    return out


def all_scores(kind: Kind, model: Any, queries: list[str], texts: list[str]) -> np.ndarray:
    """MaxSim or the cosine of everything with everything, in numpy."""
    questions, rows = model.encode_queries(queries), model.encode_documents(texts)
    if kind == "dense":
        return np.asarray(questions @ rows.T)
    asked, answers = ([rows_of(text, "colbert") for text in side] for side in (questions, rows))
    return np.array([[(one @ other.T).max(axis=1).sum() for other in answers] for one in asked])


@pytest.mark.parametrize("margin", [{}, {"relative_margin": 0.1}, {"margin": 0.05}])
@pytest.mark.parametrize("kind", ["colbert", "dense", "joint"])
def test_an_encoder_mines_as_brute_force_does(
    tmp_path: Path, known: list[Pair], kind: Kind, margin: dict[str, float]
) -> None:
    model = load_encoder(kind, dtype="float32", device="cpu")
    options = MiningOptions(negatives=4, first=3, last=15, **margin)
    report = mine(write_pairs(tmp_path / "in.jsonl", known), EncoderFinder(model), tmp_path / "out.jsonl", options)
    texts = list({text_id(pair.positive): pair.positive for pair in reversed(known)}.values())
    scores = all_scores(kind, model, [pair.query for pair in known], texts)
    found, expected = read(tmp_path / "out.jsonl"), brute_force(scores, texts, known, options)
    assert report.pairs == len(known)
    assert report.examples == len(found) == len(expected)
    assert report.rejected[POSITIVE] > 0
    assert report.rejected[QUERY] > 0
    assert (report.rejected[MARGIN] > 0) == bool(margin)
    for row, wanted in zip(found, expected, strict=True):
        # The index ranks by halves, in which two neighbours may change places.
        ours, theirs = (
            {text_id(t): s for t, s in zip(r["negatives"], r["scores"][1:], strict=True)} for r in (row, wanted)
        )
        assert ours == pytest.approx(theirs, rel=1e-5), "the model's own scores, not the index's"
        assert row["scores"] == pytest.approx(wanted["scores"], rel=1e-3), "in the order of the ranking"
        assert all(score <= options.highest(row["scores"][0]) for score in row["scores"][1:])
    assert not (tmp_path / "out.jsonl.work").exists()


def test_stored_scores_are_the_indexs(tmp_path: Path, known: list[Pair]) -> None:
    model = load_encoder("colbert", dtype="float32", device="cpu")
    source, options = write_pairs(tmp_path / "in.jsonl", known), MiningOptions(negatives=3)
    for name, stored in (("index", True), ("model", False)):
        mine(source, EncoderFinder(model, stored=stored), tmp_path / f"{name}.jsonl", options)
    for ours, exact in zip(read(tmp_path / "index.jsonl"), read(tmp_path / "model.jsonl"), strict=True):
        assert ours["negatives"] == exact["negatives"]
        assert ours["scores"] == pytest.approx(exact["scores"], rel=2e-3)  # float16


def test_bm25_mines_as_brute_force_does(tmp_path: Path, known: list[Pair]) -> None:
    options = MiningOptions(negatives=4, first=2, last=12, relative_margin=0.2)
    mine(write_pairs(tmp_path / "in.jsonl", known), Bm25Finder(), tmp_path / "out.jsonl", options)
    texts = list({text_id(pair.positive): pair.positive for pair in reversed(known)}.values())[::-1]
    bm25 = BM25([Document(text_id(text), text) for text in texts])
    scores = np.array([bm25.scores(pair.query) for pair in known])
    for pair, row in zip(known, scores, strict=True):
        hits = {hit.id: hit.score for hit in bm25.search([pair.query], len(texts))[0]}
        assert [hits.get(text_id(text), 0.0) for text in texts] == pytest.approx(row.tolist())
    found = read(tmp_path / "out.jsonl")
    by_pair = {(row["query"], row["positive"]): row for row in found}
    for number, pair in enumerate(known):
        row = by_pair.get((pair.query, pair.positive))
        if row is None:
            continue
        of_text = {text_id(text): scores[number, at] for at, text in enumerate(texts)}
        expected = [of_text[text_id(text)] for text in (pair.positive, *row["negatives"])]
        assert row["scores"] == pytest.approx(expected)
        assert all(0 < score <= options.highest(expected[0]) for score in expected[1:])
    assert len(found) > len(known) / 2


def test_a_teacher_scores_in_the_finders_place(tmp_path: Path, known: list[Pair]) -> None:
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    from tests.models import small

    size = small.tokenizer(tmp_path / "judge")
    config = ModernBertConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=0, num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    ModernBertForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    reranker = CrossEncoder(str(tmp_path / "judge"), "cpu")
    pairs = known[:12]
    source, options = write_pairs(tmp_path / "in.jsonl", pairs), MiningOptions(negatives=3, margin=0.0)
    encoder = load_encoder("dense", dtype="float32", device="cpu")
    for name, scores in (("cross", of_reranker(reranker)), ("encoder", of_encoder(encoder))):
        output = tmp_path / f"{name}.jsonl"
        mine(source, Bm25Finder(), output, options, teacher=Teacher({"name": name}, scores))
        found = read(output)
        assert found
        for row in found:
            texts = [row["positive"], *row["negatives"]]
            if name == "cross":
                expected = reranker._model.predict([(row["query"], text) for text in texts], show_progress_bar=False)
            else:
                expected = all_scores("dense", encoder, [row["query"]], texts)[0]
            assert row["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
            assert max(row["scores"]) == row["scores"][0]


class Scripted:
    """A finder whose scores are given: a table of queries and texts; ``scored`` or told text by text."""

    def __init__(self, texts: list[str], scores: np.ndarray, stop: int | None = None, scored: bool = False) -> None:
        self.every, self.table, self.left, self.scored = texts, scores, stop, scored
        self.rows = {text_id(text): at for at, text in enumerate(texts)}

    @property
    def identity(self) -> dict[str, Any]:
        return {"kind": "scripted"}

    def build(self, texts: Iterable[Document], folder: Path, progress: Progress | None) -> None:
        assert {document.id for document in texts} <= self.rows.keys()

    def search(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        ranked = [np.argsort(-self._row(query), kind="stable")[:k] for query in queries]
        return [
            [(text_id(self.every[at]), float(self._row(query)[at])) for at in order]
            for query, order in zip(queries, ranked, strict=True)
        ]

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        return {id: self.every[self.rows[id]] for id in ids}

    def scores(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return [
            [float(self._row(query)[self.rows[text_id(text)]]) for text in some]
            for query, some in zip(queries, texts, strict=True)
        ]

    def close(self) -> None:
        pass

    def _row(self, query: str) -> np.ndarray:
        return self.table[int(query.removeprefix("q")) % len(self.table)]


TEXTS = [f"text {number}" for number in range(24)]
OPTIONS = st.builds(
    lambda negatives, first, span, sampling, margin, seed, complete: MiningOptions(
        negatives, first, first + span, sampling, **margin, seed=seed, complete=complete
    ),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 20),
    st.sampled_from(["top", "random"]),
    st.sampled_from([{}, {"margin": 0.3}, {"margin": -0.2}, {"relative_margin": 0.3}]),
    st.integers(0, 5),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    options=OPTIONS,
    seed=st.integers(0, 1000),
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 23)), min_size=1, max_size=20),
    stops=st.lists(st.integers(0, 4), max_size=4),
)
def test_laws_of_choosing(
    tmp_path_factory: pytest.TempPathFactory,
    options: MiningOptions,
    seed: int,
    pairs: list[tuple[int, int]],
    stops: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("mined")
    table = np.random.default_rng(seed).normal(size=(6, len(TEXTS))).round(1)
    known = [Pair(f"q{query}", TEXTS[text]) for query, text in pairs]
    source = write_pairs(folder / "in.jsonl", known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "BATCH", 3)
        report = mine(source, Scripted(TEXTS, table), folder / "whole.jsonl", options)
        # Of a finder whose scores are known with what it finds, no more than a positive that was not found is scored.
        assert mine(source, Scripted(TEXTS, table, scored=True), folder / "scored.jsonl", options) == report
        assert (folder / "scored.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
        for stop in stops:  # Ctrl-C again and again, and a line that a killed process half wrote
            with pytest.raises(KeyboardInterrupt):
                mine(source, Scripted(TEXTS, table, stop=0), folder / "resumed.jsonl", options)
            with (folder / "resumed.jsonl.work" / "found").open("ab") as file:
                file.write(b'{"query": "half')
            try:
                mine(source, Scripted(TEXTS, table, stop=stop), folder / "resumed.jsonl", options)
                break
            except KeyboardInterrupt:
                pass
        else:
            assert mine(source, Scripted(TEXTS, table), folder / "resumed.jsonl", options) == report
    found = read(folder / "whole.jsonl")
    assert (folder / "resumed.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    remaining = iter(known)
    for row in found:
        number = next(n for n in remaining if (n.query, n.positive) == (row["query"], row["positive"]))
        of_query = table[int(number.query[1:])]
        positives = {pair.positive for pair in known if pair.query == number.query}
        ranked = [TEXTS[at] for at in np.argsort(-of_query, kind="stable") if TEXTS[at] not in positives]
        within = ranked[options.first - 1 : options.last]
        scores = {text: float(of_query[at]) for at, text in enumerate(TEXTS)}
        allowed = [text for text in within if scores[text] <= options.highest(scores[number.positive])]
        assert len(row["negatives"]) == len(set(row["negatives"])) == min(options.negatives, len(allowed))
        assert set(row["negatives"]) <= set(allowed)
        if options.sampling == "top":
            assert row["negatives"] == allowed[: options.negatives]
        assert row["scores"] == [scores[text] for text in (number.positive, *row["negatives"])]
    assert (report.pairs, report.examples) == (len(known), len(found))
    assert report.examples + report.without == report.pairs
    assert report.negatives == sum(len(row["negatives"]) for row in found)
    assert not (options.complete and report.short)
    assert report.short == sum(len(row["negatives"]) < options.negatives for row in found)


def test_a_seed_draws_the_same_and_another_does_not(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(6, len(TEXTS)))
    source = write_pairs(tmp_path / "in.jsonl", [(f"q{n}", TEXTS[n]) for n in range(6)])
    written = []
    for number, seed in enumerate((7, 7, 8)):
        output = tmp_path / f"{number}.jsonl"
        mine(source, Scripted(TEXTS, table), output, MiningOptions(3, sampling="random", seed=seed))
        written.append(output.read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_packed_output_holds_the_same_lines_and_the_same_bytes_again(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(6, len(TEXTS)))
    source = write_pairs(tmp_path / "in.jsonl", [(f"q{n}", TEXTS[n]) for n in range(6)])
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.gz"):
        mine(source, Scripted(TEXTS, table), tmp_path / name, MiningOptions(3))
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl.gz")
    assert (tmp_path / "b.jsonl.gz").read_bytes() == (tmp_path / "c.jsonl.gz").read_bytes()


def test_a_beir_folder_is_mined_from_its_corpus(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    source = open_pairs(folder, "test")
    assert isinstance(source, BeirFolder)
    found = list(source.pairs())
    assert len(found) == 2 * len({pair.query for pair in found}), "both grades answer"
    report = mine(source, Bm25Finder(), tmp_path / "out.jsonl", MiningOptions(negatives=2))
    assert isinstance(report, MiningReport)
    answers = {query: {pair.positive for pair in found if pair.query == query} for query, _ in found}
    texts = set(source.texts())
    for row in read(tmp_path / "out.jsonl"):
        assert set(row["negatives"]) <= texts - answers[row["query"]]


BAD = {
    "empty_side": (b'{"query": "a", "positive": "b"}\n{"query": " ", "positive": "b"}\n', r"in.jsonl:2: query is ' '"),
    "missing": (b'{"query": "a"}\n', r"in.jsonl:1: positive is nothing, expected a text"),
    "not_text": (b'{"query": "a", "positive": ["b"]}\n', r"in.jsonl:1: positive is \['b'\]"),
    "broken": (b'{"query": "a", "positive": "b"}\n{"query": \n', r"in.jsonl:2: not a line of JSON"),
    "not_utf8": (b'{"query": "\xff"}\n', r"in.jsonl:1: not a line of JSON in UTF-8"),
    "a_list": (b"[1]\n", r"in.jsonl:1: expected a JSON object"),
    "empty": (b"\n", "there are no pairs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pairs_are_one_line(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        mine(PairFile(tmp_path / "in.jsonl"), Bm25Finder(), tmp_path / "out.jsonl", MiningOptions())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_packed_file_that_breaks_off(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"query": f"q {n}", "positive": f"p {n * 7919}"}) + "\n" for n in range(5000))
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-200])
    with pytest.raises(DataError, match=r"in.jsonl.gz is not a whole gzip file"):
        list(PairFile(tmp_path / "in.jsonl.gz").pairs())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negatives": 0}, "0 negatives"),
        ({"first": 0}, "ranks 0 to 100"),
        ({"first": 9, "last": 8}, "ranks 9 to 8"),
        ({"margin": 1.0, "relative_margin": 0.1}, "both"),
        ({"margin": float("nan")}, "the margin is nan"),
        ({"relative_margin": 5.0}, "the relative margin is 5.0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        MiningOptions(**options)


def interrupted(folder: Path) -> tuple[PairFile, np.ndarray]:
    table = np.random.default_rng(0).normal(size=(6, len(TEXTS)))
    source = write_pairs(folder / "in.jsonl", [(f"q{n}", TEXTS[n]) for n in range(6)])
    with pytest.raises(KeyboardInterrupt):
        mine(source, Scripted(TEXTS, table, stop=0), folder / "out.jsonl", MiningOptions(3))
    return source, table


def test_what_another_run_left_is_not_gone_on_with(tmp_path: Path) -> None:
    source, table = interrupted(tmp_path)
    with pytest.raises(DataError, match="a run with another options"):
        mine(source, Scripted(TEXTS, table), tmp_path / "out.jsonl", MiningOptions(4))
    write_pairs(tmp_path / "in.jsonl", [("q1", TEXTS[2])])
    with pytest.raises(DataError, match="a run with another source"):
        mine(source, Scripted(TEXTS, table), tmp_path / "out.jsonl", MiningOptions(3))
    (tmp_path / "out.jsonl.work" / "state.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        mine(source, Scripted(TEXTS, table), tmp_path / "out.jsonl", MiningOptions(3))


def test_an_output_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    source = write_pairs(tmp_path / "in.jsonl", [("q1", TEXTS[2])])
    with pytest.raises(DataError, match="exists"):
        mine(source, Bm25Finder(), tmp_path / "out.jsonl", MiningOptions())
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_an_index_that_was_interrupted_is_gone_on_with(tmp_path: Path, known: list[Pair]) -> None:
    model = load_encoder("dense", dtype="float32", device="cpu")
    source = write_pairs(tmp_path / "in.jsonl", known)
    mine(source, EncoderFinder(model), tmp_path / "whole.jsonl", MiningOptions(3))

    class Breaking(PairFile):
        def texts(self) -> Iterator[str]:
            for number, text in enumerate(super().texts()):
                if number == 30:
                    raise KeyboardInterrupt
                yield text

    with pytest.raises(KeyboardInterrupt):
        mine(Breaking(tmp_path / "in.jsonl"), EncoderFinder(model), tmp_path / "resumed.jsonl", MiningOptions(3))
    mine(source, EncoderFinder(model), tmp_path / "resumed.jsonl", MiningOptions(3))
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
