"""Masked-language modelling's masks: which tokens are to be guessed, and what stands in their place."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MASK_RATE = 0.3  # of ModernBERT (https://arxiv.org/abs/2412.13663), after https://arxiv.org/abs/2202.08005
_SHOWN_AS_MASK, _SHOWN_AS_OTHER = 0.8, 0.1  # of the chosen tokens; the rest are shown as they are


class Masked(NamedTuple):
    """What the model sees, (T,) int64, and which of its tokens it has to guess, (T,) bool."""

    inputs: NDArray[np.int64]
    chosen: NDArray[np.bool_]


def mask_tokens(
    ids: NDArray[np.int64],
    ordinary: NDArray[np.int64],
    mask_id: int,
    generator: np.random.Generator,
    rate: float = MASK_RATE,
) -> Masked:
    """Choose each ordinary token with probability ``rate``; show 80% of these as the mask, 10% as another, 10% as is.

    The split is BERT's (https://arxiv.org/abs/1810.04805), which ModernBERT's training kept: a model that only ever
    guessed behind masks would learn nothing about tokens that it sees. ``ordinary`` holds the ids, (N,), of the tokens
    that are not special: only they are chosen, and one of them is drawn where another token is shown.
    """
    is_ordinary = np.zeros(int(max(ids.max(initial=0), ordinary.max(), mask_id)) + 1, dtype=bool)
    is_ordinary[ordinary] = True
    chosen = is_ordinary[ids] & (generator.random(len(ids)) < rate)
    shown = generator.random(len(ids))
    others = generator.choice(ordinary, len(ids))
    inputs = np.where(chosen & (shown < _SHOWN_AS_MASK), mask_id, ids)
    as_other = chosen & (shown >= _SHOWN_AS_MASK) & (shown < _SHOWN_AS_MASK + _SHOWN_AS_OTHER)
    return Masked(np.where(as_other, others, inputs), chosen)
