"""Recipes: TOML and ``key=value`` on the command line into nested frozen dataclasses, and back.

A recipe's settings are the fields of dataclasses, their types the fields' annotations: ``bool``, ``int``, ``float``,
``str``, a ``Literal`` of strings, a tuple of these, any of them ``| None`` (not set), a dataclass (a table) or a tuple
of dataclasses (an array of tables). ``Annotated[int, Range(...)]`` bounds a number. A setting that may be ``None`` is
so by default, because TOML cannot say it. Whatever does not fit ends in one line that says what came and what was
expected.
"""

import difflib
import json
import math
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mbretrieve.errors import DataError

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Range:
    """What numbers a setting takes, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


Count = Annotated[int, Range("1 or more", lambda value: value >= 1)]
Natural = Annotated[int, Range("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Range("more than 0", lambda value: value > 0)]
NotNegative = Annotated[float, Range("0 or more", lambda value: value >= 0)]
Rate = Annotated[float, Range("a number from 0 to below 1", lambda value: 0 <= value < 1)]

Command = Literal["train", "pretrain"]
# Tables that only a command's recipes have.
_TELLING: dict[Command, frozenset[str]] = {"train": frozenset({"data"}), "pretrain": frozenset({"text", "phase"})}

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def load(record: type[Record], path: Path, overrides: Sequence[str], command: Command) -> Record:
    """Read a command's recipe into ``record``, settings of the command line (``optimizer.lr=1e-4``) over the file's.

    Raises: DataError for a file that is not there, not TOML or another command's recipe, and as ``read`` does.
    """
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a recipe ({error}): expected a TOML file in UTF-8") from error
    for other, tables in _TELLING.items():
        if other != command and settings.keys() & tables and not settings.keys() & _TELLING[command]:
            table = min(settings.keys() & tables)
            raise DataError(f"{path} has [[{table}]], it is a recipe for mbretrieve {other}: give it to that command")
    try:
        return read(record, override(record, settings, overrides))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read(record: type[Record], settings: Mapping[str, Any]) -> Record:
    """Build ``record`` from nested tables.

    Raises: DataError for a setting there is not (naming the nearest), of another type or out of its range, or lacking.
    """
    found: Record = _table(record, settings, "", record)
    return found


def override(record: type, settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay ``a.b=value`` settings over tables: values in TOML's notation, strings without quotes too; an empty value
    puts the default back; ``data.0.path`` is in the first table of an array.

    Raises: DataError for what is no ``key=value`` or no setting.
    """
    result: dict[str, Any] = _copy(settings)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise DataError(f"{item!r} is not a setting: expected key=value, such as run.steps=100")
        at: Any = result
        kind: Any = record
        *tables, last = key.strip().split(".")
        for depth, part in enumerate(tables):
            kind = _field_type(kind, part, ".".join(tables[:depth]), record)
            at = _descend(at, part, kind, key)
        kind = _field_type(kind, last, ".".join(tables), record)
        if _tables_of(kind):
            raise DataError(f"{key} is a table: give one of its settings, such as {next(names(kind, key))}")
        if not isinstance(at, dict):
            raise DataError(f"{key} leads to {_shown(at)}, expected a table of settings there")
        if text.strip():
            at[last] = _value(text.strip(), kind)
        else:
            at.pop(last, None)
    return result


def to_dict(record: Any) -> dict[str, Any]:
    """Return a record as nested dicts and lists, what is not set left out: what ``read`` takes and JSON can say."""
    pairs = ((field.name, getattr(record, field.name)) for field in fields(record))
    return {name: _plain(value) for name, value in pairs if value is not None}


def to_toml(record: Any) -> str:
    """Return a record as TOML that ``load`` reads back to an equal one; settings that are not set are comments."""
    return "\n".join(_toml_lines(record, "")).strip() + "\n"


