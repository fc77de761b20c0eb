"""``mbretrieve bench``: measure, here, what the user has."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.progress import progress_bars
from mbretrieve.cli.tables import console
from mbretrieve.cli.target import require
from mbretrieve.errors import DataError, MissingExtraError

TABLE_COLUMNS = 120  # of a table that goes into a file


@click.group("bench")
def command() -> None:
    """Measure how fast documents are encoded, and what an index costs and loses."""


@command.command("index")
@click.option("--index", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The index folder.")
@click.option(
    "--queries",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='Queries, one a line: {"text": "..."} or {"query": "..."}, as BEIR has them, or {"vectors": [[...], ...]}.',
)
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="OUT", help="Where to write the figures.")
@click.option(
    "--exact-from",
    type=click.Choice(["stored", "model"]),
    default="stored",
    show_default=True,
    help="What recall is against: every document by its stored vectors, or encoded again by the model.",
)
def index(index: Path, queries: Path, output: Path | None, exact_from: Literal["stored", "model"]) -> None:
    """Measure recall, latency and queries a second of an index, for settings around the default.

    Queries for an index of vectors of your own come as vectors: {"vectors": [[...], ...]}, a row a token, for a dense
    index {"vector": [...]}, for a joint one both.

    --json writes {"tokens", "documents", "bytes_per_token", "exact": {"p50_ms"}, "settings": [{"probes", "tokens",
    "rescore", "recall@10", "recall@100", "p50_ms", "p95_ms", "qps", "effort@100", "p50_ms@100"}], "default": one of
    them, "build", ...} and draws recall@10 against p50 in a PNG beside it. recall@100 is found with k=100 at
    effort@100, as much further than the setting as the default then goes, in p50_ms@100; all else is of k=10 at the
    setting itself. Queries are encoded before anything is timed; p50 and p95 are of one query at a time, qps of as
    many callers as there are cores. "build" is a copy of the index, packed or written again.
    """
    from mbretrieve.bench import report
    from mbretrieve.bench.index import measure_index, read_queries

    asked = read_queries(queries)
    _check_output(output)
    measured = measure_index(require(None, index).index, asked, exact_from, progress_bars())
    report.print_table(measured, console(TABLE_COLUMNS))
    if output is not None:
        _write(output, lambda: report.write(output, measured), lambda path: report.plot(path, measured))


@command.command("encode")
@click.option("--model", metavar="NAME", help="A model's folder or Hugging Face name. Default: the bundled one.")
@click.option(
    "--shapes", type=click.Choice(["base", "large"]), help="Instead of a model: ModernBERT's shapes, random weights."
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps ... Default: the best there is.")
@click.option(
    "--work",
    metavar="WORK,...",
    help="512-fixed, 512-variable, 8192-fixed, 8192-variable, mixed. Default: all that the model has positions for.",
)
@click.option(
    "--dtype",
    metavar="DTYPE,...",
    help="mbretrieve's: bfloat16, float16, float32, int8 (on a CPU). Default: the device's best; on a CPU int8, too.",
)
@click.option("--peers", is_flag=True, help="Beside transformers and sentence-transformers, those installed.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="How long an engine runs on a work, about; each runs once at least.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="How many tokens go through at once.",
)
@click.option("--json", "output", type=click.Path(path_type=Path), metavar="OUT", help="Where to write the figures.")
def encode(output: Path | None, **asked: Any) -> None:
    """Measure how many tokens a second are encoded, as in the efficiency table of the ModernBERT paper.

    Works are documents of 512 or 8,192 tokens, all of that length (fixed) or of lengths about half of it (variable),
    or of 16 to 512 (mixed). Beside the speed stands the roofline, how fast bare matrices of the model's shapes are
    multiplied here, in the same turns, and the share of it that is reached; on CUDA, too, how many documents fit into
    one batch. --peers run as shipped (float32) and in the device's best number format.

    --json writes {"machine", "roofline_gflops": by dtype, "rows": [{"work", "engine", "dtype", "tokens_per_second",
    "share_of_roofline", "share_of_peak", "largest_batch"}], "variable_to_fixed": [{"size", "engine", "dtype",
    "ratio"}], ...} and draws a PNG beside it. share_of_peak is of what the device's maker promises, null where that is
    not known.
    """
    from mbretrieve.bench import encode_report
    from mbretrieve.bench.encode import Asked, measure

    _check_output(output)
    measured = measure(Asked(**asked), progress_bars())
    encode_report.print_table(measured, console(TABLE_COLUMNS))
    if output is not None:
        _write(output, lambda: encode_report.write(output, measured), lambda path: encode_report.plot(path, measured))


PICTURE = ".png"  # what the picture beside the figures has in the place of their suffix


def _check_output(output: Path | None) -> None:
    """Refuse, before anything is measured, a place where the figures or the picture could not be written."""
    if output is None:
        return
    if not output.parent.is_dir():
        raise DataError(f"{output.parent} is no folder: name a file in one that exists")
    if output.is_dir():
        raise DataError(f"{output} is a folder: name a file for the figures, such as {output / 'bench.json'}")
    if output.suffix.lower() == PICTURE:
        raise DataError(f"{output}: the picture goes there; name the figures otherwise, as in {output.stem}.json")
    if output.with_suffix(PICTURE).is_dir():
        raise DataError(f"{output.with_suffix(PICTURE)} is a folder, but the picture goes there: name another file")
    for path in (output, output.with_suffix(PICTURE)):
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise DataError(f"{path} cannot be written: name a file in a folder that can")


def _write(output: Path, figures: Callable[[], None], plot: Callable[[Path], None]) -> None:
    """Write the figures and draw beside them; without what draws say so. Raises: DataError if a disk is full."""
    try:
        figures()
        plot(output.with_suffix(PICTURE))
    except MissingExtraError as error:
        say(str(error))
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error.strerror}): name another place") from error
