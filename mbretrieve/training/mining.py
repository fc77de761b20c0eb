"""Hard negatives: for each pair of a query and a positive, texts that rank high for the query and do not answer it.

Which of the texts found are taken says a range of ranks and, since the best of them are often answers that nobody
marked (https://arxiv.org/abs/2010.08191), a margin below the positive's score (https://arxiv.org/abs/2407.15831).
A run that was killed goes on where it stood: what is found so far lies beside the output, with how far it is.
"""

import gzip
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mbretrieve.errors import DataError
from mbretrieve.training.pairs import Found, Pair, Pairs, Scores, text_id, text_key
from mbretrieve.types import Document, Progress

BATCH = 128  # pairs that are searched and scored together, and lost at most when a run is killed
WORK = ".work"  # the folder beside the output, while it is made
_STATE, _FOUND = "state.json", "found"

POSITIVE = "positives of the same query"
QUERY = "the query itself"
MARGIN = "too near the positive's score"


@dataclass(frozen=True, slots=True)
class MiningOptions:
    """Which texts become negatives.

    ``negatives``: how many a pair. ``first`` to ``last``: the ranks they may have, from 1, among the texts that are no
    positives of the query. ``sampling``: the best of the range, or any. ``margin``: a negative scores at most the
    positive's score less this; ``relative_margin``: less this share of it, 0.05 for the 95% of NV-Retriever's
    TopK-PercPos. ``seed`` is of the sampling. ``complete``: leave out pairs with fewer negatives, since a loss on
    scores wants rows of one width.
    """

    negatives: int = 7
    first: int = 1
    last: int = 100
    sampling: Literal["top", "random"] = "top"
    margin: float | None = None
    relative_margin: float | None = None
    seed: int = 0
    complete: bool = False

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise DataError(f"{self.negatives} negatives were asked for, expected at least 1")
        if not 1 <= self.first <= self.last:
            raise DataError(f"ranks {self.first} to {self.last} were asked for, expected a range from 1 upwards")
        if self.margin is not None and self.relative_margin is not None:
            raise DataError("both a margin and a relative margin came, expected one of them")
        if self.margin is not None and not math.isfinite(self.margin):
            raise DataError(f"the margin is {self.margin}, expected a number")
        if self.relative_margin is not None and not 0 <= self.relative_margin < 1:
            raise DataError(f"the relative margin is {self.relative_margin}, expected a share: 0 or more, below 1")

    def highest(self, positive: float) -> float:
        """Return the highest score that a negative may have beside a positive of this score.

        A share is of the score's size, so that a negative stays below a positive whose score is below 0 (a logit).
        """
        if self.margin is not None:
            return positive - self.margin
        if self.relative_margin is not None:
            return positive - self.relative_margin * abs(positive)
        return float("inf")


@dataclass(slots=True)
class MiningReport:
    """What mining did: ``examples`` were written for ``pairs``; ``short`` of them have fewer negatives than were asked
    for, and pairs ``without`` any, or enough, are not written. ``rejected`` counts texts that were looked at."""

    pairs: int = 0
    examples: int = 0
    negatives: int = 0
    short: int = 0
    without: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys((POSITIVE, QUERY, MARGIN), 0))


