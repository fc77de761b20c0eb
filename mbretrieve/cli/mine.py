"""``mbretrieve mine``: hard negatives for training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mbretrieve.cli.options import model_options_of
from mbretrieve.cli.printable import printable
from mbretrieve.cli.progress import progress_bars
from mbretrieve.errors import DataError

if TYPE_CHECKING:
    from mbretrieve.training.mining import Finder, MiningReport, Teacher

FinderKind = Literal["colbert", "dense", "joint", "bm25"]
TeacherKind = Literal["cross-encoder", "colbert", "dense"]


@click.command("mine")
@click.argument("pairs", type=click.Path(path_type=Path), metavar="PAIRS")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="FILE.jsonl[.gz]")
@click.option("--split", default="train", show_default=True, help="Whose judgements, of a folder in BEIR layout.")
@model_options_of("colbert", "dense", "joint", "bm25")
@click.option("--query-length", type=click.IntRange(min=1), metavar="N", help="Tokens of a query.")
@click.option("--document-length", type=click.IntRange(min=1), metavar="N", help="Tokens at which a text is cut.")
@click.option("--negatives", type=click.IntRange(min=1), default=7, show_default=True, metavar="N", help="For a pair.")
@click.option("--from", "first", type=click.IntRange(min=1), default=1, show_default=True, metavar="RANK")
@click.option("--to", "last", type=click.IntRange(min=1), default=100, show_default=True, metavar="RANK")
@click.option(
    "--sampling",
    type=click.Choice(["top", "random"]),
    default="top",
    show_default=True,
    help="The best of these ranks, or any of them.",
)
@click.option("--margin", type=float, metavar="X", help="A negative scores at most the positive's score less X.")
@click.option(
    "--relative-margin", type=float, metavar="X", help="... less this share of it: 0.05 for at most 95% of it."
)
@click.option("--teacher", metavar="MODEL", help="Whose scores are written, and kept to by the margin.")
@click.option(
    "--teacher-kind",
    type=click.Choice(["cross-encoder", "colbert", "dense"]),
    default="cross-encoder",
    show_default=True,
    help="What the teacher is; the first is sentence-transformers'.",
)
@click.option(
    "--scores",
    type=click.Choice(["model", "index"]),
    default="model",
    show_default=True,
    help="Where the model's scores come from: texts encoded again, or the index's rounded vectors, which takes less.",
)
@click.option("--complete", is_flag=True, help="Leave out pairs with fewer negatives: to train on scores.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random sampling.")
def command(
    pairs: Path,
    output: Path,
    split: str,
    model: str | None,
    kind: FinderKind | None,
    device: str | None,
    dtype: str | None,
    query_length: int | None,
    document_length: int | None,
    negatives: int,
    first: int,
    last: int,
    sampling: Literal["top", "random"],
    margin: float | None,
    relative_margin: float | None,
    teacher: str | None,
    teacher_kind: TeacherKind,
    scores: Literal["model", "index"],
    complete: bool,
    seed: int,
) -> None:
    """Find hard negatives for PAIRS, and write lines of "query", "positive", "negatives" and "scores" to train on.

    PAIRS is a file of JSON lines, {"query": ..., "positive": ...} each (.gz too), whose negatives are other lines'
    positives, or a folder in BEIR layout, whose negatives are of its corpus. Ranks count the texts that are no
    positives of the query. "scores" are the positive's, then the negatives'. An interrupted run goes on when the same
    command is given again.

    \b
        mbretrieve mine pairs.jsonl --output mined.jsonl --relative-margin 0.05
        mbretrieve mine beir/scifact --kind bm25 --output mined.jsonl.gz --from 10 --sampling random
    """
    from mbretrieve.training.mining import MiningOptions, mine
    from mbretrieve.training.pairs import open_pairs

    options = MiningOptions(negatives, first, last, sampling, margin, relative_margin, seed, complete)
    if kind == "bm25" and (chosen := _named(model=model, query_length=query_length, document_length=document_length)):
        raise DataError(f"--kind bm25 has no {chosen}: leave it out, or name a kind of model")
    if output.suffix not in (".jsonl", ".gz"):
        raise DataError(f"--output {output}: expected a name that ends in .jsonl or .jsonl.gz")
    source = open_pairs(pairs, split)
    lengths = {"query_length": query_length, "document_length": document_length}
    where = {"device": device, "dtype": dtype}
    judge = _teacher(teacher, teacher_kind, where) if teacher else None
    finder = _finder(kind or "colbert", model, scores, lengths | where)
    _print(mine(source, finder, output, options, teacher=judge, progress=progress_bars()), output)


def _named(**options: object) -> str:
    return next((f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None), "")


def _finder(kind: FinderKind, model: str | None, scores: str, loading: dict[str, Any]) -> "Finder":
    from mbretrieve.training.finders import Bm25Finder, EncoderFinder

    if kind == "bm25":
        return Bm25Finder()
    from mbretrieve.models import load_encoder

    return EncoderFinder(load_encoder(kind, model, **loading), stored=scores == "index")


def _teacher(name: str, kind: TeacherKind, loading: dict[str, Any]) -> "Teacher":
    from dataclasses import asdict

    from mbretrieve.training.finders import of_encoder, of_reranker
    from mbretrieve.training.mining import Teacher

    if kind == "cross-encoder":
        from mbretrieve.evaluation.rerankers import CrossEncoder
        from mbretrieve.models.workers import first_device

        reranker = CrossEncoder(name, first_device(loading["device"]))
        return Teacher(reranker.identity, of_reranker(reranker))
    from mbretrieve.models import load_encoder

    encoder = load_encoder(kind, name, **loading)
    return Teacher(asdict(encoder.identity), of_encoder(encoder))


def _print(report: "MiningReport", output: Path) -> None:
    click.echo(
        f"{printable(str(output))}: {report.examples:,} of {report.pairs:,} pairs, {report.negatives:,} negatives"
    )
    for count, what in (
        (report.short, "pairs have fewer negatives than were asked for"),
        (report.without, "pairs have none, or too few, and are left out"),
        *((count, f"texts rejected: {reason}") for reason, count in report.rejected.items()),
    ):
        if count:
            click.echo(f"  {count:,} {what}")
