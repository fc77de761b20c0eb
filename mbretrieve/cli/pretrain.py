"""``mbretrieve pretrain``: a recipe and texts in, a backbone out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.printable import printable
from mbretrieve.cli.progress import progress_bars
from mbretrieve.cli.runs import ended, show_recipe, speaks
from mbretrieve.cli.sizes import human_size

if TYPE_CHECKING:
    from mbretrieve.training.pretrain_config import PretrainConfig


@click.command("pretrain")
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.toml")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="A new folder, which will be the backbone."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in DIR.")
@click.option("--dry-run", is_flag=True, help="Show steps, tokens, memory and the first sequence; train nothing.")
def command(recipe: Path, settings: tuple[str, ...], output: Path | None, resume: bool, dry_run: bool) -> int | None:
    """Pre-train a ModernBERT by masked-language modelling, phase by phase, as a recipe says.

    Settings such as phase.0.steps=100 count over the recipe's. A recipe may train a tokenizer first, or grow a smaller
    model; what comes out, `transformers` loads as a masked-language model and `mbretrieve train` starts from.
    DIR/checkpoints keeps the last states and the end of each phase, each of them a model too: one of these, with
    start.optimizer=true, is where an annealing on texts of your own begins. DIR/log.jsonl has a line a logged step;
    DIR/curves.png draws it. Ctrl-C and SIGTERM write a checkpoint and stop.
    Several processes: torchrun --nproc-per-node N -m mbretrieve pretrain RECIPE.toml --output DIR, without GPUs too;
    accelerate launch --multi_gpu does it too, but starts one process only where there are no GPUs.

    \b
        mbretrieve pretrain examples/recipes/pretrain-mini.toml --output backbone text.0.path=texts.jsonl.gz --dry-run
        mbretrieve pretrain examples/recipes/domain-annealing.toml --output mine text.0.path=notes/
    """
    from mbretrieve.training.pretrain_config import PretrainConfig

    config = PretrainConfig.load(recipe, settings)
    if output is None and not dry_run:
        raise click.UsageError("--output is missing: name the folder of the backbone")
    if speaks():
        show_recipe(config.to_toml())
    if dry_run:
        _show(config)
        return None
    assert output is not None
    return _pretrain(config, output, resume)


def _show(config: "PretrainConfig") -> None:
    from mbretrieve.training.pretrain_preview import preview

    found = preview(config)
    click.echo(
        f"\n{found.parameters:,} parameters, {found.vocabulary:,} words; about {human_size(found.memory)} of memory"
    )
    for phase in found.phases:
        click.echo(
            f"phase {printable(phase.name)}: {phase.steps:,} steps, {phase.tokens:,} tokens in sequences of "
            f"{phase.length:,}, global RoPE base {phase.global_rope_theta:,.0f}"
        )
    click.echo("The first sequence begins, as the model sees it and as it is:")
    for text in found.first:
        click.echo(f"  {printable(text)}")


def _pretrain(config: "PretrainConfig", output: Path, resume: bool) -> int:
    from mbretrieve.training.pretrain import pretrain

    outcome = pretrain(
        config,
        output,
        resume=resume,
        say=say if speaks() else lambda _: None,
        progress=progress_bars() if speaks() else None,
    )
    return ended(outcome, output, "backbone")
