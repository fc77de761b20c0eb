"""From a row to the texts of an example: the formats a source can have, one table of readers.

A reader returns None for a row that the format has but that is no example (an NLI pair that does not follow, a
judgement of 0, a function without a description); anything else that is no example is an error with its place.
"""

import ast
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mbretrieve.errors import DataError
from mbretrieve.training.config import Format, SourceConfig
from mbretrieve.training.data.digests import joined
from mbretrieve.training.data.tables import Lookup, Row, Stream, Table, hub_configs, open_stream, open_table


class Texts(NamedTuple):
    """What one row says."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None


Reader = Callable[[Row, str], Texts | None]
"""From a row and its place to its texts. Raises: DataError that begins with the place."""


class Opened(NamedTuple):
    """A source's rows, what reads them, and a hash of all that they are read from."""

    table: Table
    read: Reader
    digest: str


def open_rows(source: SourceConfig) -> Opened:
    """Open a source's rows and what reads them. Raises: DataError; MissingExtraError."""
    if source.format in _JOINED:
        return _JOINED[source.format](source)
    table = open_table(source)
    return Opened(table, _reader(source), table.digest)


def stream_rows(source: SourceConfig) -> tuple[Stream, Reader]:
    """Open a source's rows to be read front to back. Raises: DataError; MissingExtraError."""
    if source.format in _JOINED:
        raise DataError(
            f"{source.title}: {source.format} keeps its texts in tables of their own, which are not streamed"
        )
    return open_stream(source), _reader(source)


def _reader(source: SourceConfig) -> Reader:
    return _NAMED[source.format](source) if source.format in _NAMED else _READERS[source.format]


# Rows that hold their texts


def _pairs(source: SourceConfig) -> Reader:
    columns = source.columns

    def read(row: Row, place: str) -> Texts:
        return Texts(_text(row, columns.query, place), _text(row, columns.positive, place))

    return read


def _tuples(source: SourceConfig) -> Reader:
    """A query, a positive, and negatives in one column or several, each of one text or a list of texts."""
    columns = source.columns
    names = columns.negatives or (("negative",) if source.format == "triples" else ("negatives",))

    def read(row: Row, place: str) -> Texts:
        query, positive = _text(row, columns.query, place), _text(row, columns.positive, place)
        negatives = tuple(text for name in names for text in _texts(row, name, place))
        if columns.scores is None:
            return Texts(query, positive, negatives)
        return Texts(query, positive, negatives, _scores(row, columns.scores, 1 + len(negatives), place))

    return read


def _msmarco_bm25(row: Row, place: str) -> Texts:
    """sentence-transformers/msmarco-bm25: ``query``, ``positive`` and ``negative``, or ``negative_1`` to ``_50``."""
    numbered = sorted((name for name in row if re.fullmatch(r"negative_\d+", name)), key=lambda name: int(name[9:]))
    names = numbered or ["negative"]
    # BM25 did not find as many for each query.
    negatives = tuple(_text(row, name, place) for name in names if name == "negative" or row[name])
    return Texts(_text(row, "query", place), _text(row, "positive", place), negatives)


# The original files (arXiv 1909.09436), and the Hub's code-search-net/code_search_net.
_CODE_COLUMNS = (("docstring", "code"), ("func_documentation_string", "func_code_string"))


def _codesearchnet(row: Row, place: str) -> Texts | None:
    """The first paragraph of a function's documentation, and the function without that documentation."""
    doc_name, code_name = next((names for names in _CODE_COLUMNS if names[0] in row), _CODE_COLUMNS[0])
    doc, code = _value(row, doc_name, place), _value(row, code_name, place)
    if not isinstance(doc, str) or not isinstance(code, str):
        raise DataError(f"{place}: {doc_name} and {code_name} are expected to be texts")
    query, bare = re.split(r"\n\s*\n", doc.strip(), maxsplit=1)[0], code.replace(doc.strip(), "", 1)
    return Texts(query, bare) if query and bare.strip() and doc.strip() else None


def _nli(row: Row, place: str) -> Texts | None:
    """sentence-transformers/all-nli: ``anchor``, ``positive`` (and ``negative``), or ``premise``, ``hypothesis`` and
    ``label``, of which the pairs that follow (0, or "entailment") are examples."""
    if "premise" in row:
        follows = _value(row, "label", place) in (0, "entailment")
        return Texts(_text(row, "premise", place), _text(row, "hypothesis", place)) if follows else None
    negatives = (_text(row, "negative", place),) if "negative" in row else ()
    return Texts(_text(row, "anchor", place), _text(row, "positive", place), negatives)


# Rows that hold ids of texts


