"""What the objective computes in its own way, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from mbretrieve.training.objective import _unit_rows


@pytest.mark.parametrize("width", [16, 7])
def test_rows_of_unit_length_are_torchs_and_so_are_their_gradients(width: int) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(count, 16, dtype=torch.float64, requires_grad=True) for count in (5, 0, 3)]
    copies = [part.detach().clone().requires_grad_() for part in parts]
    weights = torch.randn(8, width, dtype=torch.float64)
    ours = _unit_rows(width, parts)
    theirs = torch.cat([F.normalize(part[:, :width], dim=1) for part in copies])
    torch.testing.assert_close(ours, theirs)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for part, copy in zip(parts, copies, strict=True):
        torch.testing.assert_close(part.grad, copy.grad)


def test_a_row_of_zeros_is_no_division_by_zero() -> None:
    part = torch.zeros(2, 4, requires_grad=True)
    _unit_rows(4, [part]).sum().backward()
    assert part.grad is not None
    assert torch.isfinite(part.grad).all()
