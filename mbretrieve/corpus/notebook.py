"""Jupyter notebooks to passages, a cell each; what a cell printed is left out."""

import json

from mbretrieve.corpus.lines import Passage
from mbretrieve.corpus.records import SkipFile

_UNITS = {"code": "block", "markdown": "section", "raw": "section"}


def read_notebook(text: str) -> list[Passage]:
    """Return the cells that have any text; lines count through the cells, the cell's number is in ``extra["cell"]``.

    Raises: SkipFile if the file is no notebook, or an empty one.
    """
    try:
        notebook = json.loads(text)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] in _UNITS]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise SkipFile("malformed", f"no notebook of format 4: {type(error).__name__}: {error}") from None
    passages: list[Passage] = []
    line = 1
    for number, (cell, source) in enumerate(zip(cells, sources, strict=True), 1):
        last = line + source.count("\n")
        if source.strip():
            unit = _UNITS[cell["cell_type"]]
            passages.append(Passage(source, line, last, unit, f"cell {number}", "", {"cell": number}))
            line = last + 2  # with a blank line between
    if not passages:
        raise SkipFile("empty", "a notebook without text")
    return passages
