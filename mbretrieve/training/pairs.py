"""What negatives are mined for: queries and their positives, from JSON lines or a folder in BEIR layout, as streams.

A file is read line by line, as often as it is asked for; of a BEIR folder the queries, the judgements and the relevant
texts are held, the corpus is not.
"""

import codecs
import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mbretrieve.corpus.jsonl import clean
from mbretrieve.errors import DataError
from mbretrieve.jsonl import parse, read_lines

Scores = Callable[[Sequence[str], Sequence[Sequence[str]]], list[list[float]]]
"""Queries and for each of them some texts -> the texts' scores, in their order."""


Found = tuple[str, float]
"""A text that was found for a query: its id (`text_id`) and its score."""


class Pair(NamedTuple):
    """A query and a text that answers it."""

    query: str
    positive: str


class Pairs(Protocol):
    """Pairs, and the texts among which their negatives are sought. All raise DataError, with file and line."""

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs, always in the same order."""

    def texts(self) -> Iterator[str]:
        """Yield the texts, which may come more than once."""

    def fingerprint(self) -> str:
        """Return a hash of all that is read."""


class PairFile:
    """JSON lines, ``{"query": ..., "positive": ...}`` each, perhaps packed (``.gz``); other keys are not read.

    Negatives are sought among all positives.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs in the file's order."""
        for place, row in _rows(self._path):
            query, positive = (_text(place, row, key) for key in ("query", "positive"))
            yield Pair(query, positive)

    def texts(self) -> Iterator[str]:
        """Yield the positives."""
        return (pair.positive for pair in self.pairs())

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        return _hashed([self._path])


class BeirFolder:
    """A folder in BEIR layout: each relevant judgement of a split is a pair; negatives are sought in the whole corpus.

    A document's text is ``title + " " + text``, as evaluation reads it. Judgements of documents or queries that are
    not in the folder are left out.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._corpus, self._queries = folder / "corpus.jsonl", folder / "queries.jsonl"
        self._judgements = folder / "qrels" / f"{split}.tsv"
        for path in (self._corpus, self._queries, self._judgements):
            if not path.is_file():
                raise DataError(f"{path} is not there: expected corpus.jsonl, queries.jsonl and qrels/{split}.tsv")

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs in the judgements' order."""
        judged = list(self._judged())
        wanted = {query for query, _ in judged}, {document for _, document in judged}
        queries = {key: text for key, text in _beir_rows(self._queries) if key in wanted[0]}
        documents = {key: text for key, text in _beir_rows(self._corpus) if key in wanted[1]}
        for query, document in judged:
            if queries.get(query) and documents.get(document):
                yield Pair(queries[query], documents[document])

    def texts(self) -> Iterator[str]:
        """Yield the corpus, but for empty documents."""
        return (text for _, text in _beir_rows(self._corpus) if text)

    def fingerprint(self) -> str:
        """Return a hash of the three files."""
        return _hashed([self._corpus, self._queries, self._judgements])

    def _judged(self) -> Iterator[tuple[str, str]]:
        with self._judgements.open(encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                grade = row[2].strip() if len(row) >= 3 else ""
                if not grade.removeprefix("-").isdecimal():
                    if number > 1:
                        raise DataError(
                            f"{self._judgements}:{number}: expected query-id, corpus-id and a whole number, by tabs"
                        )
                elif int(grade) > 0:
                    yield row[0], row[1]


def text_key(text: str) -> int:
    """Return 64 bits that two texts share if they differ in white space at most."""
    words = " ".join(text.split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def text_id(text: str) -> str:
    """Return the key of a text as the id of a document."""
    return f"{text_key(text):016x}"


def open_pairs(path: Path, split: str) -> Pairs:
    """Return the pairs of a file of JSON lines, or of a split of a folder in BEIR layout.

    Raises: DataError if there is neither.
    """
    if path.is_dir():
        return BeirFolder(path, split)
    if not path.is_file():
        raise DataError(f"{path} is not there: expected JSON lines of query and positive, or a folder in BEIR layout")
    return PairFile(path)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a file's lines as JSON objects, each with its place; blank lines are none."""
    for place, line in read_lines(path):
        if line.strip():
            yield place, parse(line.removeprefix(codecs.BOM_UTF8), place)


def _text(place: str, row: dict[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        came = "nothing" if text is None else repr(text)[:60]
        raise DataError(f"{place}: {key} is {came}, expected a text: mend the line, or take it out")
    return clean(text)


def _beir_rows(path: Path) -> Iterator[tuple[str, str]]:
    for place, row in _rows(path):
        key, title, text = row.get("_id"), row.get("title") or "", row.get("text") or ""
        if not all(isinstance(value, str) for value in (key, title, text)):
            raise DataError(f'{place}: expected {{"_id": "...", "text": "..."}} with strings')
        yield str(key), clean(f"{title} {text}".strip())


def _hashed(paths: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
