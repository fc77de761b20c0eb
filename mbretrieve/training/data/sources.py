"""One source of examples as an endless sequence of full batches, reshuffled each epoch, that can go on from any place.

A table's batch is a function of its number: nothing but the number is needed to go on. A stream is read in blocks that
are shuffled each; where a block began and how many of its batches were taken is all its state.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mbretrieve.errors import DataError
from mbretrieve.training.config import SourceConfig
from mbretrieve.training.data.digests import joined
from mbretrieve.training.data.example import Example
from mbretrieve.training.data.formats import Reader, open_rows, stream_rows
from mbretrieve.training.data.tables import JsonLines
from mbretrieve.training.data.vectors import TeacherVectors

# Examples that a stream holds at once, to be shuffled: as many as keep its neighbours apart and fit a small memory.
_BLOCK = 8192


class Source(Protocol):
    """What the batches of a run draw from."""

    @property
    def digest(self) -> str:
        """What its rows and their vectors are, as a hash."""

    @property
    def rows(self) -> int | None:
        """How many examples an epoch has; None: not counted."""

    @property
    def epoch(self) -> float:
        """How many times the source was gone through."""

    @property
    def teacher_dim(self) -> int | None:
        """The width of the teacher's vectors that its examples have; None: they have none."""

    def next(self) -> list[Example]:
        """Return the next batch."""

    def state(self) -> dict[str, int]:
        """Return the place to go on from."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a place. Raises: KeyError, TypeError or ValueError for what is none."""


class Maker:
    """Makes examples of one source's rows: prompts in front, as many negatives as asked for, scores that fit."""

    def __init__(self, source: SourceConfig, read: Reader) -> None:
        self._source, self._read = source, read
        self._documents: int | None = None  # of each example with scores: their matrix has one width

    def __call__(self, row: Mapping[str, Any], place: str) -> Example | None:
        """Make an example of a row, None if its format says that it is none. Raises: DataError."""
        texts = self._read(row, place)
        if texts is None:
            return None
        source, most = self._source, self._source.negatives
        example = Example(
            query=source.query_prompt + texts.query,
            positive=source.document_prompt + texts.positive,
            negatives=tuple(source.document_prompt + text for text in texts.negatives[:most]),
            scores=None if texts.scores is None else texts.scores[: None if most is None else 1 + most],
            source=source.title,
        )
        if example.scores is not None:
            expected = self._documents or (len(example.scores) if most is None else 1 + most)
            if len(example.scores) != expected:
                raise DataError(
                    f"{place}: {len(example.scores)} documents with scores, expected {expected} in every row: "
                    "set the source's negatives to what each row has"
                )
            self._documents = expected
        return example


