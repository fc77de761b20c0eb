"""``mbretrieve search``: the best matches, printed."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mbretrieve.cli.indexing import say, summary, update
from mbretrieve.cli.marks import best_lines
from mbretrieve.cli.options import (
    ModelChoice,
    exclude_option,
    include_option,
    index_option,
    json_option,
    model_options,
)
from mbretrieve.cli.refresh import refresh
from mbretrieve.cli.render import print_hits, print_json, print_paths
from mbretrieve.cli.scope import ids_of_files, path_of
from mbretrieve.cli.target import Target, find, no_index
from mbretrieve.cli.where import parse_where
from mbretrieve.errors import DataError, ModelError

if TYPE_CHECKING:
    from mbretrieve.retriever import Retriever
    from mbretrieve.types import Kind

Mode = Literal["hybrid", "semantic", "lexical"]
Fusion = Literal["weighted", "rrf"]

UNITS_A_FILE = 20  # for -l: the best units often stand in few files


@click.command("search")
@click.argument("query")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@index_option
@click.option("-k", type=click.IntRange(min=1), metavar="N", default=10, show_default=True, help="How many units.")
@click.option("-n", "context", type=click.IntRange(min=0), metavar="N", help="Show N lines around each best line.")
@click.option("-l", "paths_only", is_flag=True, help="Print only the paths, each once: the best -k files.")
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "semantic", "lexical"]),
    default="hybrid",
    show_default=True,
    help="Rank by meaning and by words, by meaning alone, or by words alone.",
)
@click.option(
    "--fusion",
    type=click.Choice(["weighted", "rrf"]),
    default="weighted",
    show_default=True,
    help="Join the two by a weighted sum of scores, or by reciprocal ranks.",
)
@click.option(
    "--effort",
    metavar="PROBES,TOKENS,RESCORE",
    help="How far to look by meaning in a large index. Default: by a table (mbretrieve/index/plan.py).",
)
@click.option("--exact", is_flag=True, help="Score every unit by meaning instead.")
@click.option("--where", multiple=True, metavar="COND", help="key=value, key=a,b, key>=v, key<v (repeatable: and).")
@include_option
@exclude_option
@click.option("-e", "regex", metavar="REGEX", help="Rank only units in which this Python regular expression is found.")
@model_options
@click.option("--no-refresh", is_flag=True, help="Answer from the index as it is.")
@click.option("-y", "--yes", is_flag=True, help="Make the index if there is none, or again for another model.")
@json_option
def command(
    query: str,
    path: Path | None,
    index: Path | None,
    k: int,
    context: int | None,
    paths_only: bool,
    mode: Mode,
    fusion: Fusion,
    effort: str | None,
    exact: bool,
    where: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    regex: str | None,
    model: str | None,
    kind: "Kind | None",
    device: str | None,
    dtype: str | None,
    no_refresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    r"""Print the units that match QUERY best.

    The index is that of PATH (the current folder) or of the nearest folder above it, and the answer is limited to
    PATH. If at most 32 files, of at most 512 kB together, have changed since it was last brought up to date, they are
    indexed first.

    A large index is not looked through: --effort says how many lists of it are visited for each token of the query, how
    many tokens are fetched and how many units scored. More find more, and take longer; `mbretrieve bench index` shows
    how much on your index.

    A unit of more than 20 lines is shown around its best lines, which are marked with ">".

    --where filters by metadata: path, language, unit (function, method, class, block, section, document), name,
    start_line, end_line, or what JSON lines brought. Numbers, true and false are read as such; "..." keeps text as it
    is.

    --json prints a list, best first, of {"id", "score", "path", "start_line", "end_line", "text", "metadata"}: path can
    be opened from the current folder (absolute if it is outside); path and lines, counted from 1 and inclusive, are
    null for what is not from a file.
    """
    if not query.strip():
        raise DataError("the query is empty: say in a few words what you look for")
    # Before numpy is imported: one question's matrices are small, and OpenBLAS's threads, which spin while they wait
    # for each other, lose a core's whole time slice whenever another program has the core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from mbretrieve.scoring import sparing_torch

    looking = _looking(effort, exact)
    conditions, pattern = parse_where(where) or None, _compile(regex)
    choice = ModelChoice(model, kind, device, dtype)
    target = _target(path, index, choice, yes)
    with sparing_torch(), _open(target, choice, yes) as retriever:
        if not no_refresh:
            refresh(retriever, target)
        ids = ids_of_files(retriever.index, target.within, include, exclude)
        if pattern is not None:
            matching = retriever.matching(pattern, conditions)
            ids = matching if ids is None else ids & matching
        _say_if_cut(retriever, query, mode)
        wanted = k * UNITS_A_FILE if paths_only and not as_json else k
        some = ids is None or ids
        how: dict[str, Any] = {"mode": mode, "fusion": fusion, **looking}
        hits = retriever.search([query], wanted, where=conditions, ids=ids, **how)[0] if some else []
        naming = path_of(retriever.index)
        if as_json:
            print_json(hits, naming)
        elif paths_only:
            print_paths(hits, naming, k)
        elif hits:
            print_hits(hits, best_lines(retriever, query, hits, pattern, mode == "lexical"), context, naming)
        if not hits:
            say("nothing found")


def _looking(effort: str | None, exact: bool) -> dict[str, Any]:
    """Return how far to look, as ``Retriever.search`` takes it. Raises: DataError."""
    if effort is None:
        return {"exact": exact}
    from mbretrieve.index import Effort

    if exact:
        raise DataError(f"--effort {effort} and --exact came, expected one of them")
    try:
        probes, tokens, rescore = map(int, effort.split(","))
        return {"effort": Effort(probes, tokens, rescore)}
    except ValueError:
        raise DataError(
            f"--effort {effort}: expected three numbers of at least 1, lists, tokens and units, as in 64,4096,600"
        ) from None


def _compile(regex: str | None) -> re.Pattern[str] | None:
    try:
        return None if regex is None else re.compile(regex, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(
            f"-e {regex}: not a regular expression ({error}); a backslash before a character means the character itself"
        ) from None


def _target(path: Path | None, index: Path | None, choice: ModelChoice, yes: bool) -> Target:
    """Find the index, or with ``yes`` make the one that is missing."""
    from mbretrieve.folder import default_index

    found = find(path, index)
    if found is not None and not found.named and not _has_begun(found.index):
        found = None
    if found is None and not yes:
        raise DataError(f"{no_index(path, index)}, or add --yes")
    if found is None:
        place = path or Path()
        found = Target(index or default_index(place), index is not None, None)
        _make(found.index, [place], choice)
    return found


def _has_begun(index: Path) -> bool:
    """Tell whether the run that made this index of a folder lived to commit anything."""
    from mbretrieve.folder import roots_of
    from mbretrieve.index import open_index

    with open_index(index) as opened:
        return bool(roots_of(opened))


def _make(index: Path, roots: Sequence[Path], choice: ModelChoice) -> None:
    for line in summary(update(index, roots, {}, choice)):
        say(line)


def _open(target: Target, choice: ModelChoice, yes: bool) -> "Retriever":
    """Open the index with the model it was made with; where another is asked for, ``yes`` makes it again with that."""
    from mbretrieve.retriever import Retriever

    retriever = Retriever.open(target.index, **choice.loading)
    if choice.name is None and choice.kind is None:  # by words, what was made of one's own vectors answers, too
        return retriever
    held = retriever.identity
    if choice.kind in (None, held.kind) and choice.name in (None, held.name):
        return retriever
    retriever.close()
    if choice.kind in (None, held.kind):
        model = choice.load(held)
        with suppress(ModelError):  # the same model may go by another name
            return Retriever.open(target.index, model)
    if not yes:
        raise ModelError(
            f"{target.index} holds vectors of {held.name} ({held.kind}): search without --model and --kind, "
            "or add --yes to index again with what they name"
        )
    _make(target.index, (), choice)
    return Retriever.open(target.index, **choice.loading)


def _say_if_cut(retriever: "Retriever", query: str, mode: Mode) -> None:
    from mbretrieve.index.words import MAX_TERMS, tokenize

    if mode == "lexical":
        if len(query) > MAX_TERMS and (words := len(set(tokenize(query)))) > MAX_TERMS:
            say(f"the query has {words:,} different words: the first {MAX_TERMS} are searched")
        return
    length = retriever.identity.query_length
    # A token has at least one character.
    if len(query) > length and (tokens := len(retriever.asking.token_offsets([query])[0])) > length:
        say(f"the query has {tokens:,} tokens: the model reads the first {length}, its own markers among them")
