"""The card of a saved model: its front matter parses, its programs run, and it is never said of another model."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbretrieve.models import load_encoder
from mbretrieve.models.card import DataSource, Metric, TrainingFacts
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from tests.models import small

FACTS = TrainingFacts(
    name="someone/mini | <b>bold</b>",
    base_model="answerdotai/ModernBERT-base",
    licence="Apache-2.0",
    recipe='[loss]\nname = "infonce"\n# ```not the end``` of it\n',
    data=(
        DataSource("MS MARCO\n---\nlicense: mit", 1_250_000, "research only", "microsoft/ms_marco"),
        DataSource("own | pairs", 12),
    ),
    metrics=(Metric("scifact: test", "ndcg@10", 0.65125), Metric('a "quoted" set', "mrr@10", 1.0)),
    seeds=(1, 2, 3),
)
VERSION_6 = int(sentence_transformers.__version__.split(".")[0]) >= 6


def programs(card: str) -> dict[str, str]:
    """Return the card's programs by the library that each imports."""
    found = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    return {program.split()[1].split(".")[0]: program for program in found}


def run(program: str) -> str:
    """Run a program and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "card", "exec"), {})
    return out.getvalue()


def late(folder: Path) -> ColBERT:
    return ColBERT.from_pretrained(small.pylate(folder), device="cpu", dtype="float32")


def saved(model: Any, folder: Path, **options: Any) -> str:
    model.save_pretrained(folder, **options)
    return (folder / "README.md").read_text("utf-8")


@pytest.mark.skipif(not VERSION_6, reason="MultiVectorEncoder came with version 6")
@pytest.mark.parametrize("layout", ["pylate", "sentence-transformers", "dense"])
def test_its_programs_run_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    kind = "dense" if layout == "dense" else "colbert"
    model = load_encoder(kind, small.pylate(tmp_path / "made", do_query_expansion=False), dtype="float32")
    card = saved(model, tmp_path / "saved", layout=None if layout == "dense" else layout)
    found = programs(card)
    expected = {"mbretrieve", "sentence_transformers"} | ({"pylate"} if layout == "pylate" else set())
    assert found.keys() == expected
    monkeypatch.chdir(tmp_path / "saved")
    printed = {library: run(found[library]) for library in ("mbretrieve", "sentence_transformers")}
    assert len(printed["mbretrieve"].splitlines()) == 2
    # Where the processor computes in bfloat16 ours is rounded, theirs is not.
    exact = run(found["mbretrieve"].replace('from_pretrained(".")', 'from_pretrained(".", dtype="float32")'))
    ours = sorted(float(line.split()[0]) for line in exact.splitlines())
    theirs = sorted(float(number) for number in re.findall(r"-?\d+\.\d+", printed["sentence_transformers"]))
    assert ours == pytest.approx(theirs, abs=1e-3)  # what three printed digits leave
    for library in expected - printed.keys():
        compile(found[library], library, "exec")


def test_stanford_is_not_promised_to_sentence_transformers(tmp_path: Path) -> None:
    model = ColBERT.from_pretrained(small.stanford(tmp_path / "made"), device="cpu", dtype="float32")
    assert programs(saved(model, tmp_path / "saved", layout="stanford")).keys() == {"mbretrieve", "pylate"}


def test_what_pylate_cannot_load_is_said_with_what_would_help(tmp_path: Path) -> None:
    bundled = saved(ColBERT.from_pretrained(device="cpu"), tmp_path / "bundled", card=TrainingFacts())
    assert (
        "PyLate cannot load it, having no words for rows that keep their own length: trained with "
        "model.normalize_queries = true it could be.\n" in bundled
    )
    other = saved(late(tmp_path / "made"), tmp_path / "other", layout="sentence-transformers")
    assert 'PyLate reads another layout: `save_pretrained(folder, layout="pylate")` writes it.' in other
    own = saved(late(tmp_path / "made again"), tmp_path / "own")
    assert own.count("PyLate") == 3  # its tag twice, and the program
    assert "cannot" not in own


def test_front_matter_is_what_the_facts_say(tmp_path: Path) -> None:
    card = saved(late(tmp_path / "made"), tmp_path / "saved", card=FACTS)
    read = ModelCard(card).data
    assert read.library_name == "PyLate"
    assert read.pipeline_tag == "feature-extraction"
    assert {"ColBERT", "late-interaction", "modernbert", "mbretrieve"} <= set(read.tags)
    assert (read.license, read.base_model, read.datasets) == (
        "apache-2.0",
        "answerdotai/ModernBERT-base",
        ["microsoft/ms_marco"],
    )
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in read.eval_results] == [
        (one.dataset, one.name, one.value) for one in FACTS.metrics
    ]
    assert card.count("\n---\n") == 1, "nobody's words end the front matter"
    assert "| [MS MARCO --- license: mit](https://huggingface.co/datasets/microsoft/ms_marco) | 1,250,000 |" in card
    assert r"| own \| pairs | 12 | not said |" in card
    assert f"\n````toml\n{FACTS.recipe.strip()}\n````\n" in card
    assert "Seeds: 1, 2, 3." in card
    assert "<b>" not in card.split("---\n", 2)[2]


def test_a_licence_of_ones_own_and_a_base_that_is_a_folder(tmp_path: Path) -> None:
    facts = TrainingFacts(base_model="models/of mine", licence="Ask me: first")
    read = ModelCard(saved(late(tmp_path / "made"), tmp_path / "saved", card=facts)).data
    assert (read.license, read.license_name, read.base_model) == ("other", "Ask me: first", None)


def test_a_joint_models_second_head_has_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = saved(late(tmp_path / "made"), tmp_path / "saved", card=TrainingFacts(joint=True))
    assert "trained with a second head" in card
    [program] = re.findall(r"its second head.*?```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert "DenseEncoder.from_pretrained" in program
    monkeypatch.chdir(tmp_path / "saved")
    scores = [float(line.split()[0]) for line in run(program).splitlines()]
    assert len(scores) == 2
    assert all(-1 <= score <= 1 for score in scores), "cosines"
    assert "second head" not in saved(late(tmp_path / "other"), tmp_path / "single", card=TrainingFacts())


def test_unlike_lengths_of_a_dense_model_want_version_6(tmp_path: Path) -> None:
    made = small.pylate(tmp_path / "made")
    lengths = [{"query_length": 32, "document_length": 32}, {"query_length": 16, "document_length": 32}]
    like, unlike = (
        saved(DenseEncoder.from_pretrained(made, device="cpu", dtype="float32", **of), tmp_path / str(number))
        for number, of in enumerate(lengths)
    )
    assert 'pip install "sentence-transformers"' in like
    assert 'pip install "sentence-transformers>=6"' in unlike


def test_sizes_are_the_models(tmp_path: Path) -> None:
    model = late(tmp_path / "made")
    card = saved(model, tmp_path / "saved")
    parameters = sum(p.numel() for part in (model.backbone, model.projection) for p in part.parameters())
    outside = parameters - model.backbone.embeddings.tok_embeddings.weight.numel()
    assert f"| parameters | {parameters:,} ({outside:,} outside the token embeddings) |" in card
    assert f"| weights | {4 * parameters / 1e6:,.1f} MB, float32 |" in card
    assert "| dimensions of a vector | 16 |" in card
    assert "| tokens, at most | 16 | 64 |" in card
    assert "| marker | <code>[Q] </code> | <code>[D] </code> |" in card


def test_the_card_stays_with_the_model_it_describes(tmp_path: Path) -> None:
    (small.pylate(tmp_path / "made") / "README.md").write_bytes("# Mine\r\nmeasured with care \u2713\n".encode())
    words = (tmp_path / "made" / "README.md").read_bytes()
    for dtype in ("float32", "bfloat16"):
        model = ColBERT.from_pretrained(tmp_path / "made", device="cpu", dtype=dtype)
        model.save_pretrained(tmp_path / dtype)
        assert (tmp_path / dtype / "README.md").read_bytes() == words
    model.save_pretrained(tmp_path / "made")
    assert (tmp_path / "made" / "README.md").read_bytes() == words
    assert "measured" not in saved(model, tmp_path / "told", card=FACTS)
    dense = DenseEncoder.from_pretrained(tmp_path / "made", device="cpu", dtype="float32")
    assert "measured" not in saved(dense, tmp_path / "dense"), "it has no projection: another model"
    with torch.no_grad():
        model.projection[0].linear.weight[0, 0] += 1  # type: ignore[index, union-attr]
    assert "measured" not in saved(model, tmp_path / "trained")
    (small.bare(tmp_path / "bare") / "README.md").write_text("a language model, measured otherwise")
    backbone = ColBERT.from_pretrained(tmp_path / "bare", device="cpu", dtype="float32")
    assert "measured" not in saved(backbone, tmp_path / "retriever")


def test_the_bundled_model_keeps_its_card(tmp_path: Path) -> None:
    assert "mini, v3" in saved(ColBERT.from_pretrained(dtype="float32"), tmp_path / "saved")


WORDS = st.text(max_size=40)
SOURCES = st.builds(DataSource, WORDS, st.none() | st.integers(0, 10**9), st.none() | WORDS, st.none() | WORDS)
METRICS = st.builds(Metric, WORDS, WORDS, st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    facts=st.builds(
        TrainingFacts,
        name=st.none() | WORDS,
        base_model=st.none() | WORDS,
        licence=st.none() | WORDS,
        recipe=WORDS,
        data=st.lists(SOURCES, max_size=2).map(tuple),
        metrics=st.lists(METRICS, max_size=2).map(tuple),
        seeds=st.lists(st.integers(), max_size=2).map(tuple),
    )
)
def test_no_words_break_a_card(checkpoint: Any, facts: TrainingFacts) -> None:
    from mbretrieve.models.card import model_card

    card = model_card(checkpoint, "pylate", facts)
    plain = model_card(checkpoint, "pylate", replace(facts, name=None, licence=None, base_model=None, metrics=()))
    assert ModelCard(plain).data.library_name == "PyLate"
    read = ModelCard(card).data
    assert read.library_name == "PyLate"
    if facts.metrics:
        assert sorted(one.metric_value for one in read.eval_results) == sorted(one.value for one in facts.metrics)
    for line in card.split("## Sizes")[1].split("## Recipe")[0].splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)
    assert programs(card).keys() == {"mbretrieve", "sentence_transformers", "pylate"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mbretrieve.models.checkpoint import load

    return load(small.pylate(tmp_path_factory.mktemp("small") / "made"))


def test_the_bundled_models_card_has_the_figures_of_the_results() -> None:
    root = Path(__file__).parent.parent.parent
    ways = {
        "mini-v3-colbert": "late interaction",
        "mini-v3-colbert-1bit": "late interaction, 1 bit a dimension",
        "mini-v3-colbert-hybrid": "hybrid, late interaction and BM25",
        "mini-v3-dense": "dense",
    }
    found = {}
    for folder, way in ways.items():
        for path in (root / "eval" / "results" / folder / "beir-folder").glob("*.json"):
            result = json.loads(path.read_text("utf-8"))
            found[f"{result['task']}, {way}"] = result["metrics"]["ndcg@10"]
            if exact := result["exact_metrics"]:
                found[f"{result['task']}, late interaction, exact"] = exact["ndcg@10"]
    said = ModelCard((root / "mbretrieve" / "assets" / "mini-v3" / "README.md").read_text("utf-8")).data.eval_results
    assert {one.dataset_name: one.metric_value for one in said} == pytest.approx(found, abs=5.1e-5)
