"""Functions written to be differentiated twice, against PyTorch's own."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, GradCAM, SimpleGrad, SmoothGrad
from trompe.explainers.twice import TwiceDifferentiable, gradients_between

CONVOLUTIONS = {
    "plain": ((4, 3, 3, 3), {}),
    "strided, padded": ((4, 3, 3, 2), {"stride": (2, 1), "padding": 1}),
    "dilated": ((2, 3, 2, 2), {"dilation": 2, "padding": (0, 1)}),
    "grouped": ((6, 1, 3, 3), {"groups": 3, "padding": 1}),
    "padding by name": ((4, 3, 3, 3), {"padding": "same"}),
    "1 x 1": ((5, 3, 1, 1), {"stride": 2}),
}


def double(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def batch_norm(x, weight, bias):
    mean, variance = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([1.0, 0.3, 4.0]).double()
    return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)


def cat(x, other, _):
    return torch.cat([x, other, x**2], dim=1)


def functions():
    torch.manual_seed(0)
    for name, (shape, geometry) in CONVOLUTIONS.items():
        for bias in (double(shape[0]), None):

            def convolve(x, weight, bias, geometry=geometry):
                return F.conv2d(x, weight, bias, **geometry)

            arguments = (double(2, 3, 6, 5), double(*shape), bias)
            yield pytest.param(convolve, arguments, id=f"{name}, {bias is not None}")
    for rows in ((5,), (2, 3)):
        for bias in (double(4), None):
            arguments = (double(*rows, 3), double(4, 3), bias)
            yield pytest.param(F.linear, arguments, id=f"linear, {rows}, {bias is not None}")
    yield pytest.param(cat, (double(2, 3, 4, 3), double(2, 1, 4, 3), None), id="cat")
    for bias in (double(3), None):
        arguments = (double(2, 3, 4, 3), double(3), bias)
        yield pytest.param(batch_norm, arguments, id=f"batch norm, {bias is not None}")


def penalty(function, arguments, mode, wanted):
    """Value, gradient in the input, and the derivatives of a loss of both."""
    with mode or nullcontext():
        value = function(*arguments)
    score = (value.sin() * torch.linspace(-1, 2, value.numel()).view_as(value)).sum()
    gradient = (
        gradients_between(score, arguments[:1], mode)
        if mode
        else torch.autograd.grad(score, arguments[:1], create_graph=True)
    )[0]
    return value, gradient, torch.autograd.grad((gradient**3).sum() + value.cos().sum(), wanted)


@pytest.mark.parametrize(("function", "arguments"), list(functions()))
class TestFunctions:
    def test_first_and_second_derivatives_are_pytorchs(self, function, arguments):
        wanted = [a for a in arguments if a is not None]
        value, gradient, second = penalty(function, arguments, TwiceDifferentiable(), wanted)
        expected = penalty(function, arguments, None, wanted)
        assert torch.equal(value, expected[0])
        torch.testing.assert_close(gradient, expected[1])
        torch.testing.assert_close(second, expected[2])

    def test_every_derivative_is_a_finite_difference(self, function, arguments):
        given = [a for a in arguments if a is not None]

        def written(*arguments):
            with TwiceDifferentiable():
                return function(*arguments, *[None] * (3 - len(given)))

        assert gradcheck(written, given)
        assert gradgradcheck(written, given, fast_mode=True)

    def test_gradients_of_gradients_without_weights_are_finite_differences(
        self, function, arguments
    ):
        given = [a for a in arguments if a is not None]

        def pulled(*arguments):
            mode = TwiceDifferentiable()
            with mode:
                value = function(*arguments, *[None] * (3 - len(given)))
            return gradients_between((value**2).sum(), [arguments[0]], mode)

        assert gradcheck(pulled, given)
        assert gradgradcheck(pulled, given, fast_mode=True)


def test_statistics_of_the_batch_stay_pytorchs():
    norm, x = nn.BatchNorm2d(3).double(), double(4, 3, 2, 2)
    with TwiceDifferentiable():
        value = norm(x)
    assert torch.equal(value, nn.BatchNorm2d(3).double()(x))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("classification", [True, False])
def test_a_linear_layer_explained_for_several_classes(classification):
    """Its weight is used by the logits, two gradients of one pass, and a layer that shares it."""
    torch.manual_seed(0)
    x, weight = double(4, 6), double(6, 6)

    def gradient(mode):
        with mode or nullcontext():
            logits = F.linear(F.linear(x, weight).tanh(), weight)
        loss = logits.logsumexp(1).sum() if classification else 0
        for index in range(2):
            score = (logits[:, index] ** 2).sum()
            if mode:
                (pulled,) = gradients_between(score, [x], mode, retain_graph=True)
            else:
                (pulled,) = torch.autograd.grad(score, x, create_graph=True)
            loss = loss + (pulled**2).sum()
        return torch.autograd.grad(loss, (x, weight), retain_graph=True)

    torch.testing.assert_close(gradient(TwiceDifferentiable()), gradient(None))


class TensorsMade(TorchDispatchMode):
    """Counts tensors of a size that operations take memory for."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and result.numel() == self.size:
            given = [a.data_ptr() for a in args if isinstance(a, torch.Tensor)]
            self.count += result.data_ptr() not in given
        return result