class Finder(Protocol):
    """What ranks texts for a query (`training.finders`)."""

    scored: bool
    """Whether ``search`` gives the scores that ``scores`` would."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its ranking and its scores, as JSON."""

    def build(self, texts: Iterable[Document], folder: Path, progress: Progress | None) -> None:
        """Make ready to search the texts; ``folder`` is its own, and may hold what an interrupted run left."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Found]]:
        """Return for each query its best ``k`` texts, best first."""

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Return texts that were built in by their ids."""

    def scores(self, queries: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score texts that were built in for each of some of the queries searched last."""

    def close(self) -> None:
        """Let go of files."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """What scores the texts that a finder found, in its place; ``identity`` says what it is, as JSON."""

    identity: dict[str, Any]
    scores: Scores


def mine(
    source: Pairs,
    finder: Finder,
    output: Path,
    options: MiningOptions,
    *,
    teacher: Teacher | None = None,
    progress: Progress | None = None,
) -> MiningReport:
    """Write ``{"query", "positive", "negatives": [...], "scores": [...]}`` lines, in the order of the pairs.

    Scores are the teacher's, else the finder's: the positive's, then each negative's; the margin is of the same ones. A
    name that ends in ``.gz`` is packed. Texts that differ in white space alone are one text; a query's positives, all
    of them, and the query itself are never its negatives. In memory: 16 bytes a pair, some 200 a distinct text, and
    what a batch of pairs needs.
    Raises: DataError for an output that exists, bad input, or a work folder beside it that another run left.
    """
    if output.exists():
        raise DataError(f"{output} exists: name another file, or remove it")
    work = output.with_name(output.name + WORK)
    run = {
        "options": asdict(options),
        "finder": finder.identity,
        "teacher": teacher.identity if teacher else None,
        "source": source.fingerprint(),
    }
    positives = _Positives(source.pairs())
    if not len(positives):
        raise DataError("there are no pairs: expected at least one query with a positive")
    ledger = _Ledger(work, run, packed=output.suffix == ".gz")
    try:
        _phase(progress, "indexing", None)
        finder.build(_documents(source.texts()), work, progress)
        _phase(progress, "mining", len(positives))
        miner = _Miner(finder, teacher, positives, options)
        remaining = islice(source.pairs(), ledger.report.pairs, None)
        if progress is not None:
            progress.advance(ledger.report.pairs)
        while batch := list(islice(remaining, BATCH)):
            ledger.write(miner.examples(batch, ledger.report))
            if progress is not None:
                progress.advance(len(batch))
    finally:
        finder.close()
        if progress is not None:
            progress.finish()
    ledger.finish(output)
    return ledger.report


def _phase(progress: Progress | None, name: str, total: int | None) -> None:
    if progress is not None:
        progress.start(name, total)


def _documents(texts: Iterable[str]) -> Iterator[Document]:
    seen: set[int] = set()
    for text in texts:
        if (key := text_key(text)) not in seen:
            seen.add(key)
            yield Document(text_id(text), text)


class _Positives:
    """Which texts answer each query, by keys: one row of two 64-bit numbers a pair, sorted."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        keys = np.fromiter(
            (key for pair in pairs for key in (text_key(pair.query), text_key(pair.positive))), dtype=np.uint64
        )
        rows: NDArray[np.uint64] = keys.reshape(-1, 2)
        self._rows = rows[rows[:, 0].argsort(kind="stable")]

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, query: str) -> set[str]:
        """Return the ids of a query's positives."""
        key = np.uint64(text_key(query))
        first, last = (int(np.searchsorted(self._rows[:, 0], key, side=side)) for side in ("left", "right"))
        return {f"{document:016x}" for document in self._rows[first:last, 1].tolist()}


@dataclass(slots=True)
class _Open:
    """A pair whose negatives are being chosen: ``waiting`` are the ids of texts not yet looked at, the next one last;
    ``scores`` those that are known, by id."""

    pair: Pair
    waiting: list[str]
    scores: dict[str, float]
    chosen: list[str] = field(default_factory=list)

    @property
    def positive(self) -> str:
        """The positive's id."""
        return text_id(self.pair.positive)


