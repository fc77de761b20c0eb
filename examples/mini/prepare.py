"""Pairs made ready to train on: nothing that an evaluation asks or answers, nothing twice, some queries as people type.

    python examples/mini/prepare.py --output mini/pairs --evaluation data/cosqa data/csn-python-mini -- mini/raw/*.gz

Of each file of pairs, OUTPUT gets one of the same name. Left out is what equals a query or document that the evaluation
folders (BEIR layout) judge in any split but ``train``, but for case, signs, white space and documentation. The
queries of rows with a ``language`` are sentences of documentation ("Returns the name of the user."); ``--styled`` of
them are rewritten as one types into a search box ("python name of the user"), the same ones in every run.
"""

import argparse
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mbretrieve.errors import MbretrieveError
from mbretrieve.jsonl import read_objects

_DOCUMENTATION = re.compile(r'""".*?"""' + r"|'''.*?'''", re.DOTALL)
_PREFIX = 150  # characters of code that tell functions apart, and are there if a copy was cut
_OPENINGS = re.compile(
    r"^(?:(?:this|the|an?)\s+)?(?:helper|utility)?\s*(?:function|method|class)\s+"
    r"(?:(?:is|can be) used\s+)?(?:to\s+|that\s+|which\s+)?"
    r"|^(?:returns?|gets?)\s+(?:the|an?)\s+",
    re.IGNORECASE,
)
_NO_VERBS = frozenset({"this", "always", "does", "has", "was", "is", "its", "as", "plus", "vs", "yes", "alias"})
_NAMES = {"js": "javascript"}


class Style(NamedTuple):
    """A share of the rewritten queries, and where the language's name stands in them."""

    share: float
    form: str


_HOW_TO = "how to {query} in {language}"
STYLES = (
    Style(0.35, "{language} {query}"),
    Style(0.15, "{query} in {language}"),
    Style(0.1, "{query} {language}"),
    Style(0.1, _HOW_TO),
    Style(0.3, "{query}"),
)


def searched(query: str, language: str, draw: float) -> str:
    """Rewrite a sentence of documentation as one would type it; ``draw`` from 0 to below 1 chooses the form."""
    text = _OPENINGS.sub("", query).strip().rstrip(".!").lower()
    first, _, rest = text.partition(" ")
    verb = _imperative(first)
    text = f"{verb} {rest}".strip()
    for style in STYLES:
        if draw < style.share:
            form = "{query}" if style.form == _HOW_TO and verb == first else style.form  # nobody asks how to a noun
            return form.format(query=text, language=_NAMES.get(language, language))
        draw -= style.share
    return text


def styled(row: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return a row with its query rewritten, if its turn has come and it is of a language."""
    draw = int.from_bytes(hashlib.blake2b(str(row["query"]).encode("utf-8", "replace"), digest_size=6).digest()) / 2**48
    if "language" not in row or draw >= share:
        return dict(row)
    return {**row, "query": searched(row["query"], row["language"], draw / share)}


def query_key(text: str) -> bytes:
    """Return what queries share that differ in case, signs and white space at most."""
    return _digest(re.sub(r"[\W_]+", " ", text.lower()).strip())


def document_key(text: str) -> bytes:
    """Return what documents share whose first characters differ in white space and documentation at most."""
    return _digest("".join(_DOCUMENTATION.sub("", text).split())[:_PREFIX])


def evaluated(folders: Iterable[Path]) -> tuple[set[bytes], set[bytes]]:
    """Return the keys of the queries and documents that BEIR folders judge in any split but ``train``."""
    queries: set[bytes] = set()
    documents: set[bytes] = set()
    for folder in folders:
        judged = [
            line.split("\t")
            for path in folder.glob("qrels/*.tsv")
            if path.stem != "train"
            for line in path.read_text("utf-8").splitlines()
        ]
        asked, relevant = {fields[0] for fields in judged}, {fields[1] for fields in judged}
        rows = (row for _, row in read_objects(folder / "queries.jsonl"))
        queries |= {query_key(row["text"]) for row in rows if row["_id"] in asked}
        rows = (row for _, row in read_objects(folder / "corpus.jsonl"))
        documents |= {document_key(row["text"]) for row in rows if row["_id"] in relevant}
    return queries, documents


def kept(
    rows: Iterable[Mapping[str, Any]], queries: Container[bytes], documents: Container[bytes]
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows that no evaluation knows, none of them twice."""
    seen: set[tuple[bytes, bytes]] = set()
    for row in rows:
        asked = {query_key(row["query"]), query_key(row.get("doc_comment") or row["query"])}
        keys = query_key(row["query"]), _digest(row["positive"])
        answer = document_key(row["positive"])
        if not any(key in queries for key in asked) and answer not in documents and keys not in seen:
            seen.add(keys)
            yield row


def _imperative(word: str) -> str:
    """Return a verb as one types it: checks -> check, matches -> match, copies -> copy."""
    if not word.endswith("s") or word.endswith(("ss", "us")) or len(word) < 4 or word in _NO_VERBS:
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes")) else word[:-1]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()


def main() -> None:
    """Prepare each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, metavar="PAIRS.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[], metavar="BEIR_FOLDER")
    parser.add_argument("--styled", type=float, default=0.4, help="share of documentation's sentences rewritten (0.4)")
    arguments = parser.parse_args()
    queries, documents = evaluated(arguments.evaluation)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for path in arguments.pairs:
        read = written = 0
        with gzip.GzipFile(arguments.output / path.name, "wb", mtime=0) as out:
            rows = [row for _, row in read_objects(path)]
            read = len(rows)
            for row in kept(rows, queries, documents):
                out.write((json.dumps(styled(row, arguments.styled), ensure_ascii=False) + "\n").encode())
                written += 1
        print(f"{path.name}: {written:,} of {read:,}")


if __name__ == "__main__":
    try:
        main()
    except MbretrieveError as error:
        sys.exit(f"prepare.py: {error}")
