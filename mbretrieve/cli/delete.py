"""``mbretrieve delete``: documents out of an index, or the whole index."""

from pathlib import Path

import click

from mbretrieve.cli.indexing import remove_all
from mbretrieve.cli.options import index_option, yes_option
from mbretrieve.cli.printable import printable
from mbretrieve.cli.target import require
from mbretrieve.errors import DataError, IndexFormatError


@click.command("delete")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@index_option
@click.option("--path", type=click.Path(path_type=Path), help="The file or folder whose index is meant. Default: here.")
@click.option("--all", "everything", is_flag=True, help="Delete the whole index; the indexed files stay.")
@yes_option
def command(ids: tuple[str, ...], index: Path | None, path: Path | None, everything: bool, yes: bool) -> None:
    """Delete documents, or with --all a whole index.

    IDs are those that `search --json` gives. A unit of a file comes back when the file changes: what is to stay out
    belongs in .mbretrieveignore.
    """
    if bool(ids) == everything:
        raise click.UsageError("name the documents to delete, or give --all")
    target = require(path, index)
    if everything:
        if target.within is not None and not target.named:
            raise DataError(
                f"{path or Path()} has no index of its own, only a part of {target.index}: name that with --index"
            )
        _delete_index(target.index, yes)
    else:
        _delete_documents(target.index, set(ids))


def _delete_index(index: Path, yes: bool) -> None:
    from mbretrieve.index.catalogue import FILE
    from mbretrieve.index.lock import writer_lock

    if not (index / FILE).exists():
        raise IndexFormatError(f"{index} is not an index: it has no {FILE}; delete it yourself if it is in the way")
    if not yes and not _confirmed(index):
        return
    with writer_lock(index):
        remove_all(index)
    click.echo(printable(f"deleted {index}"))


def _confirmed(index: Path) -> bool:
    try:
        return click.confirm(printable(f"Delete the index {index}?"), err=True)
    except click.Abort:  # Ctrl-C, or nobody there to answer
        click.echo(err=True)
        raise DataError(f"{index} is not deleted: answer with y, or add --yes") from None


def _delete_documents(index: Path, ids: set[str]) -> None:
    from mbretrieve.index import open_index

    with open_index(index) as opened, opened.writer() as writer:
        count = writer.delete(ids)
    click.echo(f"deleted {count:,} document{'' if count == 1 else 's'}")
    if missing := len(ids) - count:
        raise DataError(f"{missing:,} of {len(ids):,} ids are not in {index}; `mbretrieve search --json` shows ids")
