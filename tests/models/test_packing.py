"""The laws of packing, on random lengths; what a device and a dtype may be named."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.errors import ModelError
from mbretrieve.models.device import default_device, default_dtype, resolve_device, resolve_dtype
from mbretrieve.models.packing import filling, pack, steps

LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@given(LENGTHS, st.integers(1, 120))
def test_every_text_travels_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert sum(lengths[index] for index in batch) <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 120))
def test_batches_are_full_and_neighbours_alike(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    order = [index for batch in batches for index in batch]
    assert order == sorted(order, key=lambda index: (-lengths[index], index))
    for before, after in pairwise(batches):
        assert sum(lengths[index] for index in before) + lengths[after[0]] > budget


def test_known_batches() -> None:
    assert pack([], 10) == []
    assert pack([3, 20, 5, 5, 2], 10) == [[1], [2, 3], [0, 4]]


@pytest.mark.parametrize(("lengths", "budget"), [([1], 0), ([0], 5), ([3, -1], 5)])
def test_nonsense_is_a_programming_error(lengths: list[int], budget: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pack(lengths, budget)


def test_devices() -> None:
    assert resolve_device(None) == default_device()
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match="'abacus'"):
        resolve_device("abacus")
    with pytest.raises(ModelError, match=r"device is 'cuda:0,cuda:1': .*mbretrieve.load_encoder"):
        resolve_device("cuda:0,cuda:1")
    for absent in ("meta", "xla", torch.device("cuda", 99)):
        with pytest.raises(ModelError, match=f"device is '{absent}', which torch cannot use here"):
            resolve_device(absent)


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype(None, cpu) == default_dtype(cpu)
    assert default_dtype(cpu) in (torch.float32, torch.bfloat16)
    assert default_dtype(torch.device("mps")) == torch.float32
    assert resolve_dtype("bf16", cpu) == resolve_dtype("bfloat16", cpu) == resolve_dtype(torch.bfloat16, cpu)
    for wrong in ("int8", torch.int8, ""):
        with pytest.raises(ModelError, match="dtype"):
            resolve_dtype(wrong, cpu)


@given(st.integers(1, 20_000))
@torch.no_grad()
def test_a_matrix_is_filled_to_one_of_few_lengths(rows: int) -> None:
    filled = rows + filling(torch.empty(rows, 1))
    assert filled <= 64 or filled % (16 if filled <= 512 else 64) == 0
    assert rows <= filled < rows + rows / 4
    assert filling(torch.empty(filled, 1)) == 0


def test_a_matrix_is_not_filled_where_gradients_are_kept_or_by_another_device() -> None:
    assert filling(torch.empty(100, 1)) == 0
    with torch.no_grad():
        assert filling(torch.empty(100, 1, device="meta")) == 0
        assert filling(torch.empty(100, 1)) == 12


def test_batches_for_graphs_have_one_of_few_sizes() -> None:
    filled = {rows: rows + steps(rows) for rows in range(1, 20_001)}
    assert all(rows <= size <= max(rows * 9 / 8, rows + 63) for rows, size in filled.items())
    assert len({size for rows, size in filled.items() if rows <= 8192}) < 50
    assert all(size % 64 == 0 and steps(size) == 0 for size in filled.values())
    assert filled[8192] == 8192
