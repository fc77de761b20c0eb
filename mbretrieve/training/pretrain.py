"""Pre-training: masked-language modelling over packed sequences, phase by phase, as ModernBERT was trained.

A phase is so many steps at one length and RoPE base on some texts. Each ends in a checkpoint, and the next begins from
the model and the optimiser in it: an extension of the context, or an annealing, is a phase of this recipe or the first
one of another. A step is a fixed number of sequences over all processes; its loss, the mean cross-entropy of all tokens
to guess, depends neither on the token budget nor on the number of processes, up to the rounding of the dtype.
"""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mbretrieve.corpus.records import Skipped
from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.models.card import DataSource, TrainingFacts
from mbretrieve.models.device import resolve_dtype
from mbretrieve.models.source import BUNDLED
from mbretrieve.models.tokenizer import Tokenizer
from mbretrieve.models.transfer import out_of_memory
from mbretrieve.training import state
from mbretrieve.training.curves import Log, write_curves
from mbretrieve.training.masked_lm import MaskedLanguageModel
from mbretrieve.training.masked_steps import MaskedSequence, PhaseSteps, micro_batches
from mbretrieve.training.optim import make_optimizer, set_learning_rate
from mbretrieve.training.packed_sequences import Piece
from mbretrieve.training.pretrain_config import PhaseConfig, PretrainConfig
from mbretrieve.training.pretrain_start import Start, begin, find, resume
from mbretrieve.training.running import (
    CHECKPOINTS,
    RECIPE,
    Outcome,
    TokenBudget,
    last_checkpoint,
    make_accelerator,
    signals,
)
from mbretrieve.training.schedule import learning_rate_factor
from mbretrieve.training.state import Position
from mbretrieve.training.texts import placed_texts
from mbretrieve.training.token_store import TokenStore, identity
from mbretrieve.types import Progress

TOKENS, FAILED = "tokens", "failed-batch.json"
_SHOWN = 200  # characters of a text
# What may be another when a run goes on: nothing that decides what a step does.
_PORTIONS = ("token_budget", "log_every", "save_every", "keep")
FREE = frozenset({*(f"run.{name}" for name in _PORTIONS), "model.gradient_checkpointing", "card"})
_NO_LOSS = nn.Module()  # masked-language modelling learns nothing beside the model


@dataclass(slots=True)
class _Run:
    """What all phases of a run share."""

    config: PretrainConfig
    output: Path
    accelerator: Any
    store: TokenStore
    start: Start
    position: Position
    budget: TokenBudget
    say: Callable[[str], None]
    progress: Progress | None

    @property
    def facts(self) -> TrainingFacts:
        """What the card of the model says of its making."""
        licences = {source.title: source.licence for source in self.config.text}
        return TrainingFacts(
            name=self.config.card.name,
            base_model=BUNDLED if self.config.start.model == "bundled" else self.config.start.model,
            licence=self.config.card.licence,
            recipe=self.config.to_toml(),
            data=tuple(DataSource(name, len(texts), licences[name]) for name, texts in self.store.sources.items()),
            seeds=(self.config.run.seed,),
        )

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)


