"""What is encoded to be timed: lengths fall as they are named, and texts have the lengths that were drawn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.bench.works import LEAST, WORKS, documents, lengths, words
from mbretrieve.errors import ModelError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.source import locate
from tests.models import small

NAMES = st.sampled_from(sorted(WORKS))


@given(name=NAMES, tokens=st.integers(0, 200_000), seed=st.integers(0, 5))
def test_lengths_are_enough_and_within_bounds(name: str, tokens: int, seed: int) -> None:
    work = WORKS[name]
    drawn = lengths(work, tokens, seed)
    assert drawn == lengths(work, tokens, seed)
    assert len(drawn) >= work.at_least
    assert sum(drawn) >= tokens
    assert len(drawn) == work.at_least or sum(drawn[:-1]) < tokens, "no document more than are needed"
    assert all(LEAST <= length <= work.longest for length in drawn)
    assert lengths(work, tokens // 2, seed) == drawn[: len(lengths(work, tokens // 2, seed))]


@pytest.mark.parametrize("longest", [512, 8192])
def test_their_means_are_what_the_names_say(longest: int) -> None:
    many = 2000 * longest
    assert set(lengths(WORKS[f"{longest}-fixed"], many)) == {longest}
    variable = np.array(lengths(WORKS[f"{longest}-variable"], many))
    assert variable.mean() == pytest.approx(longest / 2, rel=0.02)
    assert variable.std() == pytest.approx(longest / 8, rel=0.05)
    mixed = np.array(lengths(WORKS["mixed"], many))
    assert mixed.mean() == pytest.approx((16 + 512) / 2, rel=0.05)
    assert (mixed.min(), mixed.max()) == (16, 512)


@pytest.fixture(scope="module")
def bundled() -> tuple[ColBERT, list[str]]:
    model = ColBERT.from_pretrained(device="cpu", document_length=2048)
    return model, words(model, locate(None).folder)


@settings(max_examples=20, deadline=None)
@given(wanted=st.lists(st.integers(LEAST, 600), min_size=1, max_size=5), seed=st.integers(0, 3))
def test_texts_have_the_lengths_that_were_drawn(
    bundled: tuple[ColBERT, list[str]], wanted: list[int], seed: int
) -> None:
    model, vocabulary = bundled
    made = documents(model, vocabulary, wanted, seed)
    assert [len(text.ids) for text in model.documents.prepare(made.texts)] == made.lengths == wanted
    assert made.tokens == made.rows == sum(wanted)


def test_words_are_many(bundled: tuple[ColBERT, list[str]]) -> None:
    _, vocabulary = bundled
    assert len(set(vocabulary)) == len(vocabulary) >= 1000


@pytest.mark.parametrize("family", ["bpe", "wordpiece", "roberta"])
def test_other_tokenizers_have_words_too(family: str, tmp_path: Path) -> None:
    folder = small.bare(tmp_path / family, family)
    model = ColBERT.from_pretrained(folder, device="cpu", dtype="float32")
    made = documents(model, words(model, folder), [16, 40])
    assert made.lengths == [16, 40]


def test_a_tokenizer_without_words_is_an_error(tmp_path: Path) -> None:
    folder = small.bare(tmp_path / "model")
    model = ColBERT.from_pretrained(folder, device="cpu", dtype="float32")
    with pytest.raises(ModelError, match="joins words"):
        documents(model, ["two words"], [16])


def test_it_is_measured_where_faiss_is_not() -> None:
    code = "import sys; sys.modules['faiss'] = None; import mbretrieve.bench.encode_report, mbretrieve.cli.bench"
    subprocess.run([sys.executable, "-c", code], check=True)
