"""Making an index, and bringing one up to date: what ``index`` does, and ``search`` where it may."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mbretrieve.cli.options import ModelChoice
from mbretrieve.cli.printable import printable
from mbretrieve.cli.progress import progress_bars
from mbretrieve.errors import DataError, IndexBusyError, IndexFormatError, ModelError

if TYPE_CHECKING:
    from mbretrieve.corpus.records import Skipped, WalkOptions
    from mbretrieve.folder import Changes, SyncReport
    from mbretrieve.retriever import Retriever
    from mbretrieve.types import Encoder


@dataclass(frozen=True, slots=True)
class Build:
    """How an index is built: bits of a dimension of a packed vector, bytes to work in; None: as the index has them, and
    as writers are used to."""

    bits: int | None = None
    memory: int | None = None


NEW, OLD = "new", "old"  # what an index is called beside its place while another model takes over


def say(message: str) -> None:
    """Tell the user something that is not the answer: one line on standard error."""
    click.echo(f"mbretrieve: {printable(message)}", err=True)


def update(
    index: Path, roots: Sequence[Path], walking: dict[str, Any], choice: ModelChoice, build: Build = Build()
) -> "SyncReport":
    """Make the index of ``roots`` if there is none, else bring it up to date; with another model, make it again.

    walking: the fields of ``WalkOptions`` that were chosen; the others stay as the index has them. No model is loaded
    where nothing is to be encoded. Raises: DataError if there is nothing to index, or the index has other bits;
    ModelError, IndexFormatError, IndexBusyError as their names say.
    """
    from dataclasses import replace

    from mbretrieve.corpus.records import WalkOptions
    from mbretrieve.folder import changes, options_of, roots_of
    from mbretrieve.index.catalogue import FILE
    from mbretrieve.index.lock import writer_lock
    from mbretrieve.retriever import Retriever

    _finish_swap(index)
    if not (index / FILE).exists():
        return _make(index, roots, WalkOptions(**walking), choice, build)
    with Retriever.open(index, **choice.loading) as retriever:
        options = replace(options_of(retriever.index), **walking)
        covered = roots_of(retriever.index)
        found: Changes | None = None
        held, held_bits = retriever.identity, retriever.status()["bits"]
        if not (choice.name or choice.kind):
            _check_bits(index, held_bits, build)
        if {root.resolve() for root in roots} <= set(covered.values()):
            found = changes(retriever.index, covered, options)
            if not (choice.name or choice.kind) and not found.count:
                return sync_with_bars(retriever, roots, options, found)
        model = choice.load(held)
    try:
        retriever = Retriever.open(index, model)
    except ModelError:
        _refuse_others(index, model)
        said = (
            f"{index} holds vectors of {held.name} ({held.kind}): indexing again with {model.identity.name} "
            f"({model.identity.kind})"
        )
        if build.bits is None and model.identity.kind == held.kind:
            build = replace(build, bits=held_bits)
        return _make_again(index, [*covered.values(), *roots], options, model, said, build)
    with retriever:
        _check_bits(index, held_bits, build)
        report = sync_with_bars(retriever, roots, options, found, build.memory)
    with writer_lock(index):
        remove(_beside(index, NEW))  # what a run with another model left, if one was given up
    return report


def sync_with_bars(
    retriever: "Retriever",
    roots: Sequence[Path] = (),
    options: "WalkOptions | None" = None,
    found: "Changes | None" = None,
    memory: int | None = None,
) -> "SyncReport":
    """Do ``folder.sync``, with progress bars for a person to see."""
    from mbretrieve.folder import sync
    from mbretrieve.index.store import MEMORY

    bars = progress_bars()
    try:
        return sync(retriever, roots, options, found=found, progress=bars, memory=memory or MEMORY)
    finally:
        if bars is not None:
            bars.finish()


def _check_bits(index: Path, held: int | None, build: Build) -> None:
    if build.bits not in (None, held):
        has = "keeps vectors as they are" if held is None else f"has {held} bits a dimension"
        raise DataError(
            f"{index} {has}, not {build.bits} bits: leave --bits out, name a new place with --index, or delete it first"
        )


def _make(
    index: Path, roots: Sequence[Path], options: "WalkOptions", choice: ModelChoice, build: Build
) -> "SyncReport":
    from mbretrieve.corpus.records import Skipped
    from mbretrieve.corpus.walk import walk
    from mbretrieve.retriever import Retriever

    skipped = Skipped()
    if not any(True for root in roots for _ in walk(root.resolve(), options, skipped)):
        raise _nothing(roots, skipped)  # said before a model is loaded and a folder made
    model = choice.load()
    _make_parents(index)
    with Retriever.create(index, model, bits=build.bits) as retriever:
        report = sync_with_bars(retriever, roots, options, memory=build.memory)
        empty = not retriever.status()["documents"]
    if empty:
        remove(index)
        raise _nothing(roots, report.skipped)
    return report


def _nothing(roots: Sequence[Path], skipped: "Skipped") -> DataError:
    left_out = f" ({'; '.join(skipped.lines())})" if skipped.total else ""
    names = ", ".join(map(str, roots))
    return DataError(
        f"{names}: nothing to index{left_out}; name a folder that holds text or code, or see `mbretrieve index --help`"
    )


def _make_parents(index: Path) -> None:
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IndexBusyError(
            f"{index.parent} cannot be made ({error.strerror}): choose another place with --index or MBRETRIEVE_CACHE"
        ) from error


def _make_again(
    index: Path, roots: Sequence[Path], options: "WalkOptions", model: "Encoder", said: str, build: Build
) -> "SyncReport":
    """Build beside the old index and change places at the end: until then the old one answers, a kill loses nothing."""
    from mbretrieve.index.lock import writer_lock
    from mbretrieve.retriever import Retriever

    beside = _beside(index, NEW)
    with writer_lock(index):  # nobody may add to what is about to go
        say(said)
        with _resume(beside, model, build.bits) or Retriever.create(beside, model, bits=build.bits) as retriever:
            report = sync_with_bars(retriever, roots, options, memory=build.memory)
        try:
            index.rename(_beside(index, OLD))
            beside.rename(index)
        except OSError as error:
            raise IndexBusyError(
                f"{index} cannot be replaced ({error.strerror}): name a place with --index that can be renamed"
            ) from error
    remove(_beside(index, OLD))
    return report


def _refuse_others(index: Path, model: "Encoder") -> None:
    """Raise ModelError if the index holds documents that indexing its folders again would not bring back."""
    from mbretrieve.index import open_index

    with open_index(index) as opened:
        others = len(opened) - sum(len(opened.source_ids(name)) for name in opened.sources())
    if others:
        raise ModelError(
            f"{index} also holds {others:,} documents that are in no folder: only who added them can index them "
            f"again with {model.identity.name}; name another place with --index"
        )


def _resume(beside: Path, model: "Encoder", bits: int | None) -> "Retriever | None":
    """Open what an interrupted run with the same model and bits left, or clear the place."""
    from mbretrieve.retriever import Retriever

    if not beside.exists():
        return None
    try:
        retriever = Retriever.open(beside, model)
    except (ModelError, IndexFormatError):
        remove(beside)
        return None
    if bits in (None, retriever.status()["bits"]):
        return retriever
    retriever.close()
    remove(beside)
    return None


def _beside(index: Path, what: str) -> Path:
    return index.with_name(f".{index.name}.{what}")


def _finish_swap(index: Path) -> None:
    """Put the old index back where a kill hit between the two renames: the run that follows finds the new one ready."""
    old = _beside(index, OLD)
    if old.exists() and not index.exists():
        old.rename(index)
    remove(old)


def remove_all(index: Path) -> None:
    """Delete an index, and what an interrupted change of model left beside it."""
    for folder in (index, _beside(index, NEW), _beside(index, OLD)):
        remove(folder)


def remove(index: Path) -> None:
    """Delete an index if it is there: its own files, then the folder unless it holds others."""
    from mbretrieve.index.catalogue import FILES, FOLDERS

    if not index.exists():
        return
    try:
        for name in (*FILES, "lock"):
            (index / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (index / name).exists():
                shutil.rmtree(index / name)
        if not any(index.iterdir()):
            index.rmdir()
    except OSError as error:
        raise IndexBusyError(
            f"{index} cannot be deleted ({error.strerror}): delete it where it can be written"
        ) from error


def summary(report: "SyncReport") -> list[str]:
    """Say what an update did, in files and in units."""
    files = f"{report.new} new, {report.changed} changed, {report.gone} gone, {report.unchanged} unchanged"
    done = report.documents
    units = f"{done.encoded} encoded, {done.reused} reused, {report.removed} removed"
    lines = [f"{report.files:,} files: {files}", f"units: {units}; {done.tokens:,} tokens in {report.seconds:.1f} s"]
    if done.cut:
        lines.append(f"windows: {done.cut:,} units longer than the model reads at once became {done.windows:,} windows")
    if report.skipped.total:
        reasons = sorted(report.skipped.counts.items(), key=lambda item: -item[1])
        lines.append(f"left out: {', '.join(f'{count:,} {reason}' for reason, count in reasons)}")
    return lines