def pretrain(
    config: PretrainConfig,
    output: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> Outcome:
    """Pre-train what a recipe says; when it is done, ``output`` is the model, for transformers and for ``train``.

    ``output/checkpoints`` keeps the last states and those at the ends of phases, each of them a model too.
    Raises: DataError for texts, recipes and folders that cannot be used, and for a loss that is not finite; ModelError
    for models and checkpoints that do not fit, and if memory ends; MissingExtraError.
    """
    run = _prepare(config, output, resume, say, progress)
    stopped, model = False, None
    if run.progress is not None:
        run.progress.start("pre-training", config.steps)
        run.progress.advance(run.position.step)
    try:
        with signals() as received:
            first = int(run.position.data.get("phase", 0))
            for index in range(first, len(config.phase)):
                phase = _Phase(run, index)
                stopped, model = phase.train(received), phase.saved.model
                if stopped:
                    break
    finally:
        if run.progress is not None:
            run.progress.finish()
    _finish(run, None if stopped else model)
    number = (received or [signal.SIGTERM])[0] if stopped else None  # the signal may have come to another process
    return Outcome(run.position.step, config.steps, run.position.tokens, number, {})


def _prepare(
    config: PretrainConfig, output: Path, resumed: bool, say: Callable[[str], None], progress: Progress | None
) -> _Run:
    found = last_checkpoint(config.to_dict(), output, resumed, FREE)
    accelerator = make_accelerator(output)
    main = bool(accelerator.is_main_process)
    torch.manual_seed(config.run.seed)
    position = Position()
    if found is not None:
        position = Position(**state.read_record(found)["position"])
        say(f"going on from {found} after {position.step} of {config.steps} steps")
    folder = output / TOKENS
    if main:
        start = begin(config) if found is None else resume(found)
        _check_texts(config, start, position)
        output.mkdir(parents=True, exist_ok=True)
        (output / RECIPE).write_text(config.to_toml(), "utf-8")
        store = TokenStore.open(folder, config.text, start.tokenizer)
        for line in store.skipped:
            say(f"left out {line}")
    accelerator.wait_for_everyone()
    if not main:
        start = begin(config, Tokenizer.load(folder)) if found is None else resume(found)
        store = TokenStore(folder)
    say(f"{len(store.lengths):,} texts of {int(store.lengths.sum()):,} tokens")
    budget = TokenBudget(config.run.token_budget, accelerator.num_processes, say)
    return _Run(config, output, accelerator, store, start, position, budget, say, progress if main else None)


def _check_texts(config: PretrainConfig, start: Start, position: Position) -> None:
    found = position.data.get("texts")
    if found is not None and found != identity(config.text, start.tokenizer):
        raise DataError(
            f"the texts of {', '.join(source.path for source in config.text)} are not those that the run began with: "
            "put them back, or begin anew without --resume"
        )


def _finish(run: _Run, model: MaskedLanguageModel | None) -> None:
    """Draw the curves, and if the run is done put its model in its place."""
    if run.main:
        try:
            write_curves(run.output, "evaluations.jsonl")
        except MissingExtraError as error:
            run.say(str(error))
        if model is not None:
            model.save(run.output, run.start.tokenizer, run.facts)
            shutil.rmtree(run.output / TOKENS, ignore_errors=True)
    run.accelerator.wait_for_everyone()


class _Saved(nn.Module):
    """The model as a checkpoint has it: with its tokenizer, and under the names of ``model``'s own parameters."""

    def __init__(self, model: MaskedLanguageModel, start: Start) -> None:
        super().__init__()
        self.model, self._start = model, start

    def save(self, folder: Path, facts: TrainingFacts) -> None:
        """Write the model's folder."""
        self.model.save(folder, self._start.tokenizer, facts)


class _Phase:
    """One phase, from the model and the optimiser that the one before left."""

    def __init__(self, run: _Run, index: int) -> None:
        config, accelerator = run.config, run.accelerator
        self.run, self.index = run, index
        self.phase: PhaseConfig = config.phase[index]
        self.done = int(run.position.data["step"]) if run.position.data.get("phase") == index else 0
        self.steps = PhaseSteps(config, index, run.store, run.start.tokenizer, accelerator.num_processes)
        model = run.start.model(self.phase).to(accelerator.device).train()
        model.model.stream_dtype = resolve_dtype(config.model.dtype, accelerator.device)
        model.model.checkpointing = config.model.gradient_checkpointing
        self.saved = _Saved(model, run.start)
        self.optimizer: Optimizer = make_optimizer(self.saved, config.optimizer)
        self.peak = 1.0 if self.phase.lr is None else self.phase.lr / config.optimizer.lr
        if (folder := self._earlier()) is not None:
            state.restore(folder, self.saved, _NO_LOSS, self.optimizer)
        if self.done:
            self.steps.packed.restore(run.position.data["packing"])
        else:
            torch.manual_seed(config.run.seed + accelerator.process_index)  # dropout differs between processes
        self.model = accelerator.prepare(model)
        self.pieces: list[list[Piece]] = []  # of all sequences of the step at hand
        self.saved_step = run.position.step  # the last whose state is on the disk
        self.log = Log(run.output, run.position.step) if run.main else None
        self.since, self.tokens = time.perf_counter(), 0

    def train(self, received: list[int]) -> bool:
        """Take the phase's steps; return whether a signal to any of the processes ended the run before its last.

        They agree on it in each step, so a checkpoint is written whenever the signal comes.
        """
        run, total, stop = self.run, self.phase.total_steps, False
        if not self.done:
            run.say(f"phase {self.phase.name}: {total} steps at {self.phase.length} tokens")
        while self.done < total and not stop:
            factor = self.peak * learning_rate_factor(self._schedule, self.done, total)
            set_learning_rate(self.optimizer, factor)
            loss, tokens, stop = self._gradients(received)
            norm = run.accelerator.clip_grad_norm_(
                self.model.parameters(), run.config.optimizer.max_grad_norm or math.inf
            )
            if not (math.isfinite(loss) and bool(norm.isfinite())):
                raise self._failure(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1
            run.position.step, run.position.tokens = run.position.step + 1, run.position.tokens + tokens
            packing, texts = self.steps.state(), run.store.identity
            run.position.data = {"phase": self.index, "step": self.done, "packing": packing, "texts": texts}
            self._count(loss, factor, tokens)
            every = run.config.run.save_every
            if self.done == total or stop or (every is not None and run.position.step % every == 0):
                self._save()
        return stop and run.position.step < run.config.steps

    def _gradients(self, received: list[int]) -> tuple[float, int, bool]:
        """Add the gradient of a step's loss; return the loss, all processes' tokens, and whether one is to stop."""
        accelerator, step = self.run.accelerator, self.done
        ranks, device = accelerator.num_processes, accelerator.device
        self.pieces = pieces = self.steps.draw(step)
        numbers = range(accelerator.process_index, len(pieces), ranks)
        own = [self.steps.masked(step, number, pieces[number]) for number in numbers]
        counts = [sum(len(part.labels) for part in own), sum(len(part.inputs) for part in own), int(bool(received))]
        guessed, tokens, stopped = accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
        # DistributedDataParallel averages over processes; the mean is over the tokens of all of them.
        loss_sum = float(accelerator.reduce(self._accumulated(own, ranks / max(1, guessed)), "sum"))
        return loss_sum / max(1, guessed), tokens, stopped > 0

    def _accumulated(self, own: list[MaskedSequence], weight: float) -> Tensor:
        """Add the gradient of this process's summed loss times ``weight``, and return the sum."""
        accelerator = self.run.accelerator
        while True:
            batches = micro_batches(own, self.run.budget.tokens, accelerator.device)
            total = torch.zeros((), device=accelerator.device)
            try:
                for place, batch in enumerate(batches):
                    with nullcontext() if place == len(batches) - 1 else accelerator.no_sync(self.model):
                        loss: Tensor = self.model(batch.inputs, batch.lengths, batch.chosen, batch.labels)
                        torch.autograd.backward(loss * weight)
                    total += loss.detach()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                largest = max(len(batch.inputs) for batch in batches)
                self.run.budget.shrink(largest, -(-largest // self.phase.length), "the phase's length")
                self.optimizer.zero_grad()
            else:
                self.run.budget.fitted(max(len(batch.inputs) for batch in batches))
                return total

    @property
    def _schedule(self) -> "_Schedule":
        return _Schedule(self.phase.schedule, self.phase.warmup, self.phase.decay)

    def _earlier(self) -> Path | None:
        """Return the checkpoint whose optimiser this phase goes on with: this run's last, or the one it starts from."""
        if self.run.position.step:
            return list(state.checkpoints(self.run.output / CHECKPOINTS).values())[-1]
        start = self.run.config.start
        return find(start.model) if start.optimizer and start.model is not None else None

    def _count(self, loss: float, factor: float, tokens: int) -> None:
        run = self.run
        self.tokens += tokens
        if run.progress is not None:
            run.progress.advance(1, tokens=tokens)
        if self.log is None or (run.position.step % run.config.run.log_every and self.done != self.phase.total_steps):
            return
        line = {
            "step": run.position.step,
            "tokens": run.position.tokens,
            "loss": loss,
            "lr": run.config.optimizer.lr * factor,
            "tokens_per_second": round(self.tokens / (time.perf_counter() - self.since), 1),
            "phase": self.phase.name,
        }
        self.log.add(line)
        self.since, self.tokens = time.perf_counter(), 0

    def _save(self) -> None:
        run, began = self.run, time.perf_counter()
        folder = run.output / CHECKPOINTS
        if run.main:
            state.write(folder, self.saved, _NO_LOSS, self.optimizer, run.position, run.config.to_dict(), run.facts)
            ends, at = [], 0
            for phase in run.config.phase:
                at += phase.total_steps
                ends.append(at)
            state.prune(folder, run.config.run.keep, ends)
        run.accelerator.wait_for_everyone()
        self.saved_step = run.position.step
        run.start = Start(run.start.tokenizer, self.saved.model.config, self.saved.model.state_dict())
        self.since += time.perf_counter() - began

    def _failure(self, loss: float) -> DataError:
        """Write down the texts on which the loss was not finite, and the weights before it if they are finite.

        Returns the error that says so, and how to begin anew. Every process calls it.
        """
        run = self.run
        path, texts = run.output / FAILED, sorted({piece.text for pieces in self.pieces for piece in pieces})
        if run.main:
            path.write_text(json.dumps(self._shown(texts), indent=1, ensure_ascii=False) + "\n", "utf-8")
        finite = all(bool(part.isfinite().all()) for part in self.saved.parameters())
        if run.position.step != self.saved_step and finite:
            self._save()
        good = state.last_good(run.output / CHECKPOINTS)
        kept = "no checkpoint has finite weights: mend the texts or start.model, or lower the lr, and begin anew"
        if good is not None:
            kept = (
                f"{good} is the last good checkpoint; to begin anew from it, set start.model to it, leave [tokenizer] "
                "and the sizes under [model] out, lower the lr or mend the texts, and name another --output"
            )
        return DataError(
            f"the loss or its gradient is not finite in step {run.position.step + 1} (loss {loss}) of phase "
            f"{self.phase.name}, on {len(texts)} texts that {path} names; {kept}"
        )

    def _shown(self, texts: Collection[int]) -> list[dict[str, Any]]:
        """Return where texts stand and how they begin: they are read again, since only their tokens are kept."""
        rows = []
        for source in self.run.config.text:
            own = self.run.store.sources[source.title]
            wanted = set(texts) & set(own)
            if not wanted:
                continue
            last = max(wanted)
            for number, (place, text) in zip(range(own.start, last + 1), placed_texts(source, Skipped()), strict=False):
                if number in wanted:
                    rows.append({"source": source.title, "place": place, "text": text[:_SHOWN]})
        return rows


@dataclass(frozen=True, slots=True)
class _Schedule:
    name: str
    warmup: float
    decay: float
