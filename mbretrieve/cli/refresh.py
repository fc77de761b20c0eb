"""Before it answers, ``search`` brings a stale index up to date where that is soon done."""

from typing import TYPE_CHECKING

from mbretrieve.cli.indexing import say, sync_with_bars
from mbretrieve.cli.target import Target, command_that_indexes
from mbretrieve.errors import DataError, IndexBusyError

if TYPE_CHECKING:
    from mbretrieve.folder import Changes
    from mbretrieve.retriever import Retriever

FEW_FILES = 32
FEW_BYTES = 512_000
"""What the bundled model encodes in seconds; a person who asks a question should not wait longer for the answer."""


def refresh(retriever: "Retriever", target: Target) -> None:
    """Bring the index up to date if little has changed; say on standard error what was done, or why not."""
    from mbretrieve.folder import changes, roots_of

    try:
        found = changes(retriever.index)
    except DataError as error:  # a root that is gone: its last state still answers
        say(str(error))
        return
    if not found.count:
        return
    if found.count > FEW_FILES or sum(file.size for file in (*found.new, *found.changed)) > FEW_BYTES:
        command = command_that_indexes([*roots_of(retriever.index).values()], target.index if target.named else None)
        say(f"the index is out of date ({_counts(found)}); bring it up to date with `{command}`")
        return
    try:
        report = sync_with_bars(retriever, found=found)
    except IndexBusyError as error:
        say(f"{_counts(found)}, but the index stays as it is: {error}")
        return
    say(f"brought the index up to date: {_counts(found)}; {report.documents.encoded} units encoded")


def _counts(found: "Changes") -> str:
    parts = {"new": len(found.new), "changed": len(found.changed), "gone": len(found.gone)}
    return ", ".join(f"{count} {what}" for what, count in parts.items() if count) + (
        " file" if found.count == 1 else " files"
    )
