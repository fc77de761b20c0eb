"""``--where key=value``: the command line's spelling of a metadata filter."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mbretrieve.errors import DataError

if TYPE_CHECKING:
    from mbretrieve.types import MetadataValue

# The longest operator first: ">=" is not ">" followed by "=...".
OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "=": ""}

_CONDITION = re.compile(r"([^=<>!\s]+)\s*(>=|<=|>|<|=)(?![=<>])\s*(.*)", re.DOTALL)
_VALUE = re.compile(r'\s*(?:"([^"]*)"|([^,"]*))\s*(?:,|$)')
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d{1,3})?")
_BOOLEANS = {"true": True, "false": False}


def parse_where(conditions: Sequence[str]) -> dict[str, Any]:
    """Join ``key=value`` conditions by and: ``key=a,b`` is any of, ``key>=v`` and ``key<v`` are ranges.

    ``true``, ``false`` and what looks like a number are read as such; a value in double quotes is text as it stands,
    commas included. Raises DataError for what does not parse, and for a key with two conditions that are not a range.
    """
    where: dict[str, Any] = {}
    for condition in conditions:
        key, operator, values = _parse_condition(condition)
        if operator:
            if len(values) != 1:
                raise DataError(f"--where {condition}: a range takes one value, not {len(values)}")
            limits = where.setdefault(key, {})
            if not isinstance(limits, dict) or operator in limits:
                raise DataError(f"--where {condition}: {key} already has a condition that this one does not fit")
            limits[operator] = values[0]
        elif key in where:
            raise DataError(f"--where {condition}: {key} already has a condition; any of several is {key}=a,b")
        else:
            where[key] = values[0] if len(values) == 1 else values
    return where


def _parse_condition(condition: str) -> "tuple[str, str, list[MetadataValue]]":
    match = _CONDITION.fullmatch(condition.strip())
    values = _split(match[3]) if match else None
    if match is None or values is None:
        raise DataError(
            f"--where {condition}: not a filter; write key=value, key=a,b (any of), key>=value or key<value, "
            'with "..." around text that holds a comma'
        )
    return match[1], OPERATORS[match[2]], values


def _split(text: str) -> "list[MetadataValue] | None":
    """Cut ``a,"b,c",3`` at its commas, or return None if the quotes do not pair or a value is missing."""
    values: list[MetadataValue] = []
    at = 0
    while True:
        match = _VALUE.match(text, at)
        if match is None:
            return None
        quoted, bare = match.groups()
        if quoted is None and not bare.strip():
            return None
        values.append(quoted if quoted is not None else _typed(bare.strip()))
        at = match.end()
        if at == len(text) and not match[0].endswith(","):
            return values


def _typed(text: str) -> "MetadataValue":
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return _BOOLEANS.get(text, text)