def _msmarco_bge(source: SourceConfig) -> Opened:
    """lightonai/ms-marco-en-bge (JaColBERTv2.5, arXiv 2407.20750): ``query_id``, ``document_ids`` and a BGE teacher's
    ``scores`` in ``train``, texts in ``queries`` (``query_id``) and ``documents`` (``document_id``)."""
    queries = Lookup(open_table(source, "queries"), "query_id", "queries")
    passages = Lookup(open_table(source, "documents"), "document_id", "documents")
    used = None if source.negatives is None else 1 + source.negatives  # the others need not be fetched

    def read(row: Row, place: str) -> Texts:
        ids = _listed(row, "document_ids", place)
        if len(ids) < 2:
            raise DataError(f"{place}: {len(ids)} document_ids, expected two or more, to tell them apart")
        scores = _scores(row, "scores", len(ids), place)
        positive, *negatives = (_looked_up(passages, identifier, place) for identifier in ids[:used])
        return Texts(
            _looked_up(queries, _value(row, "query_id", place), place), positive, tuple(negatives), scores[:used]
        )

    table = open_table(source, "train")
    return Opened(table, read, joined([table.digest, queries.digest, passages.digest]))


def _coir(source: SourceConfig) -> Opened:
    """CoIR's and BEIR's layout (arXiv 2407.02883): ``queries`` and ``corpus`` by ``_id``, judgements between them.

    On the Hub the judgements are the configuration ``default`` or ``qrels``, in a folder ``qrels/SPLIT``; a
    configuration such as ``python`` stands in front of the three names (``python-corpus``).
    """
    prefix = f"{source.config}-" if source.config else ""
    judged = f"qrels/{source.split}"
    if source.hub is not None:
        names = hub_configs(source)
        judged = next((name for name in (f"{prefix}default", f"{prefix}qrels") if name in names), f"{prefix}qrels")
    queries = Lookup(open_table(source, f"{prefix}queries"), "_id", "queries")
    corpus = Lookup(open_table(source, f"{prefix}corpus"), "_id", "corpus")

    def read(row: Row, place: str) -> Texts | None:
        query, document, score = (
            _value(row, hyphened if hyphened in row else hyphened.replace("-", "_"), place)
            for hyphened in ("query-id", "corpus-id", "score")
        )
        try:
            relevant = float(score) > 0
        except (TypeError, ValueError) as error:
            raise DataError(f"{place}: score is {score!r}, expected a number") from error
        return Texts(_looked_up(queries, query, place), _looked_up(corpus, document, place)) if relevant else None

    table = open_table(source, judged)
    return Opened(table, read, joined([table.digest, queries.digest, corpus.digest]))


_NAMED: dict[Format, Callable[[SourceConfig], Reader]] = {"pairs": _pairs, "triples": _tuples, "tuples": _tuples}
_READERS: dict[Format, Reader] = {"msmarco-bm25": _msmarco_bm25, "codesearchnet": _codesearchnet, "nli": _nli}
_JOINED: dict[Format, Callable[[SourceConfig], Opened]] = {"msmarco-bge": _msmarco_bge, "coir": _coir}


# Values


def _value(row: Row, name: str, place: str) -> Any:
    if name not in row:
        raise DataError(f"{place}: no column {name!r}, it has {', '.join(row) or 'none'}: name yours in [data.columns]")
    return row[name]


def _said(value: Any, name: str, place: str) -> str:
    """Return a text that says something."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {name} is {str(value)[:60]!r}, expected text")
    if not value.strip():
        raise DataError(f"{place}: {name} is empty, expected text: mend or remove the row")
    return value


def _text(row: Row, name: str, place: str) -> str:
    return _said(_value(row, name, place), name, place)


def _texts(row: Row, name: str, place: str) -> list[str]:
    value = _value(row, name, place)
    return [_said(item, name, place) for item in (value if isinstance(value, list | tuple) else [value])]


def _listed(row: Row, name: str, place: str) -> list[Any]:
    """Return a list, which some tables keep in Python's notation as a string."""
    value = _value(row, name, place)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{place}: {name} is {value[:60]!r}, expected a list") from error
    if not isinstance(value, list | tuple):
        raise DataError(f"{place}: {name} is {str(value)[:60]!r}, expected a list")
    return list(value)


def _scores(row: Row, name: str, expected: int, place: str) -> tuple[float, ...]:
    values = _listed(row, name, place)
    if len(values) != expected:
        raise DataError(f"{place}: {name} has {len(values)} numbers, expected {expected}, one for each document")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{place}: {name} has {str(value)[:60]!r}, expected numbers")
    return tuple(map(float, values))


def _looked_up(table: Lookup, identifier: Any, place: str) -> str:
    """Return the text of an id, behind its title if it has one."""
    try:
        row = table[identifier]
    except KeyError as error:
        raise DataError(f"{place}: {error.args[0]}") from error
    return _said(f"{row.get('title') or ''} {row.get('text') or ''}".strip(), f"the text of {identifier!r}", place)
