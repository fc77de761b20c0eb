"""Metadata filters: what a ``where`` means, and its translation into SQL with every value a parameter.

A value is compared with its own kind only: a number never equals a string, and a boolean is no number: ``True`` is not
1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mbretrieve.errors import DataError
from mbretrieve.index.records import check_number, check_text
from mbretrieve.types import MetadataValue, Where

SqlValue = str | int | float | bytes
MAX_VALUES = 10_000  # SQLite takes 32,766 parameters in one statement


class Operator(NamedTuple):
    """An operator of ``{"key": {"operator": value}}``: its SQL, and whether it also takes numbers and a list."""

    sql: str
    numbers: bool
    lists: bool


OPERATORS = {
    "gte": Operator("value >= ?", numbers=True, lists=False),
    "gt": Operator("value > ?", numbers=True, lists=False),
    "lte": Operator("value <= ?", numbers=True, lists=False),
    "lt": Operator("value < ?", numbers=True, lists=False),
    "glob": Operator("value GLOB ?", numbers=False, lists=True),
    "not_glob": Operator("value NOT GLOB ?", numbers=False, lists=True),
}
# Of several patterns one must match (glob), or none may (not_glob).
JOINED_BY = {"glob": " OR ", "not_glob": " AND "}


def compile_where(where: Where) -> tuple[str, list[SqlValue]]:
    """Translate a filter into a SELECT of document keys and its parameters.

    ``{"lang": "en"}`` equality; ``{"lang": ["en", "fr"]}`` any of; ``{"year": {"gte": 2000, "lt": 2010}}`` ranges;
    ``{"path": {"glob": "src/*"}}`` and ``{"path": {"not_glob": ["*.md", "*.txt"]}}`` patterns in which ``*`` also
    matches ``/``. Keys are joined by and; a document without the key never matches.
    Raises: DataError for what is none of these.
    """
    if not isinstance(where, Mapping):
        raise DataError(f"the filter is of type {type(where).__name__}; a mapping of keys to values was expected")
    if not where:
        return "SELECT key FROM documents", []
    selects: list[str] = []
    parameters: list[SqlValue] = []
    for key, condition in where.items():
        check_text("a key of the filter", key)
        sql, values = _condition(f"the filter on {key!r}", condition)
        selects.append(f"SELECT document FROM metadata WHERE name = ? AND ({sql})")  # noqa: S608 - from OPERATORS
        parameters += [key, *values]
    if len(parameters) > MAX_VALUES or len(selects) > 100:
        raise DataError(f"the filter has {len(selects)} keys and {len(parameters)} values; that is too many")
    return " INTERSECT ".join(selects), parameters


def stored_value(value: MetadataValue) -> SqlValue:
    """Return a metadata value as the catalogue compares it: SQLite has no booleans, and 1 must stay a number."""
    return bytes([value]) if isinstance(value, bool) else value


def _condition(name: str, condition: Any) -> tuple[str, list[SqlValue]]:
    if isinstance(condition, Mapping):
        return _operators(name, condition)
    if isinstance(condition, list | tuple | set | frozenset):
        values = [_value(name, value) for value in condition]
        return f"value IN ({', '.join('?' * len(values))})", values
    return "value = ?", [_value(name, condition)]


def _operators(name: str, condition: Mapping[str, Any]) -> tuple[str, list[SqlValue]]:
    if not condition:
        raise DataError(f"{name} has no operator; give at least one of {', '.join(OPERATORS)}")
    parts: list[str] = []
    parameters: list[SqlValue] = []
    for word, given in condition.items():
        if word not in OPERATORS:
            raise DataError(f"{name} has the operator {word!r}; {', '.join(OPERATORS)} are known")
        operator = OPERATORS[word]
        several = operator.lists and isinstance(given, list | tuple)
        for_each = [_operand(f"{name}, {word},", value, operator) for value in (given if several else [given])]
        if not for_each:
            raise DataError(f"{name} has no pattern for {word}; give at least one")
        parts.append("(" + JOINED_BY.get(word, " AND ").join(sql for sql, _ in for_each) + ")")
        parameters += [value for _, value in for_each]
    return " AND ".join(parts), parameters


def _operand(name: str, value: Any, operator: Operator) -> tuple[str, SqlValue]:
    # SQLite orders every number before every text: an upper bound on text alone would let all numbers through.
    if isinstance(value, str):
        check_text(name, value)
        return f"typeof(value) = 'text' AND {operator.sql}", value
    if not operator.numbers or isinstance(value, bool) or not isinstance(value, int | float):
        expected = "a string or a number" if operator.numbers else "a string or a list of strings"
        raise DataError(f"{name} is of type {type(value).__name__}; {expected} was expected")
    check_number(name, value)
    return f"typeof(value) IN ('integer', 'real') AND {operator.sql}", value


def _value(name: str, value: Any) -> SqlValue:
    if isinstance(value, str):
        check_text(name, value)
    else:
        check_number(name, value)
    return stored_value(value)
