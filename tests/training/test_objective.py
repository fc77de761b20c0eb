"""What the objective computes in its own way, against torch's."""

import pytest
import torch
import torch.nn.functional as F

from mbretrieve.training.objective import _unit_rows, fit_map


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


@pytest.mark.parametrize("count", [400, 40, 3])
def test_the_map_to_a_teacher_is_fitted_to_the_vectors_that_are_there(count: int) -> None:
    """A teacher's that are a linear function of the student's are met, and no worse than by any other map."""
    torch.manual_seed(0)
    student, linear = torch.randn(count, 16) * 3, torch.randn(16, 24)
    to_teacher = torch.nn.Linear(16, 24, bias=False)
    fit_map(to_teacher, student, F.normalize(student, dim=1) @ linear)
    met = F.cosine_similarity(to_teacher(student), student @ linear, dim=1)
    assert met.min() > 0.99

    noisy = F.normalize(student, dim=1) @ linear + torch.randn(count, 24)
    fit_map(to_teacher, student, noisy)
    error = (to_teacher(F.normalize(student, dim=1)) - noisy).square().sum()
    least = torch.linalg.lstsq(F.normalize(student, dim=1).double(), noisy.double())
    residual = (F.normalize(student, dim=1).double() @ least.solution - noisy).square().sum()
    assert error <= 1.05 * residual + 0.05 * noisy.square().sum()
