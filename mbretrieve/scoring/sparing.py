"""Whether this process answers one question and ends: then it does without torch, if it can.

Importing torch takes several times as long as all else that a question of an index needs. What is computed in numpy
instead is the same within rounding; a process that goes on, or encodes documents, is faster with torch.
"""

import sys

_is_one_shot = False


def one_shot() -> None:
    """Say that this process answers one question and ends."""
    global _is_one_shot
    _is_one_shot = True


def spares_torch() -> bool:
    """Tell whether to compute in numpy: in a one-shot process that has not had to import torch."""
    return _is_one_shot and "torch" not in sys.modules
