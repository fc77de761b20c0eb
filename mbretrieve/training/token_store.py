"""Tokenized texts on disk: read once, then found by number, in two or four bytes a token, however many there are."""

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbretrieve.corpus.records import Skipped
from mbretrieve.errors import DataError
from mbretrieve.models.files import read_json, write_json
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.training.data.digests import of_file
from mbretrieve.training.pretrain_config import TextConfig
from mbretrieve.training.texts import files_of, read_texts

_TOKENS, _STARTS, _RECORD = "tokens.bin", "starts.npy", "tokens.json"
_BATCH = 1024  # texts tokenized at once
_NO_LIMIT = 1 << 62


class TokenStore:
    """The own tokens, without special ones, of all texts of some sources, memory-mapped.

    The tokenizer lies beside them: one that was trained is not the same again, not even from the same texts.
    ``lengths`` (N,) int64 are the texts' tokens; ``sources`` names each source's texts as a range of numbers.
    """

    def __init__(self, folder: Path) -> None:
        record = read_json(folder / _RECORD)
        self.identity = str(record["identity"])
        self.sources: dict[str, range] = {name: range(first, last) for name, first, last in record["sources"]}
        self.skipped: list[str] = list(record["skipped"])
        self._starts: NDArray[np.int64] = np.load(folder / _STARTS, allow_pickle=False)
        self._tokens = np.memmap(folder / _TOKENS, dtype=np.dtype(record["dtype"]), mode="r")
        self.lengths: NDArray[np.int64] = np.diff(self._starts)

    def tokens(self, text: int, start: int, length: int) -> NDArray[np.int64]:
        """Return ``length`` tokens of a text from its ``start``-th on, (length,) int64."""
        first = int(self._starts[text]) + start
        return self._tokens[first : first + length].astype(np.int64)

    @classmethod
    def open(cls, folder: Path, sources: Sequence[TextConfig], tokenizer: Tokenizer) -> "TokenStore":
        """Open the store in ``folder``, made now unless it is there and of the same files and tokenizer.

        Raises: DataError if the sources cannot be read or have no text.
        """
        wanted = identity(sources, tokenizer)
        if read_json(folder / _RECORD).get("identity") != wanted:
            _build(folder, sources, tokenizer, wanted)
        return cls(folder)


def identity(sources: Sequence[TextConfig], tokenizer: Tokenizer) -> str:
    """Hash what decides the tokens: the tokenizer, and the files' content as far as `digests.of_file` looks at it."""
    digest = hashlib.blake2b(tokenizer.fingerprint(), digest_size=16)
    for source in sources:
        try:
            files = [of_file(path) for path in files_of(source)]
        except OSError as error:
            raise DataError(f"{source.path} cannot be read ({error.strerror or error})") from error
        digest.update(json.dumps([source.title, source.fields, source.limit, files]).encode())
    return digest.hexdigest()


def _build(folder: Path, sources: Sequence[TextConfig], tokenizer: Tokenizer, name: str) -> None:
    draft = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    dtype = np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)
    starts, ranges, skipped = array("q", [0]), [], Skipped()
    with (draft / _TOKENS).open("wb") as file:
        for source in sources:
            first = len(starts) - 1
            for ids in _tokenized(read_texts(source, skipped), tokenizer):
                np.asarray(ids, dtype=dtype).tofile(file)
                starts.append(starts[-1] + len(ids))
            if len(starts) - 1 == first:
                raise DataError(f"{source.path} has no text: expected at least one that is not blank")
            ranges.append((source.title, first, len(starts) - 1))
    np.save(draft / _STARTS, np.frombuffer(starts, dtype=np.int64), allow_pickle=False)
    record = {"identity": name, "dtype": dtype.name, "sources": ranges, "skipped": skipped.lines()}
    tokenizer.save(draft)
    write_json(draft / _RECORD, record)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def _tokenized(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    while batch := list(islice(texts, _BATCH)):
        yield from (content.ids for content in tokenizer.first_tokens(batch, _NO_LIMIT))