class TableSource:
    """A source whose rows are found by their number."""

    def __init__(self, source: SourceConfig, number: int, batch_size: int, seed: int, bucket: int) -> None:
        self._table, read, rows = open_rows(source)
        self._make = Maker(source, read)
        self._seed, self._batch_size, self._bucket = [seed, number], batch_size, bucket
        self._examples = self._usable(source)
        self._batches = len(self._examples) // batch_size
        if not self._batches:
            raise DataError(
                f"{source.title} has {len(self._examples)} examples, expected at least the {batch_size} of a batch: "
                "lower run.batch_size or join it to another source"
            )
        self._vectors = _teacher_vectors(source, len(self._table))
        self.digest = rows if self._vectors is None else joined([rows, self._vectors.digest])
        self._taken = 0
        self._window: tuple[tuple[int, int], list[list[Example]]] | None = None
        self._order: tuple[int, np.ndarray[Any, Any]] | None = None

    @property
    def rows(self) -> int:
        """How many examples an epoch has."""
        return len(self._examples)

    @property
    def epoch(self) -> float:
        """How many times the source was gone through."""
        return self._taken / self._batches

    @property
    def teacher_dim(self) -> int | None:
        """The width of the teacher's vectors."""
        return None if self._vectors is None else self._vectors.dim

    def next(self) -> list[Example]:
        """Return the next batch. Raises: DataError for a row that is no example."""
        epoch, batch = divmod(self._taken, self._batches)
        window, at = divmod(batch, self._bucket)
        if self._window is None or self._window[0] != (epoch, window):
            self._window = ((epoch, window), self._read(epoch, window))
        self._taken += 1
        return self._window[1][at]

    def state(self) -> dict[str, int]:
        """Return the place to go on from."""
        return {"batches": self._taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a place."""
        self._taken = _natural(state["batches"])

    def _usable(self, source: SourceConfig) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows that are examples. JSON lines are all read now: better than to break off in the middle."""
        most = len(self._table) if source.limit is None else min(source.limit, len(self._table))
        if isinstance(self._table, JsonLines) or source.format in ("nli", "codesearchnet", "coir"):
            made = (self._make(self._table.row(at), self._table.place(at)) is not None for at in range(most))
            return np.flatnonzero(np.fromiter(made, np.bool_, most))
        self._make(self._table.row(0), self._table.place(0))  # of the others, at least their columns
        return np.arange(most)

    def _example(self, at: int) -> Example:
        example = self._make(self._table.row(at), self._table.place(at))
        assert example is not None
        return example if self._vectors is None else replace(example, vectors=self._vectors[at])

    def _read(self, epoch: int, window: int) -> list[list[Example]]:
        """Read one window of an epoch's order and cut it into batches."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([*self._seed, epoch]).permutation(self._examples))
        start = window * self._bucket * self._batch_size
        end = min(start + self._bucket * self._batch_size, self._batches * self._batch_size)
        examples = [self._example(int(at)) for at in self._order[1][start:end]]
        return _cut(examples, self._batch_size, self._bucket, np.random.default_rng([*self._seed, epoch, window]))


class StreamSource:
    """A source that is read front to back, once an epoch."""

    def __init__(self, source: SourceConfig, number: int, batch_size: int, seed: int, bucket: int) -> None:
        self._stream, read = stream_rows(source)
        self.digest = self._stream.digest
        self._make = Maker(source, read)
        self._title, self._limit = source.title, source.limit
        self._seed, self._batch_size, self._bucket = [seed, number], batch_size, bucket
        window = batch_size * bucket
        self._block = -(-_BLOCK // window) * window
        self._epoch, self._start, self._taken = 0, 0, 0  # of the block at hand
        self._end = 0  # the row behind it
        self._batches: list[list[Example]] | None = None
        self._rows: Iterator[tuple[int, Mapping[str, Any]]] | None = None

    @property
    def rows(self) -> None:
        """Not counted."""
        return

    @property
    def epoch(self) -> float:
        """How many times the source was gone through."""
        return float(self._epoch)

    @property
    def teacher_dim(self) -> None:
        """A stream has no rows by number, and no vectors."""
        return

    def next(self) -> list[Example]:
        """Return the next batch. Raises: DataError for a row that is no example, or a stream without a whole batch."""
        if self._batches is None:
            self._batches = self._read()
        while self._taken >= len(self._batches):
            if self._batches:
                self._start = self._end
            elif self._start:  # less than a batch was left
                self._epoch, self._start, self._rows = self._epoch + 1, 0, None
            else:
                raise DataError(f"{self._title} has less than the {self._batch_size} examples of a batch")
            self._taken = 0
            self._batches = self._read()
        self._taken += 1
        return self._batches[self._taken - 1]

    def state(self) -> dict[str, int]:
        """Return the place to go on from."""
        return {"epoch": self._epoch, "row": self._start, "batches": self._taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a place: the block at hand is read again."""
        self._epoch, self._start, self._taken = (_natural(state[name]) for name in ("epoch", "row", "batches"))
        self._end, self._batches, self._rows = self._start, None, None

    def _read(self) -> list[list[Example]]:
        """Read the next block and cut it into batches; none if less than a batch is left."""
        if self._rows is None:
            self._rows = self._stream.rows(self._start)
        block: list[Example] = []
        for at, row in self._rows:
            if self._limit is not None and at >= self._limit:
                break
            example = self._make(row, self._stream.place(at))
            self._end = at + 1
            if example is not None:
                block.append(example)
            if len(block) == self._block:
                break
        random = np.random.default_rng([*self._seed, self._epoch, self._start])
        mixed = [block[at] for at in random.permutation(len(block))]
        window = self._batch_size * self._bucket
        return [
            batch
            for start in range(0, len(mixed), window)
            for batch in _cut(mixed[start : start + window], self._batch_size, self._bucket, random)
        ]


def _cut(examples: list[Example], size: int, bucket: int, random: np.random.Generator) -> list[list[Example]]:
    """Cut examples into whole batches; of several, each holds neighbours in length, in an order of chance."""
    if bucket > 1:
        examples = examples[: len(examples) // size * size]
        examples.sort(key=_length)
    batches = [examples[at : at + size] for at in range(0, len(examples) - size + 1, size)]
    if bucket == 1:
        return batches
    # Within a batch too: its first share would be the short ones, and one process idle while another works.
    return [[batches[at][i] for i in random.permutation(size)] for at in random.permutation(len(batches))]


def _teacher_vectors(source: SourceConfig, rows: int) -> TeacherVectors | None:
    folder = source.teacher_vectors
    return None if folder is None else TeacherVectors(Path(folder).expanduser(), rows)


def _length(example: Example) -> int:
    return len(example.query) + len(example.positive) + sum(map(len, example.negatives))


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no place in a source")
    return value
