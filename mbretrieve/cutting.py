"""Documents longer than what a model reads at once, cut into windows; what is encoded of each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mbretrieve.types import Document, Encoder

OVERLAP = 8  # neighbouring windows share an eighth of their length, so that no sentence is only ever seen cut
CONTEXT_SHARE = 4  # a context may take a quarter of each window
JOINT = 2  # tokens kept free in a window: text cut out of its surroundings may tokenize a little longer


def passage(context: str, text: str) -> str:
    """Join a context and a text into what the model reads."""
    return f"{context}\n{text}" if context else text


def cut(offsets: NDArray[np.int64], start: int, end: int, room: int) -> list[tuple[int, int]]:
    """Cut the text at characters ``start`` to ``end`` into overlapping windows of at most ``room`` tokens.

    offsets: (tokens, 2) character ranges of the text's tokens. The windows are evenly spread, so that the last one is
    as long as the others; together they cover every character. Returns (start, end) character ranges.
    """
    count = len(offsets)
    if count <= room:
        return [(start, end)]
    step = room - room // OVERLAP
    windows = -(-(count - room) // step) + 1
    firsts = [round(i * (count - room) / (windows - 1)) for i in range(windows)]
    starts = [start, *(int(offsets[first, 0]) for first in firsts[1:])]
    ends = [*(int(offsets[first + room - 1, 1]) for first in firsts[:-1]), end]
    return list(zip(starts, ends, strict=True))


def windows_of(encoder: Encoder, documents: Sequence[Document]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return for each document the context put before each of its windows, and the windows' character ranges."""
    capacity = encoder.document_capacity
    joined = encoder.token_offsets([passage(document.context, document.text) for document in documents])
    result: list[tuple[str, list[tuple[int, int]]]] = []
    for document, offsets in zip(documents, joined, strict=True):
        if len(offsets) <= capacity:
            result.append((document.context, [(0, len(document.text))]))
            continue
        shift = len(document.context) + 1 if document.context else 0
        own = int(np.searchsorted(offsets[:, 0], shift))  # the context's tokens, then the text's
        context_room = min(own, capacity // CONTEXT_SHARE)
        context = document.context[: int(offsets[context_room - 1, 1])] if context_room else ""
        room = max(1, capacity - context_room - JOINT)
        result.append((context, cut(offsets[own:] - shift, 0, len(document.text), room)))
    return result
