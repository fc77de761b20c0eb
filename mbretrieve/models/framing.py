"""What stands around a text before the backbone sees it: special tokens, marker, prompt and query expansion."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import ModelError
from mbretrieve.models.settings import Expansion, Saved, Settings, Side
from mbretrieve.models.tokenizer import Content, Tokenizer


class Prepared(NamedTuple):
    """A text as the backbone sees it: all its token ids, how many of them at the end are query expansion, and whether
    some of its own were cut off."""

    ids: list[int]
    filling: int
    cut: bool


class Frame:
    """One side's frame around texts: ``prefix + marker + (prompt and text, cut to room) + suffix + expansion``.

    Raises: ModelError if ``length`` tokens are more than the model has positions, or too few for any text.
    """

    def __init__(self, model: Saved[Any], side: Side, length: int, name: str, expansion: Expansion | None) -> None:
        positions = model.config.max_position_embeddings
        if length > positions:
            raise ModelError(f"{name} is {length}, expected at most {positions}, the positions of this model")
        self.side, self._tokenizer, self._words = side, model.tokenizer, model.config.vocab_size
        marker = self._tokenizer.token_id(side.marker) if side.marker else None
        self.head = [*self._tokenizer.prefix, *([] if marker is None else [marker])]
        self.tail = self._tokenizer.suffix
        self.room = length - len(self.head) - len(self.tail)
        self.prompt_tokens = len(self._tokenizer.first_tokens([side.prompt], length)[0].ids)
        if self.room <= self.prompt_tokens:
            around = length - self.room + self.prompt_tokens
            raise ModelError(f"{name} is {length}, expected more than the {around} tokens that stand around a text")
        self._expansion = expansion
        self._filler = [] if expansion is None else [_filler(self._tokenizer, expansion)]

    def contents(self, texts: Sequence[str]) -> list[Content]:
        """Tokenize prompt and text, cut to the room there is."""
        prompt = self.side.prompt
        return self._tokenizer.first_tokens([prompt + text for text in texts] if prompt else texts, self.room)

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        """Tokenize texts and put the frame around them."""
        length = 0 if self._expansion is None else self._expansion.length
        contents = self.contents(texts)
        framed = [[*self.head, *content.ids, *self.tail] for content in contents]
        lacking = [max(0, length - len(ids)) for ids in framed]
        return [
            Prepared(ids + self._filler * count, count, content.cut)
            for ids, count, content in zip(framed, lacking, contents, strict=True)
        ]

    def attended(self, batch: Sequence[Prepared]) -> NDArray[np.bool_] | None:
        """Say of each token of a batch, (T,), whether others may see it; None: they all may."""
        if self._expansion is None or self._expansion.attended or not any(text.filling for text in batch):
            return None
        return np.concatenate([np.arange(len(text.ids)) < len(text.ids) - text.filling for text in batch])

    def spans(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Return a text's tokens, frame included, and their (tokens, 2) character ranges in it; (0, 0) in the frame."""
        ids, offsets = self._tokenizer.ids_and_offsets(self.side.prompt + text)
        own = np.maximum(offsets[: self.room] - len(self.side.prompt), 0)
        spans = np.pad(own, ((len(self.head), len(self.tail)), (0, 0)))
        return [*self.head, *ids[: self.room], *self.tail], spans

    def row_spans(self, text: str) -> NDArray[np.int64]:
        """Return the characters of a text behind each of its rows: (rows, 2); (0, 0) for those of the frame."""
        ids, spans = self.spans(text)
        return spans[self.with_row(ids)]

    def with_row(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """Say which of a text's tokens get a row of late interaction: (tokens,) bool."""
        return np.ones(len(ids), dtype=bool) if self._rows is None else self._rows[ids]

    @cached_property
    def _rows(self) -> NDArray[np.bool_] | None:
        """Say for each token of the vocabulary whether it gets a row; words that are no token do nothing."""
        skipped = [token for word in self.side.skip if (token := self._tokenizer.token_id(word)) is not None]
        if not skipped and not self.side.keep_only:
            return None
        rows = np.full(self._words, not self.side.keep_only)
        rows[list(self.side.keep_only)] = True
        rows[skipped] = False
        return rows


def first_pooled(settings: Settings, frame: Frame) -> int:
    """Return the place of a text's first token that counts.

    A model that leaves its prompt out of the pooling leaves out all that is in front of it, too.
    """
    prompted = bool(frame.side.prompt or frame.side.marker) and not settings.include_prompt
    return len(frame.head) + frame.prompt_tokens if prompted else 0


def _filler(tokenizer: Tokenizer, expansion: Expansion) -> int:
    """Return the token with which queries are filled: the named one, the mask, else the end of a text."""
    if expansion.token is not None:
        candidates = [tokenizer.token_id(expansion.token)]
    else:
        candidates = [tokenizer.role_id(role) for role in ("mask_token", "eos_token")]
    found = next((token for token in candidates if token is not None), None)
    if found is None:
        token = expansion.token or "the mask token"
        raise ModelError(f"queries are to be filled with {token}, which the tokenizer's files do not name")
    return found
