"""From a batch of examples to what a process computes in a step: its texts tokenized, cut into packed micro-batches."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mbretrieve.models.framing import Prepared
from mbretrieve.models.packing import pack
from mbretrieve.training.data import Example
from mbretrieve.training.objective import Targets
from mbretrieve.training.student import MicroBatch, Student

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step as one process sees it: all examples and their targets, and its own share of the texts.

    ``queries`` and ``documents`` are the share, each text with its number in the step; ``of_query`` says which query
    each document belongs to. ``data`` is where the data stands behind the step.
    """

    examples: list[Example]
    targets: Targets
    queries: list[tuple[int, Prepared]]
    documents: list[tuple[int, Prepared]]
    of_query: list[int]
    data: dict[str, Any]

    @property
    def tokens(self) -> int:
        """The tokens of this process's share."""
        return sum(len(text.ids) for _, text in (*self.queries, *self.documents))

    @property
    def longest(self) -> int:
        """The tokens of the longest text: no budget can be lower."""
        return max(len(text.ids) for _, text in (*self.queries, *self.documents))

    def text(self, number: int, document: bool) -> str:
        """Return the text of a number."""
        if not document:
            return self.examples[number].query
        query = int((self.targets.starts <= number).sum()) - 1
        example = self.examples[query]
        return (example.positive, *example.negatives)[number - int(self.targets.starts[query])]


def tokenize(
    student: Student, examples: list[Example], targets: Targets, own: Sequence[int], data: dict[str, Any]
) -> Step:
    """Tokenize one process's share of a step."""
    starts = targets.starts.tolist()
    queries = student.queries.prepare([examples[number].query for number in own])
    texts = [text for number in own for text in (examples[number].positive, *examples[number].negatives)]
    documents = student.documents.prepare(texts)
    return Step(
        examples=examples,
        targets=targets,
        queries=list(zip(own, queries, strict=True)),
        documents=list(enumerate(documents, starts[own[0]])),
        of_query=[number for number in own for _ in range(starts[number], starts[number + 1])],
        data=data,
    )


def cut(student: Student, step: Step, budget: int, whole_examples: bool) -> list[MicroBatch]:
    """Cut a step's texts into micro-batches of at most ``budget`` tokens; a longer text (or example) goes alone.

    With ``whole_examples`` a query and its documents stay together, for a loss that is a mean over examples.
    """
    if whole_examples:
        lengths = {number: len(text.ids) for number, text in step.queries}
        for (_, text), query in zip(step.documents, step.of_query, strict=True):
            lengths[query] += len(text.ids)
        numbers = list(lengths)
        groups = [{numbers[place] for place in group} for group in pack(list(lengths.values()), budget)]
        return [
            student.micro_batch(
                [text for text in step.queries if text[0] in group],
                [text for text, query in zip(step.documents, step.of_query, strict=True) if query in group],
            )
            for group in groups
        ]
    count = len(step.queries)
    texts = [*step.queries, *step.documents]
    return [
        student.micro_batch(
            [texts[place] for place in group if place < count], [texts[place] for place in group if place >= count]
        )
        for group in pack([len(text.ids) for _, text in texts], budget)
    ]


class Ahead(Generic[Made]):
    """What ``make`` gives, again and again, each one made in a thread while the one before is in use."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: Future[Made] | None = None

    def __iter__(self) -> Iterator[Made]:
        return self

    def __next__(self) -> Made:
        waiting = self._next or self._thread.submit(self._make)
        made = waiting.result()
        self._next = self._thread.submit(self._make)
        return made

    def close(self) -> None:
        """Let go of the thread, and of what it makes."""
        self._thread.shutdown(wait=True, cancel_futures=True)
