"""Cutting a text before tokenizing it gives the tokens of the whole; special tokens come from the files."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from mbretrieve.errors import ModelError
from mbretrieve.models import tokenizer as room
from mbretrieve.models.source import locate
from mbretrieve.models.tokenizer import Tokenizer
from tests.models import small
from tests.models.small import TEXTS

FAMILIES = ("bpe", "wordpiece", "roberta", "bundled")
LONG = [" ".join(TEXTS) * 40, "x" * 40_000, "\n\n  def f(x):\n\treturn x\n" * 2_000, "中文" * 20_000, " " * 40_000]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Backend]:
    if request.param == "bundled":
        folder = locate(None).folder
    else:
        folder = tmp_path_factory.mktemp("tokenizer")
        small.tokenizer(folder, request.param)
    return Tokenizer.load(folder), Backend.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_pieces_are_the_whole(made: tuple[Tokenizer, Backend], text: str) -> None:
    tokenizer, whole = made
    expected = whole.encode(text, add_special_tokens=False)
    ids, offsets = tokenizer.ids_and_offsets(text)
    assert ids == expected.ids
    np.testing.assert_array_equal(offsets, np.array(expected.offsets).reshape(-1, 2))
    np.testing.assert_array_equal(next(tokenizer.offsets([text])), offsets)
    for limit in (1, 100, len(ids), len(ids) + 1):
        assert tokenizer.first_tokens([text], limit)[0] == (ids[:limit], len(ids) > limit)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["word", " ", "\n", "  ", "é", "[MASK]", "fooBar(x)", "中", "\t", "[Q] ", ".", "\xa0"]))
)
def test_any_text_in_pieces_is_the_whole(made: tuple[Tokenizer, Backend], parts: list[str]) -> None:
    tokenizer, whole = made
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_PIECE", 8)
        assert tokenizer.ids_and_offsets(text)[0] == whole.encode(text, add_special_tokens=False).ids


def test_batches_keep_their_order(made: tuple[Tokenizer, Backend]) -> None:
    tokenizer, whole = made
    texts = [TEXTS[0], LONG[0], TEXTS[2], LONG[1], *TEXTS * 60]
    found = tokenizer.first_tokens(texts, 20)
    assert [content.ids for content in found] == [whole.encode(t, add_special_tokens=False).ids[:20] for t in texts]
    assert [len(offsets) for offsets in tokenizer.offsets(texts)] == [
        len(whole.encode(t, add_special_tokens=False).ids) for t in texts
    ]


def test_a_very_long_query_costs_its_beginning(made: tuple[Tokenizer, Backend]) -> None:
    tokenizer, _ = made
    text = "How do I read a file, line by line? " * 300_000  # 10 MB, seconds as a whole
    started = time.process_time()
    assert tokenizer.first_tokens([text], 32)[0].cut
    assert time.process_time() - started < 1


def test_a_tokenizer_without_words_is_not_cut() -> None:
    """Metaspace puts a mark in front of a text, so that a piece of it would begin otherwise than the whole goes on."""
    backend = Backend(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Metaspace()
    text = "a " * 10_000
    ids, _ = Tokenizer(backend, {}).ids_and_offsets(text)
    assert ids == backend.encode(text, add_special_tokens=False).ids


def test_special_tokens_by_role(tmp_path: Path) -> None:
    small.tokenizer(tmp_path, "roberta")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.roles["mask_token"] == "<mask>"
    assert tokenizer.role_id("mask_token") == tokenizer.token_id("<mask>")
    assert (tokenizer.prefix, tokenizer.suffix) == ([tokenizer.token_id("<s>")], [tokenizer.token_id("</s>")])
    assert tokenizer.role_id("eos_token") is None


def test_markers_are_tokens_that_stay_whole(tmp_path: Path) -> None:
    small.tokenizer(tmp_path, "wordpiece", markers=("[Q] ", "[unused0]"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.as_marker("word") is tokenizer.as_marker("") is tokenizer.as_marker("a") is None
    tokenizer.save(tmp_path / "saved", ["[Q] ", "[unused0]"])
    saved = Tokenizer.load(tmp_path / "saved")
    for marker in ("[Q] ", "[unused0]"):
        assert saved.as_marker(marker) == tokenizer.token_id(marker) is not None


def test_lone_surrogates_keep_their_places(made: tuple[Tokenizer, Backend]) -> None:
    tokenizer, _ = made
    offsets = next(tokenizer.offsets(["ab \ud800 cd"]))
    assert offsets[-1].tolist()[1] == 7


def test_saved_and_loaded_it_is_the_same(made: tuple[Tokenizer, Backend], tmp_path: Path) -> None:
    tokenizer, _ = made
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.roles == tokenizer.roles
    assert again.first_tokens(TEXTS, 1000) == tokenizer.first_tokens(TEXTS, 1000)


def test_settings_in_the_file_do_not_cut_or_fill(tmp_path: Path) -> None:
    small.tokenizer(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert 4 < len(Tokenizer.load(tmp_path).first_tokens([TEXTS[0]], 100)[0].ids) < 50


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
        (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "holds a list"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "not readable JSON"),
        (lambda f: small.edit(f / "tokenizer_config.json", truncation_side="left"), "truncation_side is 'left'"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, break_it: object, words: str) -> None:
    small.tokenizer(tmp_path)
    assert callable(break_it)
    break_it(tmp_path)
    with pytest.raises(ModelError, match=words) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)
