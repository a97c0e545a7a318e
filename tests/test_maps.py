"""Maps that are constant, next to it, or not finite."""

import pytest
import torch

from trompe import maps

SCALES = [maps.min_max, maps.by_maximum, maps.by_magnitude]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_constant_map_has_finite_values_and_gradients(scale, value, dtype):
    given = torch.full((2, 3, 4), value, dtype=dtype)
    given[1] = torch.arange(12).reshape(3, 4) - 4
    given.requires_grad_()
    heat = scale(given)
    (gradient,) = torch.autograd.grad((heat * torch.linspace(-1, 2, 12).view(3, 4)).sum(), given)
    assert heat.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[1].abs().sum() > 0
    if maps.is_empty(heat)[0] and not heat[0].any():
        assert not gradient[0].any()


@pytest.mark.parametrize("scale", SCALES)
def test_a_map_next_to_zero_has_finite_gradients(scale):
    smallest = torch.finfo(torch.float32).smallest_normal
    given = (torch.rand(1, 3, 4) * smallest).requires_grad_()
    heat = scale(given)
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1
    (gradient,) = torch.autograd.grad(heat.sum(), given)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_known_before_and_not_hidden(scale, wrong):
    given = torch.rand(3, 2, 2)
    given[1, 0, 1] = wrong
    assert maps.is_finite(given).tolist() == [True, False, True]
    if wrong != -float("inf") or scale is not maps.by_maximum:  # whose ReLU makes it 0
        assert maps.is_finite(scale(given)).tolist() == [True, False, True]


def test_correlation_with_a_constant_map_has_gradient_zero():
    first, second = torch.ones(1, 2, 3, requires_grad=True), torch.rand(1, 2, 3)
    found = maps.correlation(first, second)
    assert found.item() == 0
    assert not torch.autograd.grad(found.sum(), first)[0].any()
