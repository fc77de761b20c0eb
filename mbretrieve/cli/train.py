"""``mbretrieve train``: a recipe in, a model out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.progress import progress_bars
from mbretrieve.cli.runs import ended, show_recipe, speaks
from mbretrieve.cli.tables import console

if TYPE_CHECKING:
    from mbretrieve.training.config import TrainConfig

TABLE_COLUMNS = 160  # of a preview that goes into a file


@click.command("train")
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.toml")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="A new folder, which will be the trained model."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in DIR.")
@click.option("--dry-run", is_flag=True, help="Show steps, tokens, memory and the first batch; train nothing.")
def command(recipe: Path, settings: tuple[str, ...], output: Path | None, resume: bool, dry_run: bool) -> int | None:
    """Train a model as a recipe says; settings such as optimizer.lr=1e-4 count over the recipe's.

    When the run is done DIR is the model: of the best evaluation, else of the last step. DIR/log.jsonl has a line a
    logged step, {"step", "tokens", "loss", "lr", "tokens_per_second"}; DIR/curves.png draws it; DIR/checkpoints keeps
    the last states and the best one, each of them a model too. Ctrl-C and SIGTERM write a checkpoint and stop.
    Several processes: torchrun --nproc-per-node N -m mbretrieve train RECIPE.toml --output DIR, without GPUs too;
    accelerate launch --multi_gpu does it too, but starts one process only where there are no GPUs.

    \b
        mbretrieve train examples/recipes/colbert.toml --output my-model --dry-run
        mbretrieve train examples/recipes/colbert.toml --output my-model run.batch_size=128
    """
    from mbretrieve.training.config import TrainConfig

    config = TrainConfig.load(recipe, settings)
    if output is None and not dry_run:
        raise click.UsageError("--output is missing: name the folder of the model")
    if speaks():
        show_recipe(config.to_toml())
    if dry_run:
        _preview(config)
        return None
    assert output is not None
    return _train(config, output, resume)


def _preview(config: "TrainConfig") -> None:
    import torch

    from mbretrieve.models.device import default_device
    from mbretrieve.training.data import Batches
    from mbretrieve.training.preview import preview, render
    from mbretrieve.training.setup import make_student, unread

    torch.manual_seed(config.run.seed)
    student = make_student(config, default_device())
    if words := unread(student):
        say(words)
    batches = Batches(config.data, config.run.batch_size, config.run.seed, config.run.length_bucket)
    console(TABLE_COLUMNS).print(render(preview(config, student.encoder(dtype=torch.float32), batches)))


def _train(config: "TrainConfig", output: Path, resume: bool) -> int:
    from mbretrieve.training.loop import train
    from mbretrieve.training.validation import evaluator

    outcome = train(
        config,
        output,
        resume=resume,
        evaluate=evaluator(config.evaluation),
        say=say if speaks() else lambda _: None,
        progress=progress_bars(),
    )
    return ended(outcome, output, "model")
