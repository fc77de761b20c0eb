"""What a run writes down: its log, evaluations, checkpoints and curves, and at the end the model in its place."""

import json
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mbretrieve.errors import DataError, MissingExtraError
from mbretrieve.models.card import DataSource, Metric, TrainingFacts
from mbretrieve.models.checkpoint import load, save
from mbretrieve.models.source import BUNDLED
from mbretrieve.training import state
from mbretrieve.training.curves import Log, write_curves
from mbretrieve.training.data import Example
from mbretrieve.training.running import CHECKPOINTS, RECIPE, Outcome
from mbretrieve.training.setup import Run
from mbretrieve.training.steps import Step
from mbretrieve.types import Progress

EVALUATIONS, FAILED = "evaluations.jsonl", "failed-batch.json"
Evaluate = Callable[[Any], Mapping[str, float]]
"""Takes the model, a ``ColBERT`` or a ``DenseEncoder``, and returns figures; the first is the one to be best in."""


class Books:
    """The books of a run. Every process calls them, and one writes."""

    def __init__(
        self, run: Run, evaluate: Evaluate | None, say: Callable[[str], None], progress: Progress | None
    ) -> None:
        self._run, self._evaluate, self._say = run, evaluate, say
        self._main = bool(run.accelerator.is_main_process)
        self._progress = progress if self._main else None
        self._folder, self._metrics = run.output / CHECKPOINTS, dict[str, float]()
        self._tokens = 0
        self._measured, self._saved = -1, run.position.step
        if self._main:
            run.output.mkdir(parents=True, exist_ok=True)
            (run.output / RECIPE).write_text(run.config.to_toml(), "utf-8")
            self._log = Log(run.output, run.position.step)
            self._evaluations = Log(run.output, run.position.step, EVALUATIONS)
        if self._progress is not None:
            self._progress.start("training", run.steps)
            self._progress.advance(run.position.step)
        self._since = time.perf_counter()

    def log(self, loss: float, factor: float, tokens: int) -> None:
        """Count a step, and write its line if it is one of those that are logged."""
        position = self._run.position
        self._tokens += tokens
        if self._progress is not None:
            self._progress.advance(1, tokens=tokens)
        if position.step % self._run.config.run.log_every and position.step != self._run.steps:
            return
        seconds = time.perf_counter() - self._since
        line = {
            "step": position.step,
            "tokens": position.tokens,
            "loss": loss,
            "lr": self._run.config.optimizer.lr * factor,
            "tokens_per_second": round(self._tokens / seconds, 1),
        }
        if self._main:
            self._log.add(line)
        if self._run.config.run.trackers:
            self._run.accelerator.log({name: value for name, value in line.items() if name != "step"}, position.step)
        self._since, self._tokens = time.perf_counter(), 0

    def keep(self, last: bool) -> None:
        """Evaluate and save where the recipe says so, and at the end."""
        run, position = self._run.config.run, self._run.position
        began = time.perf_counter()
        finished = position.step == self._run.steps
        evaluates = finished or (run.evaluate_every is not None and position.step % run.evaluate_every == 0)
        evaluates = evaluates and self._evaluate is not None
        if evaluates:
            self._measure()
        # What was evaluated is saved: it may be the best.
        if last or evaluates or (run.save_every is not None and position.step % run.save_every == 0):
            self._save()
        self._since += time.perf_counter() - began

    def failure(self, step: Step, loss: float) -> DataError:
        """Write down the batch on which the loss was not finite, and the weights before it if they are finite.

        Returns the error that says so, and how to begin anew. Every process calls it.
        """
        run, position = self._run, self._run.position
        path = run.output / FAILED
        if self._main:
            rows = [_shown(example) for example in step.examples]
            path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if position.step not in (0, self._saved) and all(bool(part.isfinite().all()) for part in run.parameters):
            self._save()
        good = state.last_good(self._folder)
        vectors = [example.vectors for example in step.examples if example.vectors is not None]
        taught = (
            "" if all(np.isfinite(each).all() for each in vectors) else ", whose teacher's vectors are not all finite"
        )
        if good is None:
            kept = (
                "no checkpoint has finite weights: mend the data or model.start, or lower optimizer.lr, and begin anew"
            )
        else:
            again = ["mbretrieve", "train", run.output / RECIPE, "--output", f"{run.output}-again"]
            settings = [f"model.start={good}", f"optimizer.lr={run.config.optimizer.lr / 2}"]
            kept = (
                f"{good} is the last good checkpoint; begin anew from it: {shlex.join(map(str, [*again, *settings]))}"
            )
        return DataError(
            f"the loss or its gradient is not finite in step {position.step + 1} (loss {loss}), on a batch "
            f"of {step.examples[0].source} that {path} holds{taught}; {kept}"
        )

    def close(self) -> None:
        """Take the progress bar away."""
        if self._progress is not None:
            self._progress.finish()

    def finish(self, stopped: int | None) -> Outcome:
        """Draw the curves, and if the run is done put the model in its place."""
        run, position = self._run, self._run.position
        if self._main:
            try:
                write_curves(run.output, EVALUATIONS)
            except MissingExtraError as error:
                self._say(str(error))
            if stopped is None:
                chosen = position.best_step or position.step
                save(load(state.checkpoints(self._folder)[chosen]), run.output)
                if position.best_step is not None:
                    self._say(f"the model is that of step {chosen}, the best by evaluation ({position.best:.4f})")
        run.accelerator.wait_for_everyone()
        if run.config.run.trackers:
            run.accelerator.end_training()
        return Outcome(position.step, run.steps, position.tokens, stopped, self._metrics)

    def _measure(self) -> None:
        """Evaluate the model as it is now, and remember the step if it is the best so far."""
        position = self._run.position
        if self._main and self._evaluate is not None:
            self._run.student.eval()
            self._metrics = dict(self._evaluate(self._run.student.encoder(self._run.config.evaluation.kind)))
            self._run.student.train()
            self._measured = position.step
            self._evaluations.add({"step": position.step, **self._metrics})
            name, value = next(iter(self._metrics.items()))
            self._say(f"step {position.step}: {name} {value:.4f}")
            if position.best is None or value > position.best:
                position.best, position.best_step = value, position.step
        self._run.accelerator.wait_for_everyone()

    def _facts(self) -> TrainingFacts:
        """What the card of the model says of its making; figures only if it was evaluated as it is now."""
        config = self._run.config
        sources = {source.title: source for source in config.data}
        figures = self._metrics if self._measured == self._run.position.step else {}
        return TrainingFacts(
            name=config.card.name,
            base_model=BUNDLED if config.model.start == "bundled" else config.model.start,
            licence=config.card.licence,
            recipe=config.to_toml(),
            data=tuple(
                DataSource(each.title, each.rows, sources[each.title].licence, sources[each.title].hub)
                for each in self._run.batches.shares
            ),
            metrics=tuple(
                Metric(name.partition(" ")[2] or "mean of the evaluated sets", name.partition(" ")[0], value)
                for name, value in figures.items()
            ),
            seeds=(config.run.seed,),
            joint=config.model.kind == "joint",
        )

    def _save(self) -> None:
        run, position = self._run, self._run.position
        if self._main:
            config, facts = run.config.to_dict(), self._facts()
            state.write(self._folder, run.student, run.objective, run.optimizer, position, config, facts)
            best = set() if position.best_step is None else {position.best_step}
            state.prune(self._folder, run.config.run.keep, best)
        self._saved = position.step
        run.accelerator.wait_for_everyone()


def _shown(example: Example) -> dict[str, Any]:
    """Return an example as JSON can say it. Of a teacher's vectors only whether they are at fault: they are long."""
    row = {name: getattr(example, name) for name in example.__slots__ if name != "vectors"}
    if example.vectors is not None:
        row["teacher_vectors"] = "finite" if np.isfinite(example.vectors).all() else "not finite"
    return row
