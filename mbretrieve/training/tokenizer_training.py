"""A byte-level BPE tokenizer of one's own, with ModernBERT's special tokens."""

from collections.abc import Iterable

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
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


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int = 8192) -> Tokenizer:
    """Learn byte-level BPE from texts: ``[CLS] text [SEP]``, NFC, words split as GPT-2 does, no text unknown.

    The alphabet is all 256 bytes, so that ``[UNK]`` is there for the libraries that ask for one and never comes up.
    ``[MASK]`` takes the space before it, as ModernBERT's does: it stands for a word with its space.
    Raises: DataError if ``vocab_size`` has no room for the bytes and special tokens, or the texts are too few for it.
    """
    least = _BYTES + len(_ROLES)
    if vocab_size <= least:
        raise DataError(f"the tokenizer's vocab_size is {vocab_size}, expected more than {least}, bytes and specials")
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, lstrip=role == "mask_token", special=True) for role, token in _ROLES.items()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
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
