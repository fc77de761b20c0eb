"""The training loop. A step is a fixed number of examples over all processes, all from one source.

Which of them share a micro-batch, and which process computes them, changes neither the loss nor the gradient beyond the
rounding of the dtype (1e-5 in float32): a loss that spans examples sees all representations at once (GradCache), one
that is a mean over examples is accumulated.
"""

import math
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbretrieve.models.transfer import out_of_memory
from mbretrieve.training.books import Books, Evaluate
from mbretrieve.training.config import TrainConfig
from mbretrieve.training.data import shard
from mbretrieve.training.gathering import gather_counts, gather_rows
from mbretrieve.training.gradcache import cached_backward
from mbretrieve.training.objective import Representations, targets
from mbretrieve.training.optim import set_learning_rate
from mbretrieve.training.running import Outcome, TokenBudget, signals
from mbretrieve.training.schedule import learning_rate_factor
from mbretrieve.training.setup import Run, prepare
from mbretrieve.training.steps import Ahead, Step, cut, tokenize
from mbretrieve.training.student import Encoded, MicroBatch
from mbretrieve.types import Progress


def train(
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> Outcome:
    """Train what a recipe says; when it is done, ``output`` is the model: the best evaluated one, else the last.

    Raises: DataError for data, recipes and folders that cannot be used, and for a loss that is not finite; ModelError
    for models and checkpoints that do not fit, and if memory ends; MissingExtraError.
    """
    run = prepare(config, output, resume, say)
    loop = Loop(run, say)
    books = Books(run, evaluate, say, progress)
    position, steps, ahead = run.position, run.steps, Ahead(loop.next_step)
    stop = False
    try:
        with signals() as received:
            while position.step < steps and not stop:
                step = next(ahead)
                factor = learning_rate_factor(config.schedule, position.step, steps)
                set_learning_rate(run.optimizer, factor)
                made = loop.gradients(step)
                norm = run.accelerator.clip_grad_norm_(run.parameters, config.optimizer.max_grad_norm or math.inf)
                loss, tokens, stop = loop.agree(made, step.tokens, bool(received))
                if not (math.isfinite(loss) and bool(norm.isfinite())):
                    raise books.failure(step, loss)
                run.optimizer.step()
                run.optimizer.zero_grad()
                position.step, position.tokens, position.data = position.step + 1, position.tokens + tokens, step.data
                books.log(loss, factor, tokens)
                # Stopped by what was agreed on, not by what came since: then a checkpoint is written whenever it comes.
                books.keep(last=position.step == steps or stop)
    finally:
        ahead.close()
        books.close()
    if not stop or position.step == steps:
        return books.finish(None)
    return books.finish((received or [signal.SIGTERM])[0])  # the signal may have come to another process


class Loop:
    """From the next batch to its gradients."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self._run = run
        self._rank, self._ranks = run.accelerator.process_index, run.accelerator.num_processes
        self._budget = TokenBudget(run.config.run.token_budget, self._ranks, say)

    def next_step(self) -> Step:
        """Read the next batch and tokenize this process's share."""
        examples = next(self._run.batches)
        own = shard(range(len(examples)), self._rank, self._ranks)
        return tokenize(self._run.student, examples, targets(examples), own, self._run.batches.state())

    def gradients(self, step: Step) -> Tensor:
        """Add the gradient of a step's loss, and return the loss; a smaller token budget where memory ends."""
        whole = not self._run.objective.spans_examples
        while True:
            batches = cut(self._run.student, step, self._budget.tokens, whole)
            try:
                loss = (self._accumulated if whole else self._cached)(step, batches)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                largest = max(batches, key=lambda batch: len(batch.ids))
                # A query and a document can be parted only where the loss is not of whole examples.
                texts = len(largest.query_ids) if whole else len(largest.lengths)
                self._budget.shrink(len(largest.ids), texts, "model.document_length")
                self._run.optimizer.zero_grad()
            else:
                self._budget.fitted(max(len(batch.ids) for batch in batches))
                return loss

    def agree(self, loss: Tensor, tokens: int, stop: bool) -> tuple[float, int, bool]:
        """Return the mean loss of all processes, their tokens together, and whether one of them is to stop."""
        told = torch.stack([loss, loss.new_tensor(tokens), loss.new_tensor(stop)])
        mean, total, stopped = self._run.accelerator.reduce(told, "sum").tolist()
        return mean / self._ranks, int(total), stopped > 0

    def _cached(self, step: Step, batches: list[MicroBatch]) -> Tensor:
        """A loss that spans examples: on all representations at once, each micro-batch encoded a second time."""
        taught = self._teacher(step, batches)

        def loss(found: list[tuple[Tensor, ...]]) -> Tensor:
            whole: Tensor = self._run.objective(self._gathered(self._represent(batches, found, taught)), step.targets)
            return whole

        value = cached_backward(lambda place: self._run.model(batches[place]), len(batches), loss, self._no_sync)
        self._reduce_objective()
        return value

    def _accumulated(self, step: Step, batches: list[MicroBatch]) -> Tensor:
        """A mean over examples: micro-batch by micro-batch, each weighted by its share of the step."""
        total = torch.zeros((), device=self._run.accelerator.device)
        for place, batch in enumerate(batches):
            with nullcontext() if place == len(batches) - 1 else self._no_sync():
                found = self._represent([batch], [self._run.model(batch)], None)
                weight = len(batch.query_ids) * self._ranks / len(step.examples)
                loss = weight * self._run.objective(found, step.targets)
                loss.backward()
            total += loss.detach()
        self._reduce_objective()
        return total

    def _no_sync(self) -> Any:
        return self._run.accelerator.no_sync(self._run.model)

    def _represent(
        self, batches: list[MicroBatch], found: Sequence[tuple[Tensor, ...]], taught: tuple[Tensor, Tensor] | None
    ) -> Representations:
        return Representations(
            parts=[self._run.student.encoded(tensors) for tensors in found],
            query_rows=[rows for batch in batches for rows in batch.query_rows],
            document_rows=[rows for batch in batches for rows in batch.document_rows],
            query_ids=[number for batch in batches for number in batch.query_ids],
            document_ids=[number for batch in batches for number in batch.document_ids],
            query_teacher=None if taught is None else taught[0],
            document_teacher=None if taught is None else taught[1],
        )

    def _gathered(self, own: Representations) -> Representations:
        """Bring the representations of all processes to each, whose loss is then the whole step's."""
        if self._ranks == 1 or not self._run.config.loss.gather:
            return own
        device = self._run.accelerator.device

        def rows(part: Tensor | None) -> Tensor | None:
            return None if part is None else gather_rows(part)

        # As one part: the processes may have unlike numbers of micro-batches.
        sides = [[part for part in parts if part is not None] for parts in zip(*own.parts, strict=True)]
        return Representations(
            parts=[Encoded(*(gather_rows(torch.cat(parts)) if parts else None for parts in sides))],
            query_rows=gather_counts(own.query_rows, device),
            document_rows=gather_counts(own.document_rows, device),
            query_ids=gather_counts(own.query_ids, device),
            document_ids=gather_counts(own.document_ids, device),
            query_teacher=rows(own.query_teacher),
            document_teacher=rows(own.document_teacher),
        )

    def _teacher(self, step: Step, batches: list[MicroBatch]) -> tuple[Tensor, Tensor] | None:
        if self._run.teacher is None:
            return None
        queries = [step.text(number, document=False) for batch in batches for number in batch.query_ids]
        documents = [step.text(number, document=True) for batch in batches for number in batch.document_ids]
        return self._run.teacher.encode(queries), self._run.teacher.encode(documents)

    def _reduce_objective(self) -> None:
        """Average over processes what DistributedDataParallel does not know of: the loss's own few parameters."""
        for parameter in self._run.objective.parameters():
            if self._ranks > 1 and parameter.grad is not None:
                parameter.grad = self._run.accelerator.reduce(parameter.grad, "mean")
