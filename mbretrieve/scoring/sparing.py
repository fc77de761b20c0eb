"""Whether a process answers one question and ends: then it does without torch, if it can.

Importing torch takes several times as long as all else that a question of an index needs. What is computed in numpy
instead is the same within rounding; a process that goes on, or encodes documents, is faster with torch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SPARING = ContextVar("sparing torch", default=False)


@contextmanager
def sparing_torch() -> Iterator[None]:
    """Say that what is done in this block answers one question."""
    token = _SPARING.set(True)
    try:
        yield
    finally:
        _SPARING.reset(token)


def spares_torch() -> bool:
    """Tell whether to compute in numpy: where that was said, in a process that has not had to import torch."""
    return _SPARING.get() and "torch" not in sys.modules
