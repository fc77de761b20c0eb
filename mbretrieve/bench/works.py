"""What is encoded to be timed: documents of so many tokens, of real words, by the lengths of a table."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mbretrieve.errors import DataError, ModelError
from mbretrieve.models.colbert import ColBERT

Random = np.random.Generator
LEAST = 16
"""The fewest tokens of a document whose length is drawn."""
_WORDS = 2000  # as many different ones as a text needs; an embedding is a look-up
_PLAIN = re.compile("[a-z]{3,}")


class Work(NamedTuple):
    """A way for lengths to fall: ``draw`` gives one document's length in tokens, at most ``longest``."""

    longest: int
    draw: Callable[[Random], int]
    at_least: int
    """Documents: enough for the lengths drawn to be unlike each other."""


class Documents(NamedTuple):
    """Texts, their lengths in tokens, all that stands around a text counted, and how many of these have a vector."""

    texts: list[str]
    lengths: list[int]
    rows: int

    @property
    def tokens(self) -> int:
        """How many tokens there are in all."""
        return sum(self.lengths)


def _fixed(length: int) -> Work:
    return Work(length, lambda _: length, 1)


def _variable(longest: int) -> Work:
    """Lengths about half the longest, as in the ModernBERT paper's efficiency table (arXiv 2412.13663, section 4)."""

    def draw(random: Random) -> int:
        return int(np.clip(round(random.normal(longest / 2, longest / 8)), LEAST, longest))

    return Work(longest, draw, 4)


WORKS: dict[str, Work] = {
    "512-fixed": _fixed(512),
    "512-variable": _variable(512),
    "8192-fixed": _fixed(8192),
    "8192-variable": _variable(8192),
    "mixed": Work(512, lambda random: int(random.integers(LEAST, 513)), 4),
}


def parse(names: str | None, positions: int) -> list[str]:
    """Read a list of works parted by commas; None: all of them that a model of so many positions can do.

    Raises: DataError for a name that is none, or a work beyond the positions.
    """
    if names is None:
        return [name for name, work in WORKS.items() if work.longest <= positions]
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if unknown := [name for name in chosen if name not in WORKS]:
        raise DataError(f"work is {unknown[0]!r}, expected some of {','.join(WORKS)}")
    if not chosen:
        raise DataError(f"no work is named, expected some of {','.join(WORKS)}")
    if beyond := [name for name in chosen if WORKS[name].longest > positions]:
        raise DataError(
            f"work {beyond[0]} has documents of {WORKS[beyond[0]].longest} tokens, expected at most {positions}, "
            "the positions of this model: leave it out, or name another --model"
        )
    return chosen


def lengths(work: Work, tokens: int, seed: int = 0) -> list[int]:
    """Draw documents' lengths until they have ``tokens`` tokens in all; of one seed, the same ones in front."""
    random, drawn, total = np.random.default_rng(seed), list[int](), 0
    while len(drawn) < work.at_least or total < tokens:
        drawn.append(work.draw(random))
        total += drawn[-1]
    return drawn


def words(model: ColBERT, folder: Path) -> list[str]:
    """Return plain words of its tokenizer, each of which is one token wherever it stands.

    Raises: ModelError if there are not even two.
    """
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    plain = sorted({word for token in vocabulary if _PLAIN.fullmatch(word := token.lstrip("Ġ▁"))})
    counts = [len(offsets) for offsets in model.token_offsets([f"{word} {word} {word}" for word in plain])]
    found = [word for word, count in zip(plain, counts, strict=True) if count == 3]
    if len(found) < 2:
        raise ModelError(f"{model.identity.name} has no words of one token, of which documents could be made")
    return found[:: max(1, len(found) // _WORDS)]


def documents(model: ColBERT, vocabulary: list[str], wanted: list[int], seed: int = 1) -> Documents:
    """Make texts of so many tokens each, all that stands around a text counted.

    Raises: ModelError if a text does not come to its length, or a length is not more than what stands around it.
    """
    random = np.random.default_rng(seed)
    around = model.document_length - model.document_capacity
    texts = [" ".join(random.choice(vocabulary, length - around)) for length in wanted]
    prepared = [text.ids for text in model.documents.prepare(texts)]
    came = [len(ids) for ids in prepared]
    if came != wanted:
        at = next(place for place, length in enumerate(wanted) if came[place] != length)
        raise ModelError(
            f"a text of {wanted[at]} words of one token has {came[at]} tokens: this tokenizer joins words, which is "
            "not supported here"
        )
    return Documents(texts, wanted, sum(int(model.documents.with_row(ids).sum()) for ids in prepared))
