"""``mbretrieve index``: make indexes, and bring them up to date."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mbretrieve.cli.indexing import Build, summary, update
from mbretrieve.cli.options import (
    ModelChoice,
    exclude_option,
    include_option,
    index_option,
    memory_option,
    model_options,
)
from mbretrieve.cli.printable import printable
from mbretrieve.cli.sizes import memory_of
from mbretrieve.cli.target import existing

if TYPE_CHECKING:
    from mbretrieve.types import Kind


@click.command("index")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@index_option
@model_options
@include_option
@exclude_option
@click.option("--hidden/--no-hidden", default=None, help="Take files and folders whose names begin with a dot.")
@click.option("--secrets/--no-secrets", default=None, help="Take key files and .env.")
@click.option(
    "--max-bytes", type=click.IntRange(min=1), metavar="N", help="Leave out larger files. Default: by format."
)
@click.option("--unit", type=click.Choice(["document", "section"]), help="Cut text by file or by section (default).")
@click.option(
    "--bits",
    type=click.Choice(["1", "2", "4", "8"]),
    help="Keep so many of each dimension of a token's vector, once there are many. Default: 2. Fixed once indexed.",
)
@memory_option
@click.option("--show-skipped", is_flag=True, help="Say what was left out: some names for each reason.")
def command(
    paths: tuple[Path, ...],
    index: Path | None,
    model: str | None,
    kind: "Kind | None",
    device: str | None,
    dtype: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    hidden: bool | None,
    secrets: bool | None,
    max_bytes: int | None,
    unit: Literal["document", "section"] | None,
    bits: Literal["1", "2", "4", "8"] | None,
    memory: str | None,
    show_skipped: bool,
) -> None:
    """Index folders or files, or bring their indexes up to date.

    Each PATH gets an index of its own in your cache folder; with --index, all go into that one. Run it again after
    changes: only what is new or changed is encoded, what is gone is dropped. What --include, --exclude, --hidden,
    --secrets, --max-bytes and --unit say is remembered until it is said anew. Naming another --model or --kind
    indexes everything again. Files ignored by .gitignore or .mbretrieveignore are left out. GLOBs are in
    .gitignore's syntax.

    An interrupted run keeps what it committed; the next one goes on from there.
    """
    from mbretrieve.folder import default_index

    build = Build(bits=int(bits) if bits else None, memory=memory_of(memory))
    for path in paths:
        existing(path)
    chosen = {
        "include": include or None,
        "exclude": exclude or None,
        "hidden": hidden,
        "secrets": secrets,
        "max_bytes": max_bytes,
        "unit": unit,
    }
    walking: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    choice = ModelChoice(model, kind, device, dtype)
    for roots in [paths] if index else [(path,) for path in paths]:
        place = index or default_index(roots[0])
        report = update(place, roots, walking, choice, build)
        click.echo(printable(f"indexed {', '.join(map(str, roots))} in {place}"))
        for line in summary(report):
            click.echo(f"  {line}")
        if show_skipped:
            for line in report.skipped.lines():
                click.echo(f"    {printable(line)}")
