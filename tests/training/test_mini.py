"""The bundled model's sequence of commands, on made packages and small models, and the laws of each of its steps."""

import gzip
import io
import json
import shlex
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from mbretrieve.errors import DataError
from mbretrieve.evaluation.report import read_result, write_result
from mbretrieve.models.checkpoint import load
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from mbretrieve.training.config import CardConfig, TrainConfig
from mbretrieve.training.data import Batches
from tests.models import small

ROOT = Path(__file__).parent.parent.parent
MINI = ROOT / "examples" / "mini"

PYTHON = '''
import os


class Account:
    """Money that somebody left with the bank.

    Attributes:
        balance: in cents
    """

    currency = "EUR"
    holders: list[str] = []

    def close(self, reason: str) -> int:
        """Close the account and return what is left on it.

        :param reason: why
        """
        left, self.balance = self.balance, 0
        return left

    def undocumented(self):
        return 1


def parse_amount(text):
    """
    Parses an amount of money with :class:`~decimal.Decimal`.

    >>> parse_amount("1.50")
    """
    return int(Decimal(text) * 100)
'''
GO = """// Copyright 2024 The Authors. All rights reserved.

package bank

// Transfer moves money from one account to another. It fails if
// there is not enough.
func (a *Account) Transfer(to *Account, cents int) error {
\tto.balance += cents
\treturn nil
}

// unrelated remark about the file

func plain() int { return 1234567890123 }
"""
JAVASCRIPT = """/**
 * Formats a number of {@link Cents} as money for <b>display</b>.
 *
 * @param {number} cents the amount
 */
export function formatMoney(cents) {
  return (cents / 100).toFixed(2);
}

// not documentation of anything
const helper = (x) => x + 1000000000;
"""
PACKAGE = {
    "bank/account.py": PYTHON,
    "bank/transfer.go": GO,
    "bank/money.js": JAVASCRIPT,
    "bank/tests/test_account.py": PYTHON.replace("Close", "Test closing of"),
    "bank/logo.png": "\0\1\2",
}


@pytest.fixture(scope="module")
def mini() -> Any:
    """The scripts as modules: they find each other as they do when they are run."""
    sys.path.insert(0, str(MINI))
    yield lambda name: import_module(name)
    sys.path.remove(str(MINI))