@pytest.mark.parametrize("explainer", [GradCAM(layer="1"), LRP(layer="1")])
def test_the_gradient_of_a_linear_layers_weight_is_made_once(explainer):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 53),
        nn.ReLU(inplace=True),
        nn.Linear(53, 2),
    )
    with explainer.record(model) as forward:
        logits = forward(torch.randn(2, 3, 4, 4))
        loss = F.cross_entropy(logits, torch.tensor([0, 1])) + (forward.maps(1) ** 2).sum()
    with TensorsMade(53 * 16) as made:
        loss.backward()
    assert made.count == 1


def test_the_second_derivative_of_max_pooling_keeps_channels_last():
    x = double(2, 4, 6, 6).detach().to(memory_format=torch.channels_last).requires_grad_()
    mode, arrived = TwiceDifferentiable(), []
    with mode:
        pooled = F.max_pool2d(x, 2)
    (gradient,) = gradients_between((pooled**3).sum(), [x], mode)
    pooled.register_hook(arrived.append)
    (gradient**2).sum().backward()
    expected = torch.autograd.grad((3 * F.max_pool2d(x, 2) ** 2).square().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert arrived[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("explainer", [SimpleGrad(), SmoothGrad(samples=2), GradCAM(layer="0")])
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_max_pooling_before_linear_operations_only(explainer, pool, layout):
    """Nothing arrives at the pooling's result then: its gradient does not depend on it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=layout)
    model.double()(x)
    assert_gradient_is_finite_difference(explainer, model.eval(), x, torch.tensor([0, 2]))


def test_frozen_weights_get_no_gradient():
    x, weight = double(2, 3, 4, 4), double(2, 3, 3, 3).detach()
    _, gradient, second = penalty(F.conv2d, (x, weight, None), None, [x])
    _, found, again = penalty(F.conv2d, (x, weight, None), TwiceDifferentiable(), [x])
    torch.testing.assert_close((found, again), (gradient, second))


class Checkpointed(nn.Module):
    """A small network that may compute its features again in the backward pass."""

    def __init__(self, again):
        super().__init__()
        self.again = again
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        if self.again:
            return self.head(checkpoint(self.features, x, use_reentrant=False))
        return self.head(self.features(x))


@pytest.mark.parametrize("explainer", [GradCAM(layer="features"), SimpleGrad(), LRP()], ids=str)
def test_models_with_checkpoints_of_their_own(explainer):
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model, images = Checkpointed(again).eval(), torch.randn(2, 3, 8, 8)
        with explainer.record(model) as forward:
            logits = forward(images)
            loss = forward.maps(0).square().sum() + logits.square().sum()
        found.append(torch.autograd.grad(loss, [*model.parameters()]))
    torch.testing.assert_close(*found)