def names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a record."""
    for name, hint in _hints(kind).items():
        dotted = f"{prefix}.{name}" if prefix else name
        if inner := _tables_of(hint):
            yield from names(inner, f"{dotted}.0" if _is_array(hint) else dotted)
        else:
            yield dotted


def _table(kind: Any, settings: Any, where: str, root: type) -> Any:
    if not isinstance(settings, Mapping):
        raise DataError(f"{where} is {_shown(settings)}, expected a table: [{where}]")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        hint = _field_type(kind, name, where, root)
        values[name] = _typed(value, hint, f"{where}.{name}" if where else name, root)
    for field in fields(kind):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            dotted = f"{where}.{field.name}" if where else field.name
            hint = _hints(kind)[field.name]
            wanted = f"[[{dotted}]]" if _is_array(hint) else f"[{dotted}]" if is_dataclass(hint) else dotted
            raise DataError(f"{dotted} is not set, expected it in the recipe: {wanted}")
    try:
        return kind(**values)
    except DataError as error:  # what a record says of its own settings does not know where the record stands
        raise DataError(f"{where}: {error}" if where else str(error)) from error


def _typed(value: Any, hint: Any, where: str, root: type) -> Any:
    """Return a value as its setting's type, or say what was expected."""
    if is_dataclass(hint):
        return _table(hint, value, where, root)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only ever `| None`, and TOML has no word for None
        return _typed(value, next(kind for kind in arguments if kind is not types.NoneType), where, root)
    if origin is Annotated:
        number = _typed(value, arguments[0], where, root)
        if not arguments[1].holds(number):
            raise DataError(f"{where} is {number}, expected {arguments[1].words}")
        return number
    if origin is tuple:
        if not isinstance(value, list | tuple):
            wanted = f"tables: [[{where}]]" if _is_array(hint) else "a list: [...]"
            raise DataError(f"{where} is {_shown(value)}, expected {wanted}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise DataError(f"{where} has {len(value)} values, expected {len(arguments)}")
        each = arguments if arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
        return tuple(
            _typed(item, kind, f"{where}.{at}", root) for at, (item, kind) in enumerate(zip(value, each, strict=True))
        )
    if origin is Literal:
        if value not in arguments:
            raise DataError(f"{where} is {_shown(value)}, expected one of {', '.join(arguments)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise DataError(f"{where} is {_shown(value)}, expected {_WORDS[hint]}")
    if hint is str and value.encode("utf-8", "replace").decode("utf-8") != value:
        raise DataError(f"{where} is {_shown(value)}, expected text that UTF-8 can write")
    return value


def _field_type(kind: Any, name: str, where: str, root: type) -> Any:
    """Return the type of a table's setting. Raises: DataError naming the nearest setting if there is none."""
    if _is_array(kind):  # on the command line, `data.0`
        if name.isdecimal():
            return _tables_of(kind)
        raise DataError(f"{where}.{name} is not a setting: expected the number of a table, as in {where}.0")
    known = _hints(kind) if is_dataclass(kind) else {}
    if name in known:
        return known[name]
    dotted = f"{where}.{name}" if where else name
    raise DataError(f"{dotted} is not a setting: the nearest is {_nearest(dotted, root)}")


def _nearest(dotted: str, root: type) -> str:
    """Return the setting most like a name that is none: one of the same last name in another table comes first."""
    every = list(names(root)) + list(_hints(root))
    leaf = dotted.rpartition(".")[2]
    same = [name for name in every if name.rpartition(".")[2] == leaf]
    return difflib.get_close_matches(dotted, same or every, n=1, cutoff=0)[0]


def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True) if is_dataclass(kind) else {}


def _is_array(hint: Any) -> bool:
    return get_origin(hint) is tuple and is_dataclass(get_args(hint)[0])


def _tables_of(hint: Any) -> Any:
    """Return the record that a table or an array of tables holds, or None if the setting is a value."""
    return get_args(hint)[0] if _is_array(hint) else hint if is_dataclass(hint) else None


def _copy(value: Any) -> Any:
    """Copy nested tables and arrays, so that overrides leave the caller's alone."""
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _descend(at: Any, part: str, kind: Any, key: str) -> Any:
    """Step into a table, made if it is not there, or into one of an array's."""
    if isinstance(at, list):
        if int(part) >= len(at):
            raise DataError(f"{key}: the recipe has {len(at)} such tables, counted from 0")
        return at[int(part)]
    if not isinstance(at, dict):
        raise DataError(f"{key} leads through {_shown(at)}, expected a table of settings there")
    return at.setdefault(part, [] if _is_array(kind) else {})


def _value(text: str, hint: Any) -> Any:
    """Read a command line's value: TOML's notation, or a bare string where a string is expected."""
    try:
        read_as = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    takes_strings = str in _alternatives(hint)
    if set(read_as) != {"value"} or (takes_strings and not isinstance(read_as["value"], str)):
        return text
    return read_as["value"]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _toml_lines(record: Any, where: str) -> Iterator[str]:
    tables = []
    for field in fields(record):
        value, hint = getattr(record, field.name), _hints(type(record))[field.name]
        if _tables_of(hint):
            tables.append((f"{where}.{field.name}" if where else field.name, value, _is_array(hint)))
        else:
            yield f"# {field.name} is not set" if value is None else f"{field.name} = {_toml_value(value)}"
    for name, value, is_array in tables:
        for table in value if is_array else (value,):
            yield ""
            yield f"[[{name}]]" if is_array else f"[{name}]"
            yield from _toml_lines(table, name)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    # JSON's notation of strings, whole numbers and booleans is TOML's, but for one control character it leaves as is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(value: Any) -> str:
    """Show what came, on one line and not at length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
