"""Reading and writing a checkpoint's small JSON files; what is wrong with one is said in one line."""

import json
from pathlib import Path
from typing import Any

from mbretrieve.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one. Raises: ModelError if it is something else."""
    if not path.is_file():
        return {}
    value = _parse(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects. Raises: ModelError if it is something else."""
    value = _parse(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelError(f"{path} holds no list of objects")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def one_line(error: BaseException) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split())


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON: {one_line(error)}") from error
