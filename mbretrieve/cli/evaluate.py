"""``mbretrieve eval``: measure a system on a suite of tasks, and report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mbretrieve.cli import compare
from mbretrieve.cli.indexing import say
from mbretrieve.cli.options import model_options
from mbretrieve.cli.progress import progress_bars
from mbretrieve.cli.tables import console
from mbretrieve.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from mbretrieve.evaluation.report import Summary, TaskResult
    from mbretrieve.evaluation.runner import Outcome, System
    from mbretrieve.evaluation.suites import Suite
    from mbretrieve.types import Kind

Mode = Literal["semantic", "lexical", "hybrid"]
RerankKind = Literal["cross-encoder", "colbert", "dense"]
TABLE_COLUMNS, LIST_COLUMNS = 160, 260  # of tables that go into a file


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be measured, as named on the command line."""

    model: str | None
    kind: "Kind | None"
    device: str | None
    dtype: str | None
    mode: Mode | None
    exact: bool
    cut: bool
    query_length: int | None
    document_length: int | None
    bits: int | None
    rerank: str | None
    rerank_kind: RerankKind


@click.group("eval", invoke_without_command=True)
@click.option("--suite", metavar="NAME|FOLDER", help="A named suite (see --list), or a folder in BEIR layout.")
@click.option("--tasks", metavar="A,B", help="Only these tasks of the suite.")
@click.option("--split", metavar="NAME", help="Judge by another split, dev or train say. Default: the task's own.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to look for the suite's sets, as folders or archives in BEIR layout, before downloading.",
)
@model_options
@click.option(
    "--mode",
    type=click.Choice(["semantic", "lexical", "hybrid"]),
    help="Default: semantic, as published figures are. lexical is the index's search by words, of no model.",
)
@click.option("--exact", is_flag=True, help="Measure exact search beside the index: what the index loses.")
@click.option("--truncate", "cut", is_flag=True, help="Cut long documents, as published figures do: no windows.")
@click.option("--query-length", type=click.IntRange(min=1), metavar="N", help="Tokens of a query. Default: the task's.")
@click.option(
    "--document-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of a document or window. Default: the task's, or the model's if that is lower.",
)
@click.option(
    "--bits",
    type=click.Choice(["1", "2", "4", "8"]),
    help="Of each dimension of a token's vector, where the index is large enough to be packed. Default: 2.",
)
@click.option("--rerank", metavar="MODEL", help="Rank the first 100 of each query anew with this model.")
@click.option(
    "--rerank-kind",
    type=click.Choice(["cross-encoder", "colbert", "dense"]),
    default="cross-encoder",
    show_default=True,
    help="What the reranker is; the first is sentence-transformers'.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("eval-results"), show_default=True, metavar="DIR"
)
@click.option("--indexes", type=click.Path(path_type=Path), metavar="DIR", help="Keep indexes here, for later runs.")
@click.option("--list", "list_suites", is_flag=True, help="Print the table of suites and their tasks.")
@click.pass_context
def command(
    context: click.Context,
    suite: str | None,
    tasks: str | None,
    split: str | None,
    data_dir: Path | None,
    model: str | None,
    kind: "Kind | None",
    device: str | None,
    dtype: str | None,
    mode: Mode | None,
    exact: bool,
    cut: bool,
    query_length: int | None,
    document_length: int | None,
    bits: Literal["1", "2", "4", "8"] | None,
    rerank: str | None,
    rerank_kind: RerankKind,
    output: Path,
    indexes: Path | None,
    list_suites: bool,
) -> int | None:
    """Measure a model, or bm25 (--model bm25), on a suite of tasks.

    Each finished task is a file, OUTPUT/<model>/<suite>/<task>.json, with "metrics", "exact_metrics", "timing",
    "index" and "provenance", beside its ranking as a TREC run file, report.md and tasks.png; OUTPUT/<suite>-latency.png
    and -size.png put the models side by side. With --split, <suite> is <suite>-<split> in all of them. A finished task
    is not run again; an interrupted one goes on from what was encoded. A task that fails is named, the others run, and
    the exit status is 1.

    \b
        mbretrieve eval --suite nanobeir --model lightonai/GTE-ModernColBERT-v1 --exact
        mbretrieve eval --suite beir --tasks SciFact --data-dir ./data --model bm25
        mbretrieve eval compare results/bm25/beir/SciFact.json results/mini-v3-dense/beir/SciFact.json
    """
    if context.invoked_subcommand is not None:
        return None
    if list_suites:
        _print_suites()
        return None
    if suite is None:
        raise click.UsageError("--suite is missing: name one that `mbretrieve eval --list` prints, or a folder")
    from mbretrieve.evaluation import runner, suites
    from mbretrieve.folder import cache_folder

    wanted = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    chosen = suites.get(suite, wanted, split)
    choice = Choice(
        model=model,
        kind=kind,
        device=device,
        dtype=dtype,
        mode=mode,
        exact=exact,
        cut=cut,
        query_length=query_length,
        document_length=document_length,
        bits=int(bits) if bits else None,
        rerank=rerank,
        rerank_kind=rerank_kind,
    )
    system = _system(choice)
    options = runner.Options(
        output=output,
        cache=cache_folder() / "evaluation",
        data_dir=data_dir,
        indexes=indexes,
        exact=exact,
        progress=progress_bars(),
        say=_say_lines,
    )
    outcome = runner.run_suite(chosen, system, options)
    _report(suites.get(suite, split=split), system, outcome, output)
    return 1 if outcome.failures else 0