@pytest.fixture(scope="module", params=["folder", "wheel", "tar"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("package")
    if request.param == "wheel":
        with zipfile.ZipFile(place / "bank-1-py3-none-any.whl", "w") as archive:
            for name, text in PACKAGE.items():
                archive.writestr(name, text)
        return place / "bank-1-py3-none-any.whl"
    if request.param == "tar":
        with tarfile.open(place / "bank.tgz", "w:gz") as tar:
            for name, text in PACKAGE.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        return place / "bank.tgz"
    for name, text in PACKAGE.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def test_pairs_of_a_package(mini: Any, package: Path) -> None:
    pairs: ModuleType = mini("pairs")
    found = {row.query: row for row in pairs.distinct(pairs.rows(pairs.sources(package), "bank"))}
    assert {query: row.language for query, row in found.items()} == {
        "Money that somebody left with the bank.": "python",
        "Close the account and return what is left on it.": "python",
        "Parses an amount of money with decimal.Decimal.": "python",
        "moves money from one account to another.": "go",
        "Formats a number of Cents as money for display.": "js",
    }
    close = found["Close the account and return what is left on it."]
    assert close.positive == (
        "def close(self, reason: str) -> int:\n    left, self.balance = self.balance, 0\n    return left"
    )
    go = found["moves money from one account to another."]
    assert go.positive.startswith("func (a *Account) Transfer(")
    assert go.doc_comment == "Transfer moves money from one account to another. It fails if there is not enough."
    assert {(row.package, row.path.rpartition("/")[2]) for row in found.values()} == {
        ("bank", name) for name in ("account.py", "transfer.go", "money.js")
    }
    for row in found.values():
        assert row.query not in row.positive


@pytest.mark.parametrize(
    ("language", "text", "doc", "code"),
    [
        (
            "java",
            "/**\n * Adds two numbers.\n */\n@Override\nint add() {}",
            "Adds two numbers.",
            "@Override\nint add() {}",
        ),
        ("java", "/* no documentation */\nint add() {}", None, None),
        ("rust", "/// Adds.\n/// Twice.\n#[inline]\nfn add() {}", "Adds.\nTwice.", "#[inline]\nfn add() {}"),
        ("ruby", "  # Adds two.\n  def add\n  end", "Adds two.", "def add\nend"),
        ("c", "/* Adds. */\nint add(void) {}", "Adds.", "int add(void) {}"),
        ("c", "/* of the file */\n\n/* Adds. */\nint add(void) {}", "Adds.", "int add(void) {}"),
        ("go", "// of the file\n\nfunc Add() {}", None, None),
        ("java", "/** never ends\nint add() {}", None, None),
        ("python", "def f():\n  '''Only this.'''", None, None),
        ("python", "def f(:\n  '''Broken.'''", None, None),
        ("sql", "-- Adds.\nSELECT 1", None, None),
    ],
)
def test_documentation_is_what_stands_right_above(mini: Any, language: str, text: str, doc: str, code: str) -> None:
    found = mini("comments").documented(text, language)
    assert (found and found.doc, found and found.code) == (doc, code)


@pytest.mark.parametrize(
    ("paragraph", "name", "query"),
    [
        ("Opens the file for reading. Then more.", "Open", "Opens the file for reading."),
        ("ServeHTTP dispatches the request to a handler", "Mux.ServeHTTP", "dispatches the request to a handler"),
        ("Copyright 2020 by the authors of this file.", "f", None),
        ("Too short.", "f", None),
        ("x = y + z * 3; // 0xdeadbeef == 12", "f", None),
        ("打开文件 打开文件 打开文件 打开文件 file", "f", None),
    ],
)
def test_a_question_is_a_sentence_of_words(mini: Any, paragraph: str, name: str, query: str | None) -> None:
    assert mini("comments").question(paragraph, name) == query


def test_sources_that_cannot_be_used(mini: Any, tmp_path: Path) -> None:
    pairs = mini("pairs")
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(DataError, match="neither a folder nor a zip or tar archive"):
        list(pairs.sources(tmp_path / "notes.txt"))
    with pytest.raises(DataError, match="expected NAME:LICENCE=PATH"):
        pairs.named("bank")
    with pytest.raises(DataError, match=r"licence is GPL-3\.0, expected a permissive one"):
        pairs.named(f"bank:GPL-3.0={tmp_path}")
    with pytest.raises(DataError, match="is not there"):
        pairs.named("bank:MIT=nowhere")
    assert {package.licence for package in pairs.listed(MINI / "packages.toml", tmp_path)} <= set(pairs.PERMISSIVE)


@pytest.mark.parametrize(
    ("query", "draw", "typed"),
    [
        ("Returns the name of the user.", 0.0, "python name of the user"),
        ("Checks whether a file exists.", 0.4, "check whether a file exists in python"),
        ("This method is used to match all lines.", 0.55, "match all lines python"),
        ("Copies the file!", 0.65, "how to copy the file in python"),
        ("A copy of the file", 0.65, "a copy of the file"),
        ("Get the class of an alias", 0.99, "class of an alias"),
    ],
)
def test_queries_as_people_type_them(mini: Any, query: str, draw: float, typed: str) -> None:
    prepare = mini("prepare")
    assert prepare.searched(query, "python", draw) == typed
    assert sum(style.share for style in prepare.STYLES) == pytest.approx(1)


def test_a_share_of_documentations_queries_is_rewritten_the_same_each_time(mini: Any) -> None:
    prepare = mini("prepare")
    rows = [
        {"query": f"Returns the {number} of all users.", "positive": "x", "language": "go"} for number in range(999)
    ]
    styled = [prepare.styled(row, 0.4) for row in rows]
    assert styled == [prepare.styled(row, 0.4) for row in rows]
    assert 300 < sum(new != old for new, old in zip(styled, rows, strict=True)) < 500
    asked = [{"query": f"Returns the {number}?", "positive": "x"} for number in range(99)]
    assert [prepare.styled(row, 1.0) for row in asked] == asked


def lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


PASSAGE = (
    "A bank keeps the money of other people for a while. Interest is what a bank pays for the use of their savings. "
    "It is paid once a year. Call x.pay(1, 2) and y = z[0] to {pay} at $5 %d. Whoever borrows money pays more again."
)


def test_a_sentence_asks_for_its_passage(mini: Any) -> None:
    sentences = mini("sentences")
    rows = [{"query": f"Banks {number}", "positive": f"{PASSAGE} Bank number {number}."} for number in range(200)]
    found = [sentences.sentence_pair(row) for row in rows]
    assert found == [sentences.sentence_pair(row) for row in rows]
    assert {pair["query"] for pair in found} == {  # not what points back, is code or is short
        "A bank keeps the money of other people for a while.",
        "Interest is what a bank pays for the use of their savings.",
        "Whoever borrows money pays more again.",
    }
    assert 5 <= sum(pair["query"] in pair["positive"] for pair in found) <= 40
    assert 70 <= sum(pair["positive"].startswith("Banks") for pair in found) <= 130
    assert (
        sentences.sentence_pair(
            {"query": "Banks", "positive": "Only one sentence that says everything there is to say."}
        )
        is None
    )


def test_nothing_of_an_evaluation_is_trained_on(mini: Any, tmp_path: Path) -> None:
    prepare = mini("prepare")
    judged = tmp_path / "judged"
    lines(
        judged / "corpus.jsonl",
        [{"_id": "d", "text": 'def f(x):\n  """Doc."""\n  return  x + 1'}, {"_id": "o", "text": "another answer"}],
    )
    lines(judged / "queries.jsonl", [{"_id": "q", "text": "add one, to X"}, {"_id": "t", "text": "of training"}])
    (judged / "qrels").mkdir()
    for split, query in (("test", "q"), ("train", "t")):
        (judged / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\td\t1\n")
    rows = [
        {"query": "Add one to x!", "positive": "asked"},
        {"query": "shorter", "doc_comment": "Add one to x.", "positive": "asked at length"},
        {"query": "increments", "positive": "def f(x):\n    return x + 1"},
        {"query": "of training", "positive": "may stay"},
        {"query": "Of Training", "positive": "may stay"},
        {"query": "of training", "positive": "another answer"},
    ]
    kept = list(prepare.kept(rows, *prepare.evaluated([judged])))
    assert kept == [rows[3], rows[5]]


def run(script: str, *arguments: Any) -> None:
    command = [sys.executable, str(MINI / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that a small tokenizer can be learned from."""
    words = ["parseFile", "account", "transfer", "money", "close", "open", "read", "write", "index", "search"]
    rows = [
        {"query": f"{words[i % 10]} the {words[i // 10 % 10]} {i}", "positive": f"{words[i % 7]}({words[i % 9]}, {i})"}
        for i in range(200)
    ]
    return lines(tmp_path_factory.mktemp("pairs") / "made.jsonl.gz", rows)


class Letters:
    """A teacher of counted letters."""

    def encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
        counts = [[text.lower().count(chr(97 + at)) + 1.0 for at in range(26)] for text in texts]
        return np.array(counts, np.float16)


def test_from_pairs_to_a_model_that_training_starts_from(mini: Any, pairs: Path, tmp_path: Path) -> None:
    run("tokenizer.py", pairs, "--output", tmp_path / "tokenizer", "--vocab-size", 330, "--length", 512)
    embeddings, deepen, teach = mini("embeddings"), mini("deepen"), mini("teach")
    tokenizer = mini("texts").Tokenizer.load(tmp_path / "tokenizer")
    counts = mini("texts").token_counts(tokenizer, mini("texts").read_texts([pairs], 100))
    assert counts.sum() > 900

    # Embeddings: rare tokens the longer, special ones nothing, all numbers around 0.
    vectors = torch.from_numpy(Letters().encode(embeddings.strings(tmp_path / "tokenizer"))).float()
    table = embeddings.weighted(embeddings.principal(vectors, 16), counts)
    assert table.mean(dim=1).abs().max() < 1e-6
    unit = embeddings.principal(vectors, 16)
    rows = table.norm(dim=1) / (unit - unit.mean(dim=1, keepdim=True)).norm(dim=1).clamp_min(1e-6)
    common, rare = int(counts.argmax()), int(counts.argmin())
    assert rows[common] < rows[rare]
    static = embeddings.static_model(tokenizer, table, heads=2)
    embeddings.save(static, tmp_path / "static")

    # The teacher's vectors lie as the rows do, and a recipe takes them.
    for column, name in (("query", "queries"), ("positive", "positives")):
        assert teach.teach(Letters(), pairs, tmp_path / "teacher", column, name) == 200
    source = {"path": str(pairs), "teacher_vectors": str(tmp_path / "teacher")}
    config = TrainConfig.from_dict({"data": [source], "run": {"steps": 1}})
    batch = next(Batches(config.data, 8, seed=1))
    for example in batch:
        assert example.vectors is not None
        assert (example.vectors[0] == Letters().encode([example.query])[0]).all()

    # Layers that add nothing yet: the static model's vectors.
    twice = embeddings.Checkpoint(*deepen.deepened(static, 2, 24), tokenizer, static.settings, 512)
    with pytest.raises(DataError, match="the model has 2 layers, expected a static one"):
        deepen.deepened(twice, 2, 24)
    run("deepen.py", tmp_path / "static", pairs, "--output", tmp_path / "deep", "--layers", 2, "--dim", 8)
    texts = ["parseFile(money, 3)", "close the account"]
    shallow = DenseEncoder.from_pretrained(tmp_path / "static", device="cpu", dtype="float32")
    deep = DenseEncoder.from_pretrained(tmp_path / "deep", device="cpu", dtype="float32")
    assert deep.backbone.config.num_hidden_layers == 2
    np.testing.assert_allclose(deep.encode_documents(texts), shallow.encode_documents(texts), atol=1e-6)

    # The token head keeps what it can of the states; queries their lengths.
    saved = load(tmp_path / "deep")
    assert (saved.settings.queries.normalize, saved.settings.documents.normalize) == (False, True)
    head = saved.projection[0].weight
    products = head @ head.T
    torch.testing.assert_close(products, products[0, 0] * torch.eye(8), atol=1e-4 * float(products[0, 0]), rtol=0)
    late = ColBERT.from_pretrained(tmp_path / "deep", device="cpu", dtype="float32")
    assert late.encode_documents(texts)[0].shape[1] == 8
    found = late.encode_queries(list(mini("texts").read_texts([pairs], 200)))
    lengths = np.linalg.norm(np.concatenate([rows[1:-1] for rows in found]), axis=1)  # without the special tokens
    assert lengths.mean() == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("name", ["mini-static", "mini"])
def test_the_recipes_name_what_the_steps_make(name: str) -> None:
    config = TrainConfig.load(ROOT / "examples" / "recipes" / f"{name}.toml")
    assert config.model.start == ("mini/embeddings" if name == "mini-static" else "mini/deep")
    for source in config.data:
        assert source.path == f"mini/pairs/{source.name}.jsonl.gz"
        assert source.teacher_vectors == f"mini/teacher/{source.name}"


def test_the_last_recipe_names_what_was_mined() -> None:
    config = TrainConfig.load(ROOT / "examples" / "recipes" / "mini-hard.toml")
    assert config.model.start == "mini/joint"
    mined = {source.name for source in config.data if source.format == "tuples"}
    assert mined == {"code_python", "code_java", "code_js", "technical_prose", "sentences"}
    for source in config.data:
        assert source.path == f"mini/{'mined' if source.name in mined else 'pairs'}/{source.name}.jsonl.gz"
    taught = {source.name: source.teacher_vectors for source in config.data if source.teacher_vectors}
    assert taught == {name: f"mini/teacher/mined/{name}" for name in ("code_python", "technical_prose", "sentences")}


def trainings() -> list[list[str]]:
    """Return the trainings that the page of the bundled model lists, as they are typed, in their order."""
    page = (ROOT / "examples" / "mini" / "README.md").read_text("utf-8").replace("\\\n", " ")
    return [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("mbretrieve train ")]


def test_each_training_of_the_page_begins_with_what_one_before_has_made() -> None:
    made = {"mini/embeddings", "mini/deep", "mini/v2"}  # by the scripts
    for recipe, option, output, *settings in trainings():
        assert option == "--output"
        config = TrainConfig.load(ROOT / recipe, settings)
        assert config.model.start in made
        assert config.card.licence == "apache-2.0"
        assert all(source.licence for source in config.data)
        made.add(output)


def test_the_last_training_of_the_page_is_the_one_in_the_bundled_models_card(tmp_path: Path) -> None:
    """But for what the recipe has learned of licences since."""
    card = (ROOT / "mbretrieve" / "assets" / "mini-v3" / "README.md").read_text("utf-8")
    (tmp_path / "ran.toml").write_text(card.partition("```toml\n")[2].partition("```")[0], "utf-8")
    recipe, _, _, *settings = trainings()[-1]
    listed = TrainConfig.load(ROOT / recipe, settings)
    data = tuple(replace(source, licence=None) for source in listed.data)
    assert replace(listed, data=data, card=CardConfig()) == TrainConfig.load(tmp_path / "ran.toml")


def test_the_mean_of_two_trainings(mini: Any, tmp_path: Path) -> None:
    average = mini("average")
    one, other = (load(small.pylate(tmp_path / f"{seed}", [small.layer(32, 16, seed)])) for seed in (1, 2))
    mean = average.averaged([(one, 0.25), (other, 0.75)], 100)
    for name, tensor in mean.backbone.items():
        expected = 0.25 * one.backbone[name].float() + 0.75 * other.backbone[name].float()
        torch.testing.assert_close(tensor, expected.half())
    heads = [model.projection[0].weight.float() for model in (one, other)]
    torch.testing.assert_close(mean.projection[0].weight, (0.25 * heads[0] + 0.75 * heads[1]).half())
    assert mean.settings.documents.length == 100
    with pytest.raises(DataError, match=r"the weights add up to 0.9, expected 1"):
        average.averaged([(one, 0.5), (other, 0.4)], 100)
    with pytest.raises(DataError, match="unlike shapes"):
        average.averaged([(one, 0.5), (load(small.bare(tmp_path / "bare", num_hidden_layers=2)), 0.5)], 100)


def test_a_card_says_what_was_read_and_what_was_found(pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[[data]]\nname = "words"\npath = "{pairs}"\nlicence = "MIT"\n[run]\nsteps = 1\n[card]\nlicence = "mit"\n'
    )
    model = small.pylate(tmp_path / "model")
    found = {"-colbert": ({"ndcg@10": 0.5}, {"ndcg@10": 0.625}), "-dense": ({"ndcg@10": 0.25}, None)}
    result = read_result(ROOT / "eval" / "results" / "mini-v3-dense" / "beir-folder" / "cosqa.json")
    for suffix, (metrics, exact) in found.items():
        path = tmp_path / "results" / f"made{suffix}" / "beir-folder" / "cosqa.json"
        write_result(path, replace(result, metrics=metrics, exact_metrics=exact))
    options = ("--name", "made", "--recipe", recipe, "--results", tmp_path / "results" / "made")
    run("card.py", model, "--output", tmp_path / "carded", *options, "run.batch_size=16")
    card = (tmp_path / "carded" / "README.md").read_text("utf-8")
    said = {one.dataset_name: one.metric_value for one in ModelCard(card).data.eval_results}
    assert said == {"cosqa, late interaction": 0.5, "cosqa, late interaction, exact": 0.625, "cosqa, dense": 0.25}
    for words in ("words", "200", "MIT", "batch_size = 16", "On the test splits"):
        assert words in card
    assert load(tmp_path / "carded").backbone.keys() == load(model).backbone.keys()
