"""The batches of a run: one source each, the sources by weight, the same for the same seed, from any place on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mbretrieve.errors import DataError
from mbretrieve.training.config import RunConfig, SourceConfig
from mbretrieve.training.data.example import Example
from mbretrieve.training.data.sources import Source, StreamSource, TableSource


class Share(NamedTuple):
    """How one source stands: its rows (None: not counted), its share of the steps, and what was drawn of it."""

    title: str
    rows: int | None
    share: float
    batches: int
    epoch: float


class Batches:
    """Endless batches of exactly ``batch_size`` examples, each of one source.

    The next source is the one that is furthest behind its weight's share, so that after any number of steps each has
    had its share to within a few batches. What an epoch of a source has over whole batches is left out, by another
    order in each epoch. ``length_bucket`` times a batch's examples are sorted by length before they are cut.
    ``teacher_dim`` is the width of the teacher's vectors that examples have (None: none has any).
    Raises: DataError, with file and line, for what cannot be read, and for a source smaller than a batch;
    MissingExtraError.
    """

    def __init__(self, data: Sequence[SourceConfig], batch_size: int, seed: int, length_bucket: int = 1) -> None:
        self.batch_size = batch_size
        self._titles = [source.title for source in data]
        self._sources: list[Source] = [
            (StreamSource if source.streaming else TableSource)(source, number, batch_size, seed, length_bucket)
            for number, source in enumerate(data)
        ]
        widths = {source.teacher_dim for source in self._sources} - {None}
        if len(widths) > 1:
            raise DataError(
                f"the sources' teacher_vectors have unlike widths, {sorted(map(str, widths))}: name one teacher's"
            )
        self.teacher_dim = next(iter(widths), None)
        weights = [
            source.weight or (1.0 if opened.rows is None else float(opened.rows // batch_size))
            for source, opened in zip(data, self._sources, strict=True)
        ]
        self._shares = [weight / sum(weights) for weight in weights]
        self._drawn = [0] * len(data)
        self._identity: dict[str, Any] = {
            "seed": seed,
            "batch_size": batch_size,
            "length_bucket": length_bucket,
            "sources": [
                [title, source.rows, share]
                for title, source, share in zip(self._titles, self._sources, self._shares, strict=True)
            ],
            "content": {title: source.digest for title, source in zip(self._titles, self._sources, strict=True)},
        }

    def __iter__(self) -> Iterator[list[Example]]:
        return self

    def __next__(self) -> list[Example]:
        """Return the next batch. Raises: DataError for a row that is no example."""
        steps = sum(self._drawn) + 1
        behind = [share * steps - drawn for share, drawn in zip(self._shares, self._drawn, strict=True)]
        at = behind.index(max(behind))
        batch = self._sources[at].next()
        self._drawn[at] += 1
        return batch

    @property
    def shares(self) -> list[Share]:
        """How each source stands."""
        rows = zip(self._titles, self._sources, self._shares, self._drawn, strict=True)
        return [Share(title, source.rows, share, drawn, source.epoch) for title, source, share, drawn in rows]

    def steps(self, run: RunConfig) -> int:
        """Return how many steps a run has: as many as it says, or its epochs' whole batches of all sources."""
        if run.steps is not None:
            return run.steps
        assert run.epochs is not None
        batches = sum((source.rows or 0) // self.batch_size for source in self._sources)
        return max(1, math.ceil(run.epochs * batches))

    def state(self) -> dict[str, Any]:
        """Return the place in the data, for JSON: after ``restore`` the next batch is the one that would come now."""
        return {
            "data": self._identity,
            "drawn": list(self._drawn),
            "sources": [source.state() for source in self._sources],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a place that ``state`` returned.

        Raises: DataError for what is none, or a place in other data (other rows, weights, seed or batch size; of what
        the rows say, `digests` tells how much is looked at).
        """
        saved = state.get("data")
        if saved != self._identity:
            known = saved if isinstance(saved, Mapping) else {}
            key = next(key for key, value in self._identity.items() if known.get(key) != value)
            if key == "content":
                was = known.get(key) or {}
                changed = next(title for title, digest in self._identity[key].items() if was.get(title) != digest)
                raise DataError(
                    f"the rows of {changed}, or its teacher's vectors, are not those that the run began with: put them "
                    "back, or begin anew without --resume"
                )
            raise DataError(
                f"the saved place is in other data: {key} was {known.get(key)!r}, is {self._identity[key]!r}: "
                "resume with the recipe and the files it was saved with"
            )
        try:
            drawn, places = state["drawn"], state["sources"]
            if len(drawn) != len(self._sources) or not all(type(count) is int and count >= 0 for count in drawn):
                raise ValueError(f"{drawn!r} batches of {len(self._sources)} sources")
            for source, place in zip(self._sources, places, strict=True):
                source.restore(place)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the saved place in the data is damaged ({error}): resume an older checkpoint") from error
        self._drawn = list(drawn)