def _say_lines(text: str) -> None:
    for line in text.split("\n"):
        say(line)


def _system(choice: Choice) -> "System":
    """Return what the options name, models loaded. Raises: ModelError; MissingExtraError; DataError."""
    from mbretrieve.evaluation import searchers

    system: System
    if choice.model == "bm25" and choice.mode in ("semantic", "hybrid"):
        raise DataError(f"--model bm25 knows no --mode {choice.mode}: leave --mode out, or name an encoder")
    if choice.bits and (choice.model == "bm25" or choice.mode == "lexical" or choice.kind == "dense"):
        raise DataError(f"--bits {choice.bits} is of late interaction's vectors, and there are none: leave --bits out")
    if choice.mode == "lexical" and choice.model != "bm25":
        system = searchers.LexicalSystem()
    elif choice.model == "bm25":
        system = searchers.Bm25System()
    else:
        system = searchers.EncoderSystem(
            _loader(choice),
            choice.kind or "colbert",
            choice.model,
            mode=choice.mode or "semantic",
            exact=choice.exact,
            cut=choice.cut,
            query_length=choice.query_length,
            document_length=choice.document_length,
            bits=choice.bits,
        )
    if choice.rerank is None:
        return system
    return searchers.RerankingSystem(system, *_reranker(choice, choice.rerank))


def _loader(choice: Choice) -> Any:
    def load(kind: "Kind", name: str | None, **shape: Any) -> Any:
        from mbretrieve.models import load_encoder

        return load_encoder(kind, name, device=choice.device, dtype=choice.dtype, **shape)

    return load


def _reranker(choice: Choice, name: str) -> tuple[Any, dict[str, Any]]:
    if choice.rerank_kind == "cross-encoder":
        from mbretrieve.evaluation.rerankers import CrossEncoder
        from mbretrieve.models.workers import first_device

        reranker = CrossEncoder(name, first_device(choice.device))
        return reranker, reranker.identity
    from dataclasses import asdict

    encoder = _loader(choice)(choice.rerank_kind, name)
    return encoder, asdict(encoder.identity)


def _report(suite: "Suite", system: "System", outcome: "Outcome", output: Path) -> None:
    """Print the table, and write it and its pictures beside the results. A picture that cannot be made is said."""
    from mbretrieve.evaluation import report

    tasks = [task.name for task in suite.tasks]
    folder = output / system.name / suite.folder
    results = _with_earlier(outcome.results, folder, tasks, outcome.failures)
    if not results:
        return
    summary = report.summarise(suite.title, tasks, results)
    report.print_table(summary, console(TABLE_COLUMNS))
    published = report.read_published(report.reference_folder())
    (folder / "report.md").write_text(report.markdown(summary, published), "utf-8")
    try:
        report.plot_tasks(folder / "tasks.png", summary, published)
        _compare_systems(summary, suite.folder, output)
    except (MissingExtraError, DataError) as error:
        say(str(error))


def _with_earlier(
    done: list["TaskResult"], folder: Path, tasks: list[str], failures: dict[str, str]
) -> list["TaskResult"]:
    """Add what earlier runs of other tasks of the suite left in the folder."""
    from mbretrieve.evaluation.report import read_result

    have = {result.task for result in done} | failures.keys()
    results = list(done)
    for path in sorted(folder.glob("*.json")):
        if path.stem in tasks and path.stem not in have:
            try:
                results.append(read_result(path))
            except DataError as error:
                say(str(error))
    return results


def _compare_systems(summary: "Summary", suite: str, output: Path) -> None:
    """Draw every system that has results of this suite in the output folder, by latency and by size."""
    from mbretrieve.evaluation import report

    systems: dict[str, list[TaskResult]] = {}
    for path in sorted(output.glob(f"*/{suite}/*.json")):
        try:
            result = report.read_result(path)
        except DataError:  # said, if it is of this system
            continue
        systems.setdefault(result.model, []).append(result)
    systems[summary.results[0].model] = summary.results
    for cost in ("latency", "size"):
        report.plot_trade_off(output / f"{suite}-{cost}.png", systems, cost)


def _print_suites() -> None:
    """Print a line a task; parts are named by their number."""
    from rich.table import Table

    from mbretrieve.evaluation import suites

    table = Table(title="suites", title_justify="left")
    columns = ("suite", "task", "direction", "documents", "split", "lengths", "depth", "metric", "licence", "source")
    for column in columns:
        table.add_column(column, no_wrap=column in ("suite", "task"))
    for name in suites.names():
        for task in suites.get(name).tasks:
            first, parts = task.parts[0], len(task.parts)
            documents = sum(part.documents for part in task.parts)
            revision = f"@{first.revision[:8]}" if first.revision else ""
            table.add_row(
                name,
                task.name + (f" ({parts} parts)" if parts > 1 else ""),
                task.direction,
                f"{documents:,}" if documents else "",
                first.split + (", ..." if len({part.split for part in task.parts}) > 1 else ""),
                f"{task.query_length or 'own'} / {task.document_length or 'own'}",
                str(task.depth) + (", own document dropped" if task.drop_own else ""),
                task.metric,
                task.licence,
                f"{first.repository}{revision}" + (", ..." if parts > 1 else "")
                if first.repository
                else f"DIR/{first.folder} with --data-dir DIR",
            )
    console(LIST_COLUMNS).print(table)


command.add_command(compare.command)
