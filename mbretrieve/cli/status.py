"""``mbretrieve status``: what an index holds, and whether it is up to date."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from mbretrieve.cli.indexing import say
from mbretrieve.cli.options import index_option, json_option
from mbretrieve.cli.printable import printable
from mbretrieve.cli.sizes import human_size
from mbretrieve.cli.target import Target, command_that_indexes, find, no_index, require
from mbretrieve.errors import DataError, MbretrieveError


@click.command("status")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@index_option
@json_option
def command(path: Path | None, index: Path | None, as_json: bool) -> None:
    """Say what an index holds, and whether it is up to date.

    The index is that of PATH (the current folder) or the one named. Where the current folder has no index, all indexes
    in your cache folder are listed.

    --json prints {"index", "kind", "dim", "pooled_dim", "roots", "documents", "windows", "files", "tokens", "segments",
    "bytes", "bytes_per_token", "bits", "bits_when_packed", "packed_tokens", "searched", "lists", "model", "generation",
    "updated", "changed_files"}, or a list of these. changed_files is null where it was not looked for, in a list, or
    could not be. bytes_per_token is of segments and codebooks. bits are null and lists empty where vectors are kept as
    they came; bits_when_packed is what they get once they are many, null in a dense index. searched counts tokens
    (windows, where one vector stands for each) that are compared one by one, found along a graph or by inverted
    lists. model is null where one's own vectors came with nothing said of them.
    """
    target = find(path, index)
    if target is None and (path is not None or index is not None):
        raise no_index(path, index)
    if target is None:
        _list_all(as_json)
        return
    record = describe(target.index, look=True)
    if as_json:
        click.echo(json.dumps(record, indent=2))
        return
    for name, value in _spelled(record, target).items():
        click.echo(f"{name + ':':<12}{printable(value)}")


def describe(index: Path, look: bool) -> dict[str, Any]:
    """Return the documented record; ``look`` compares the index with its folders."""
    from mbretrieve.folder import changes, roots_of
    from mbretrieve.index import open_index

    with open_index(index) as opened:
        status = opened.status()
        changed: int | None = None
        if look:
            try:
                changed = changes(opened).count
            except DataError as error:
                say(str(error))
        return {
            "index": str(index.resolve()),
            "kind": status["kind"],
            "dim": status["dim"],
            "pooled_dim": status["pooled_dim"],
            "roots": [str(root) for root in roots_of(opened).values()],
            "documents": status["documents"],
            "windows": status["windows"],
            "files": status["sources"],
            "tokens": status["tokens"],
            "segments": status["segments"],
            "bytes": status["bytes"]["total"],
            "bytes_per_token": status["bytes_per_token"],
            "bits": status["bits"] if status["packed_tokens"] else None,
            "bits_when_packed": status["bits"],
            "packed_tokens": status["packed_tokens"],
            "searched": status["searched"],
            "lists": [] if opened.kind == "joint" else status["lists"],
            "model": opened.identity or None,
            "generation": opened.generation,
            "updated": _updated(index).isoformat(timespec="seconds"),
            "changed_files": changed,
        }


def _updated(index: Path) -> datetime:
    from mbretrieve.index.catalogue import FILE

    return datetime.fromtimestamp((index / FILE).stat().st_mtime).astimezone()


def _spelled(record: dict[str, Any], target: Target) -> dict[str, str]:
    roots, changed = record["roots"], record["changed_files"]
    if not roots:
        state = "holds what was added to it, not folders"
    elif changed is None:
        state = "not known"
    elif changed:
        command = command_that_indexes([Path(root) for root in roots], target.index if target.named else None)
        state = f"no: {changed:,} files are new, changed or gone; `{command}`"
    else:
        state = "yes"
    return {
        "index": record["index"],
        "covers": ", ".join(roots) or "-",
        "up to date": state,
        "updated": record["updated"],
        "files": f"{record['files']:,}",
        "documents": f"{record['documents']:,}",
        "windows": f"{record['windows']:,}; documents beyond the model's length have several, equal ones share theirs",
        "tokens": f"{record['tokens']:,}",
        "segments": f"{record['segments']:,}",
        "size": f"{human_size(record['bytes'])}; vectors {record['bytes_per_token']} bytes per token",
        "bits": _bits(record),
        "lists": ", ".join(f"{count:,}" for count in record["lists"]) or _instead_of_lists(record),
        "generation": f"{record['generation']:,}",
        "model": _model(record),
    }


def _bits(record: dict[str, Any]) -> str:
    """Say what is kept of a dimension now, and what will be."""
    from mbretrieve.index import plan

    if record["kind"] == "dense":
        return "32 a dimension: vectors as they came"
    if not record["bits"]:
        return (
            f"16 a dimension: vectors as they came; {record['bits_when_packed']} once they are packed, "
            f"of more than {plan.EXACT_TOKENS:,} tokens"
        )
    waiting = record["tokens"] - record["packed_tokens"]
    return f"{record['bits']} a dimension" + (f"; 16 of {waiting:,} tokens that are not packed yet" if waiting else "")


OWN_VECTORS = "none: made of one's own vectors"
_SEARCHED = {
    "lists": "by inverted lists (IVF-PQ)",
    "graph": "along a graph (HNSW)",
    "flat": "by comparing every one",
}


def _instead_of_lists(record: dict[str, Any]) -> str:
    """Say how an index is searched that has no lists of tokens."""
    if record["kind"] == "colbert":
        return "none: every vector is compared"
    by = [f"{record['searched'][way]:,} {words}" for way, words in _SEARCHED.items() if record["searched"][way]]
    if record["kind"] == "joint":
        return "none: found by one vector a text" + (f", {', '.join(by)}" if by else "")
    if not record["searched"]["lists"] and not record["searched"]["graph"]:
        return "none: every vector is compared"
    return f"none of tokens; vectors found: {', '.join(by)}"


def _model(record: dict[str, Any]) -> str:
    """Name the model, or say that none is known; the vectors' sizes are the index's own word."""
    model, dimensions = record["model"] or {}, f"{record['dim']} dimensions"
    if record["kind"] == "joint":
        dimensions = f"{dimensions} a token, {record['pooled_dim']} a text"
    return f"{model.get('name', OWN_VECTORS)} ({record['kind']}, {dimensions})"


def _list_all(as_json: bool) -> None:
    from mbretrieve.folder import cache_folder
    from mbretrieve.index.catalogue import FILE

    records = []
    for catalogue in sorted(cache_folder().glob(f"[!.]*/{FILE}")):
        try:
            records.append(describe(catalogue.parent, look=False))
        except MbretrieveError as error:  # one bad index does not hide the others
            say(str(error))
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    for record in records:
        covers = ", ".join(record["roots"]) or record["index"]
        size = human_size(record["bytes"])
        click.echo(printable(f"{covers}: {record['documents']:,} documents, {size}, updated {record['updated']}"))
    if not records:
        require(None, None)
