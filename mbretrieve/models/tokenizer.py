"""Text in, token ids out: a tokenizer.json with the special tokens that the files beside it name."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, normalizers
from tokenizers import Tokenizer as Backend

from mbretrieve.errors import ModelError
from mbretrieve.models.files import one_line, read_json, write_json

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Of a tokenizer_config.json: where it came from, not what it does; auto_map names code, which is never run.
_NOT_KEPT = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path", "tokenizer_file")

# A longer text is tokenized in pieces: a query of any length costs its first piece, and memory is bounded.
_PIECE = 16_384  # characters
_BATCH = 256  # texts handed to the tokenizer's threads at once
_SPACE = " \t\n\r"
# Tries the cuts of `pieces`: words, identifiers, runs of white space, digits, accents, scripts without spaces.
_PROBE = "def parseArgs(x):\n    return  [x_y, 12345]\t\tÉtude don't 中文字 the-end \r\n of it."
_SURROGATE = re.compile("[\ud800-\udfff]")


class Content(NamedTuple):
    """A text's own tokens, without special ones, and whether more of them were cut off."""

    ids: list[int]
    cut: bool


class Tokenizer:
    """A ``tokenizers.Tokenizer`` that knows its special tokens by role and cuts long texts before it tokenizes them."""

    def __init__(self, backend: Backend, config: Mapping[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.config = dict(config)
        self.roles = {role: content for role in ROLES if (content := _content(config.get(role)))}
        probe = backend.encode("a")
        special = probe.special_tokens_mask
        first = special.index(0) if 0 in special else 1
        last = len(special) - special[::-1].index(0) if 0 in special else 1
        self.prefix: list[int] = probe.ids[:first]
        self.suffix: list[int] = probe.ids[last:]

    @classmethod
    def load(cls, folder: Path, lower_case: bool = False) -> "Tokenizer":
        """Read tokenizer.json, and the roles from tokenizer_config.json, else special_tokens_map.json.

        ``lower_case`` puts text in lower case first, as a saved ``do_lower_case`` asks.
        Raises: ModelError if tokenizer.json is missing or damaged, or text is to be cut or filled on the left.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json; transformers writes it: AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(...)"
            )
        try:
            backend = Backend.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises Exception itself
            raise ModelError(f"{path} is not a tokenizer: {one_line(error)}") from error
        config = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
        for key in ("truncation_side", "padding_side"):
            if config.get(key, "right") != "right":
                raise ModelError(f"{folder}: the tokenizer's {key} is {config[key]!r}, expected 'right'")
        if lower_case and "Lowercase" not in repr(backend.normalizer):
            existing = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])
        return cls(backend, config)

    def save(self, folder: Path, markers: Sequence[str] = ()) -> None:
        """Write tokenizer.json and tokenizer_config.json; ``markers`` are made tokens that text is split at."""
        folder.mkdir(parents=True, exist_ok=True)
        backend = self.with_markers(markers)._backend
        (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        # Roles as strings: how their tokens match stands in tokenizer.json, and transformers refuses plain records.
        config = {key: value for key, value in self.config.items() if key not in _NOT_KEPT} | self.roles
        # transformers 4 does not know the name that transformers 5 gives to a plain tokenizer.json.
        if config.get("tokenizer_class") in (None, "TokenizersBackend"):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_json(folder / "tokenizer_config.json", config)

    def with_markers(self, markers: Sequence[str]) -> "Tokenizer":
        """Return the tokenizer with ``markers`` among its tokens, whole; a marker that is new gets the next free id."""
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens([AddedToken(m, normalized=False) for m in markers if self.as_marker(m) is None])
        return Tokenizer(backend, self.config)

    @property
    def size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def model_max_length(self) -> int | None:
        """The length in tokens to which the tokenizer's own files cut a text, if they say."""
        value = self.config.get("model_max_length")
        return int(value) if isinstance(value, int | float) and value < 1e9 else None

    def fingerprint(self) -> bytes:
        """Return what decides the token ids: the tokenizer's whole state, as JSON."""
        return self._backend.to_str().encode()

    def token_id(self, token: str) -> int | None:
        """Return the id of one token, or None if there is no such token."""
        return self._backend.token_to_id(token)

    def role_id(self, role: str) -> int | None:
        """Return the id of a special token by its role (``mask_token``), or None if the files name none."""
        return self.token_id(self.roles[role]) if role in self.roles else None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens written out."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text

    def as_marker(self, text: str) -> int | None:
        """Return a token's id if the text, in front of any other, always becomes that one token; else None."""
        ids = self._backend.encode(text, add_special_tokens=False).ids if text else []
        added = self._backend.get_added_tokens_decoder().get(ids[0]) if len(ids) == 1 else None
        whole = added is not None and added.content == text and not (added.rstrip or added.single_word)
        return ids[0] if whole else None

    def first_tokens(self, texts: Sequence[str], limit: int) -> list[Content]:
        """Tokenize without special tokens, at most ``limit`` tokens a text; equals cutting the whole text's tokens."""
        found: dict[int, Content] = {}
        short = [index for index, text in enumerate(texts) if len(text) <= _PIECE]
        for start in range(0, len(short), _BATCH):
            batch = short[start : start + _BATCH]
            encoded = self._backend.encode_batch_fast([_clean(texts[i]) for i in batch], add_special_tokens=False)
            for index, encoding in zip(batch, encoded, strict=True):
                ids = encoding.ids
                found[index] = Content(ids[:limit], len(ids) > limit)
        return [found[index] if index in found else self._first(text, limit) for index, text in enumerate(texts)]

    def offsets(self, texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
        """Tokenize without special tokens or a limit: each text's tokens' character ranges, (tokens, 2) int64."""
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            short = [_clean(text) for text in batch if len(text) <= _PIECE]
            encoded = iter(self._backend.encode_batch(short, add_special_tokens=False))
            for text in batch:
                if len(text) <= _PIECE:
                    yield _ranges(next(encoded))
                else:
                    yield np.concatenate([start + _ranges(piece) for start, piece in self._pieces(text)])

    def ids_and_offsets(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Tokenize one text without special tokens: its token ids and their (tokens, 2) int64 character ranges."""
        pieces = list(self._pieces(text))
        ids = [token for _, piece in pieces for token in piece.ids]
        return ids, np.concatenate([start + _ranges(piece) for start, piece in pieces])

    def _first(self, text: str, limit: int) -> Content:
        ids: list[int] = []
        for _, piece in self._pieces(text):
            ids += piece.ids
            if len(ids) > limit:
                return Content(ids[:limit], True)
        return Content(ids, False)

    def _pieces(self, text: str) -> Iterator[tuple[int, Encoding]]:
        """Tokenize piece by piece; cuts stand before runs of white space, if this tokenizer splits there itself."""
        start, text = 0, _clean(text)
        while len(text) - start > _PIECE and self._splits_at_spaces:
            stop = self._cut(text, start + 1, start + _PIECE)
            yield start, self._backend.encode(text[start:stop], add_special_tokens=False)
            start = stop
        if start < len(text) or not text:
            yield start, self._backend.encode(text[start:], add_special_tokens=False)

    def _cut(self, text: str, low: int, high: int) -> int:
        """Return where the last run of white space in [low, high) starts, else the first one after it, else the end."""
        near = itertools.chain(range(high - 1, low - 1, -1), range(high, len(text)))
        return next((at for at in near if _is_space_run(text, at) and not self._is_inside_token(text, at)), len(text))

    def _is_inside_token(self, text: str, at: int) -> bool:
        """Whether an added token such as ``"[Q] "`` covers the characters on both sides of ``at``."""
        return any(token in text[max(0, at - len(token) + 1) : at + len(token) - 1].lower() for token in self._spaced)

    @cached_property
    def _spaced(self) -> list[str]:
        """The added tokens with white space in them, in lower case, since the normalizer may have them match so."""
        contents = (token.content.lower() for token in self._backend.get_added_tokens_decoder().values())
        return [content for content in contents if not content.isspace() and any(c.isspace() for c in content)]

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether the pieces' tokens are the whole's: not for a tokenizer that sees all as one word (some BPE)."""
        if any(token.rstrip for token in self._backend.get_added_tokens_decoder().values()):
            return False
        cuts = [at for at in range(1, len(_PROBE)) if _is_space_run(_PROBE, at)]
        whole = self._backend.encode(_PROBE, add_special_tokens=False).ids
        halves = ([_PROBE[:at], _PROBE[at:]] for at in cuts)
        tokenized = (self._backend.encode_batch(half, add_special_tokens=False) for half in halves)
        return all(left.ids + right.ids == whole for left, right in tokenized)


def _content(token: Any) -> str:
    """A special token is written as a string or as an AddedToken's fields."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _clean(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, one character for one so that offsets hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def _ranges(encoding: Encoding) -> NDArray[np.int64]:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _is_space_run(text: str, at: int) -> bool:
    return text[at] in _SPACE and not text[at - 1].isspace()
