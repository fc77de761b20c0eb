"""A trained tokenizer: transformers loads it and agrees; no text is unknown; ModernBERT's special tokens."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mbretrieve.errors import DataError
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.training.tokenizer_training import train_tokenizer
from tests.models.small import CORPUS, TEXTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS * 3, 330, model_max_length=512).save(folder)
    return folder


def test_transformers_loads_it_and_gives_the_same_ids(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    assert len(theirs) == ours.size == 330
    assert theirs.model_max_length == 512
    for text in TEXTS:
        content = ours.first_tokens([text], 10**6)[0].ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == content
        assert theirs(text)["input_ids"] == [*ours.prefix, *content, *ours.suffix]
    assert [theirs.cls_token, theirs.sep_token, theirs.pad_token, theirs.mask_token] == [
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[MASK]",
    ]


def test_no_text_is_unknown_and_every_byte_comes_back(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    text = "naïve 中文字 \x00\t\n" + "".join(map(chr, range(0x20, 0x7F))) + " 🙂"
    ids = ours.first_tokens([text], 10**6)[0].ids
    assert ours.token_id("[UNK]") not in ids
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_mask_stands_for_a_word_with_its_space(folder: Path) -> None:
    ours = Tokenizer.load(folder)
    mask = ours.role_id("mask_token")
    assert ours.first_tokens(["a [MASK]"], 9)[0].ids == [*ours.first_tokens(["a"], 9)[0].ids, mask]


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(DataError, match="vocab_size is 200, expected more than 261"):
        train_tokenizer(CORPUS, 200)
    with pytest.raises(DataError, match=r"a vocabulary of \d+ tokens, expected 30000"):
        train_tokenizer(CORPUS, 30_000)


def test_words_of_code_are_short_and_of_one_spelling(tmp_path: Path) -> None:
    train_tokenizer([*CORPUS, "getUserName parseHTTPServer snake_case"] * 3, 330, words="code").save(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)

    def ids(text: str) -> list[int]:
        return ours.first_tokens([text], 10**6)[0].ids

    same = ["getUserName(self)", "get_user_name self", "get user name\n\t'self',", "GET USER NAME [self];"]
    assert len({tuple(ids(text)) for text in same}) == 1
    assert ids("parseHTTPServer") == ids("parse http server")
    assert ids("a==b") != ids("a b")  # signs that say something stay
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids(text)
        assert ours.token_id("[UNK]") not in ids(text)
    assert max(map(len, theirs.get_vocab())) <= 20
