"""What numpy scores where torch is spared is what torch scores, and the switch is off unless it is asked for."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.scoring import (
    CompressedTokens,
    maxsim_codes,
    maxsim_compressed,
    maxsim_ragged_batch,
    maxsim_rows,
    spares_torch,
)

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(seed=st.integers(0, 999), query=st.integers(1, 70), lengths=LENGTHS, half=st.booleans(), some=st.booleans())
def test_rows_score_as_with_torch(seed: int, query: int, lengths: list[int], half: bool, some: bool) -> None:
    bounds = np.cumsum([0, *lengths])
    asked, tokens = draw(seed, query, 6), draw(seed + 1, bounds[-1], 6).astype(np.float16 if half else np.float32)
    rows = np.arange(0, len(lengths), 2) if some else None
    expected = maxsim_ragged_batch([torch.from_numpy(asked)], torch.from_numpy(tokens), torch.from_numpy(bounds), rows)
    np.testing.assert_allclose(maxsim_rows(asked, tokens, bounds, rows), expected[0], rtol=1e-5, atol=1e-5)


@given(
    seed=st.integers(0, 999),
    query=st.integers(1, 70),
    lengths=LENGTHS,
    layout=st.sampled_from([(8, 1), (4, 1), (4, 2), (4, 4), (1, 1)]),
    spaced=st.booleans(),
    known=st.booleans(),
    some=st.booleans(),
)
def test_codes_score_as_with_torch(
    seed: int, query: int, lengths: list[int], layout: tuple[int, int], spaced: bool, known: bool, some: bool
) -> None:
    width, stages = layout
    groups, random = 24 // width, np.random.default_rng(seed)
    bounds = np.cumsum([0, *lengths])
    residuals = draw(seed + 1, stages, groups, 256, width)
    if spaced:
        residuals = residuals[:, :, :1] + np.arange(256, dtype=np.float32)[:, None] * residuals[:, :, 1:2] / 50
    tokens = CompressedTokens(
        draw(seed, 5, 24),
        residuals,
        random.integers(0, 5, bounds[-1], dtype=np.uint16),
        random.integers(0, 256, (bounds[-1], stages * groups + 1), dtype=np.uint8),
    )
    asked = draw(seed + 2, query, 24)
    rows = np.arange(0, len(lengths), 2) if some else None
    expected = maxsim_compressed([torch.from_numpy(asked)], tokens, torch.from_numpy(bounds), rows).numpy()
    coarse = asked @ tokens.centroids.T if known else None
    np.testing.assert_allclose(
        maxsim_codes(asked, tokens, bounds, rows, coarse), expected[0], rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


def test_a_document_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="document 1 has no token"):
        maxsim_rows(draw(0, 2, 4), draw(1, 3, 4), np.array([0, 3, 3]))


def test_torch_is_spared_only_where_asked_for_and_not_there() -> None:
    assert not spares_torch()
    code = (
        "from mbretrieve.scoring import spares_torch, sparing_torch\n"
        "with sparing_torch():\n    print(spares_torch())\nprint(spares_torch())\n"
        "import torch\nwith sparing_torch():\n    print(spares_torch())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"]
