"""A byte-level BPE tokenizer of one's own, with ModernBERT's special tokens."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from mbretrieve.errors import DataError
from mbretrieve.models.tokenizer import Tokenizer

_ROLES = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_BYTES = 256

Words = Literal["text", "code"]
"""What BPE takes for words.

``text``: GPT-2's, with their spaces, of text in NFC; every byte of it comes back. ``code``: for search, where short
sequences are worth more than what they leave out: runs of letters, of up to three digits and of up to four signs, of
text in NFKC whose camelCase is split and in lower case, with brackets, quotes, commas and underscores for spaces.
"""


class _Split(NamedTuple):
    """How text is brought to one spelling and cut into words, and the longest token learned of them."""

    normalizer: Callable[[], normalizers.Normalizer]
    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    longest: int | None  # characters


def _code_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"), " "),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[\\s_(){}\\[\\],;\"'`]+"), " "),
        ]
    )


def _code_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex("\\p{L}+|\\p{N}{1,3}|[^\\s\\p{L}\\p{N}]{1,4}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_SPLITS: dict[Words, _Split] = {
    "text": _Split(normalizers.NFC, lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), None),
    # Rather two tokens than one that stands for a single long identifier.
    "code": _Split(_code_normalizer, _code_pre_tokenizer, 20),
}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, model_max_length: int = 8192, words: Words = "text"
) -> Tokenizer:
    """Learn byte-level BPE from texts: ``[CLS] text [SEP]``, no text unknown.

    The alphabet is all 256 bytes, so that ``[UNK]`` is there for the libraries that ask for one and never comes up.
    ``[MASK]`` takes the space before it, as ModernBERT's does: it stands for a word with its space.
    Raises: DataError if ``vocab_size`` has no room for the bytes and special tokens, or the texts are too few for it.
    """
    least = _BYTES + len(_ROLES)
    if vocab_size <= least:
        raise DataError(f"the tokenizer's vocab_size is {vocab_size}, expected more than {least}, bytes and specials")
    backend = Backend(models.BPE())
    split = _SPLITS[words]
    backend.normalizer, backend.pre_tokenizer = split.normalizer(), split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, lstrip=role == "mask_token", special=True) for role, token in _ROLES.items()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=split.longest,
    )
    backend.train_from_iterator(texts, trainer)
    if (size := backend.get_vocab_size()) < vocab_size:
        raise DataError(
            f"the texts gave a vocabulary of {size} tokens, expected {vocab_size}: give more text, or vocab_size={size}"
        )
    ends = [(token, backend.token_to_id(token)) for token in (_ROLES["cls_token"], _ROLES["sep_token"])]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0", special_tokens=ends
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **_ROLES,
    }
    return Tokenizer(backend, config)