class _Miner:
    """Chooses the negatives of a batch of pairs at a time."""

    def __init__(self, finder: Finder, teacher: Teacher | None, positives: _Positives, options: MiningOptions) -> None:
        self._finder, self._positives, self._options = finder, positives, options
        self._scores = teacher.scores if teacher else finder.scores
        self._scored = teacher is None and finder.scored

    def examples(self, batch: Sequence[Pair], report: MiningReport) -> list[dict[str, Any]]:
        """Return the examples of a batch, and count what became of it in the report."""
        options = self._options
        known = [self._positives.of(pair.query) for pair in batch]
        # Beside the range there is room for what cannot be a negative: the query's positives, and the query.
        depth = options.last + max(map(len, known)) + 1
        found = self._finder.search([pair.query for pair in batch], depth)
        rejected: Counter[str] = Counter()
        work = [
            _Open(
                pair,
                self._order(of_pair, pair, positives, report.pairs + place, rejected),
                dict(of_pair) if self._scored else {},
            )
            for place, (pair, of_pair, positives) in enumerate(zip(batch, found, known, strict=True))
        ]
        # Scoring is what costs: only so many texts are scored as are missing, again until none is, or no text is left.
        while needy := [one for one in work if one.waiting and len(one.chosen) < options.negatives]:
            self._look_at(needy, rejected)
        report.pairs += len(batch)
        for reason, count in rejected.items():
            report.rejected[reason] += count
        least = options.negatives if options.complete else 1
        written = [one for one in work if len(one.chosen) >= least]
        report.without += len(work) - len(written)
        report.examples += len(written)
        report.negatives += sum(len(one.chosen) for one in written)
        report.short += sum(len(one.chosen) < options.negatives for one in written)
        texts = self._finder.texts({id for one in written for id in one.chosen})
        return [
            {
                "query": one.pair.query,
                "positive": one.pair.positive,
                "negatives": [texts[id] for id in one.chosen],
                "scores": [one.scores[id] for id in (one.positive, *one.chosen)],
            }
            for one in written
        ]

    def _order(
        self, found: Sequence[Found], pair: Pair, positives: set[str], number: int, rejected: Counter[str]
    ) -> list[str]:
        """Return the ids of the range, the first to be looked at last."""
        own = text_id(pair.query)
        rest: list[str] = []
        for id, _ in found:
            if len(rest) == self._options.last:
                break
            if id in positives:
                rejected[POSITIVE] += 1
            elif id == own:
                rejected[QUERY] += 1
            else:
                rest.append(id)
        within = rest[self._options.first - 1 :]
        if self._options.sampling == "random":
            # By the pair's number, not by what was drawn before: a run that goes on draws the same.
            drawn = np.random.default_rng([self._options.seed, number]).permutation(len(within))
            within = [within[at] for at in drawn.tolist()]
        return within[::-1]

    def _look_at(self, needy: Sequence[_Open], rejected: Counter[str]) -> None:
        looked = []
        for one in needy:
            count = min(self._options.negatives - len(one.chosen), len(one.waiting))
            looked.append([one.waiting.pop() for _ in range(count)])
        self._score(needy, [[one.positive, *some] for one, some in zip(needy, looked, strict=True)])
        for one, some in zip(needy, looked, strict=True):
            highest = self._options.highest(one.scores[one.positive])
            for id in some:
                if one.scores[id] <= highest:
                    one.chosen.append(id)
                else:
                    rejected[MARGIN] += 1

    def _score(self, work: Sequence[_Open], wanted: Sequence[Sequence[str]]) -> None:
        """Score the wanted texts of each pair, but for those whose scores are known."""
        lacking = [[id for id in ids if id not in one.scores] for one, ids in zip(work, wanted, strict=True)]
        some = [(one, ids) for one, ids in zip(work, lacking, strict=True) if ids]
        if not some:
            return
        texts = self._finder.texts({id for one, ids in some for id in ids if id != one.positive})
        # The positive as it stands in the pair: its copies may be spaced otherwise.
        of_pairs = [[one.pair.positive if id == one.positive else texts[id] for id in ids] for one, ids in some]
        scores = self._scores([one.pair.query for one, _ in some], of_pairs)
        for (one, ids), of_query in zip(some, scores, strict=True):
            one.scores.update(zip(ids, of_query, strict=True))


class _Ledger:
    """The work folder: what was found, and up to which pair. What follows the last state is dropped and done again."""

    def __init__(self, work: Path, run: dict[str, Any], packed: bool) -> None:
        self._work, self._run, self._packed = work, json.loads(json.dumps(run)), packed
        self.report = MiningReport()
        self._bytes = 0
        state = self._read()
        if state is not None:
            self.report = MiningReport(**state["report"])
            self._bytes = state["bytes"]
        else:
            work.mkdir(parents=True, exist_ok=True)
            self._save()
        self._found = work / _FOUND
        self._found.touch()
        os.truncate(self._found, self._bytes)

    def write(self, examples: Sequence[dict[str, Any]]) -> None:
        """Add a batch's examples, then say that it is done."""
        lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples).encode()
        # A packed file is one member a batch: it ends where a batch ends, and can be gone on with.
        data = gzip.compress(lines, mtime=0) if self._packed and lines else lines
        with self._found.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(data)
        self._save()

    def finish(self, output: Path) -> None:
        """Put the file in its place, and remove the folder."""
        self._found.replace(output)
        shutil.rmtree(self._work)

    def _read(self) -> dict[str, Any] | None:
        path = self._work / _STATE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}): remove {self._work}") from error
        for name, value in self._run.items():
            if state["run"].get(name) != value:
                raise DataError(
                    f"{self._work} was left by a run with another {name}: run that one again to finish it, or remove "
                    "the folder"
                )
        return state

    def _save(self) -> None:
        state = {"run": self._run, "report": asdict(self.report), "bytes": self._bytes}
        partial = self._work / f"{_STATE}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(state))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._work / _STATE)
