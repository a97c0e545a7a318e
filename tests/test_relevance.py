"""LRP against Zennit's values, slow rules in float64 from their definitions, and conservation."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.core import BasicHook
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Epsilon, Norm, Pass
from zennit.torchvision import ResNetBasicBlockCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from tests.models.small import images, make
from trompe import LRP, TrompeError
from trompe.explainers.relevance import COMPOSITES, Tape, propagate, register_operation
from trompe.explainers.relevance.rules import alpha_beta, epsilon, proportional, proportional_sum


class PositiveNorm(BasicHook):
    """Zennit's Norm on the positive parts of the inputs: the paper's rule for sums and averages."""

    def __init__(self):
        super().__init__(
            input_modifiers=[lambda x: x.clamp(min=0)],
            param_modifiers=[lambda p, _: p],
            output_modifiers=[lambda z: z],
            gradient_mapper=lambda out, outputs: [out / (outputs[0] + 1e-6)],
            reducer=lambda inputs, gradients: inputs[0] * gradients[0],
        )


ZENNIT = {
    "epsilon": [
        (Activation, Pass()),
        (Sum, Norm(stabilizer=1e-6)),
        (AvgPool, Norm(stabilizer=1e-6)),
        (BatchNorm, Pass()),
        (Convolution, Epsilon(epsilon=1e-6)),
        (Linear, Epsilon(epsilon=1e-6)),
    ],
    "heo2019": [
        (Activation, Pass()),
        (Sum, PositiveNorm()),
        (AvgPool, PositiveNorm()),
        (BatchNorm, Pass()),
        (Convolution, AlphaBeta(alpha=1, beta=0, stabilizer=0.01)),
        (Linear, Epsilon(epsilon=0.01)),
    ],
}


def zennit(model, x, classes, composite, canonizers):
    model = copy.deepcopy(model)
    if composite == "epsilon-plus":
        chosen = EpsilonPlus(canonizers=canonizers)
    else:
        chosen = LayerMapComposite(layer_map=ZENNIT[composite], canonizers=canonizers)
    with Gradient(model=model, composite=chosen) as attributor:
        hot = torch.eye(10, dtype=x.dtype)[classes]
        _, relevance = attributor(x.clone(), lambda out: out * hot)
    return relevance.sum(1)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon-plus", "heo2019"])
@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_values_are_zennits(name, composite):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "vgg11":
            features = torchvision.models.vgg.make_layers([16, "M", 32, "M", 32, 32, "M"])
            model = nn.Sequential(
                features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)
            )
            canonizers = []
        else:
            model = torchvision.models.resnet18(num_classes=10)
            canonizers = [ResNetBasicBlockCanonizer()]
        model = model.double().eval()
    x, classes = images(2, 32, torch.float64), torch.tensor([3, 7])
    ours = LRP(composite=composite)(model, x, classes).detach()
    theirs = zennit(model, x, classes, composite, canonizers)
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)


# The slow rules: every contribution of an input to an output, from the Jacobian.


def contributions(layer, x):
    """a_j · ∂z_i/∂a_j for one image: ``[outputs, inputs]``."""
    jacobian = torch.autograd.functional.jacobian(lambda a: layer(a[None])[0], x)
    return (jacobian * x).flatten(-x.dim()).flatten(0, -2)


def slow_alpha_beta(layer, x, relevance, alpha, beta, stabiliser):
    bias = torch.zeros_like(x)
    offset = layer(bias[None])[0].flatten()
    z = contributions(layer, x)
    result = torch.zeros(x.numel(), dtype=x.dtype)
    for i, r in enumerate(relevance.flatten()):
        for share, side in ((alpha, "min"), (beta, "max")):
            part, b = z[i].clamp(**{side: 0}), offset[i].clamp(**{side: 0})
            total = part.sum() + b
            total = total + (stabiliser if total >= 0 else -stabiliser)
            result += share * part / total * r
    return result.view_as(x)


def slow_epsilon(layer, x, relevance, stabiliser):
    offset = layer(torch.zeros_like(x)[None])[0].flatten()
    z = contributions(layer, x)
    total = z.sum(1) + offset
    total = total + torch.where(total >= 0, stabiliser, -stabiliser)
    return (z / total[:, None] * relevance.flatten()[:, None]).sum(0).view_as(x)


def by_rule(layer, x, relevance, rule, nonnegative=False):
    tape = Tape(layer)
    with torch.no_grad(), tape:
        live = x.clone()
        value = tape.start(x, x, live)
        assert value.nonnegative == bool((x >= 0).all())
        layer(live)
        (operation,) = tape.operations
        return rule(operation, relevance)[0]


@given(
    seed=st.integers(0, 10_000),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "valid"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    signed=st.booleans(),
    with_bias=st.booleans(),
    alpha=st.sampled_from([1.0, 2.0, 0.5]),
)
@settings(max_examples=40, deadline=None)
def test_convolution_rules_follow_their_definition(
    seed, kernel, stride, padding, dilation, groups, signed, with_bias, alpha
):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(
        2, 4, kernel, stride, padding, dilation=dilation, groups=groups, bias=with_bias
    ).double()
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 2, 6, 5, generator=generator, dtype=torch.float64)
    x = x if signed else x.abs()
    relevance = torch.randn(layer(x).shape, generator=generator, dtype=torch.float64)
    ours = by_rule(layer, x, relevance, alpha_beta(alpha, 1 - alpha, 0.01))
    slow = slow_alpha_beta(layer, x[0], relevance[0], alpha, 1 - alpha, 0.01)
    torch.testing.assert_close(ours[0], slow, rtol=1e-8, atol=1e-8)
    ours = by_rule(layer, x, relevance, epsilon(0.01))
    slow = slow_epsilon(layer, x[0], relevance[0], 0.01)
    torch.testing.assert_close(ours[0], slow, rtol=1e-8, atol=1e-8)


@given(seed=st.integers(0, 10_000), positive=st.booleans())
@settings(max_examples=25, deadline=None)
def test_average_and_sum_rules_follow_their_definition(seed, positive):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64)
    part = (lambda t: t.clamp(min=0)) if positive else (lambda t: t)
    for pool in (nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d((2, 3))):
        relevance = torch.randn(pool(x).shape, generator=generator, dtype=torch.float64)
        ours = by_rule(pool, x, relevance, proportional(1e-3, positive=positive))
        slow = slow_epsilon(pool, part(x[0]), relevance[0], 1e-3)
        torch.testing.assert_close(ours[0], slow, rtol=1e-8, atol=1e-8)

    class Add(nn.Module):
        def forward(self, a):
            return a + y

    relevance = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ours = by_rule(Add(), x, relevance, proportional_sum(1e-3, positive=positive))
    total = part(x) + part(y)
    total = total + torch.where(total >= 0, 1e-3, -1e-3)
    torch.testing.assert_close(ours, part(x) / total * relevance, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["vgg", "resnet", "densenet", "unseen"])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon-plus"])
def test_relevance_is_conserved_without_biases(name, composite):
    model = make(name, torch.float64)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.running_mean)
            nn.init.ones_(module.running_var)
            nn.init.ones_(module.weight)
    x = images(2, dtype=torch.float64)
    logit = model(x)[:, 2]
    for layer in ("input", None):
        total = LRP(layer=layer, composite=composite)(model, x, 2).sum((1, 2))
        torch.testing.assert_close(total, logit, rtol=2e-3, atol=1e-6)


class TestTape:
    def record(self, function, x):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(4, 2).double()

            def forward(self, a):
                return self.head(function(a))

        torch.manual_seed(0)
        model, tape = Model(), Tape(nn.Identity())
        with torch.no_grad(), tape:
            live = x.clone()
            start = tape.start(x, x, live)
            out = model(live)
            return tape, start, out, tape.value(out)

    @pytest.mark.parametrize(
        ("in_place", "plain"),
        [
            (lambda a: a.relu_(), lambda a: a.relu()),
            (lambda a: torch.relu_(a), lambda a: a.relu()),
            (lambda a: nn.functional.relu(a, inplace=True), lambda a: a.relu()),
            (lambda a: nn.functional.relu(a, True), lambda a: a.relu()),
            (lambda a: a.add_(a.clone()), lambda a: a + a.clone()),
            (lambda a: torch.cat(torch.chunk(a, 2, 1)[::-1], 1), lambda a: a[:, [2, 3, 0, 1]]),
        ],
    )
    def test_in_place_and_split_operations_are_like_plain_ones(self, in_place, plain):
        x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], dtype=torch.float64)
        found = []
        for function in (in_place, plain):
            tape, start, out, value = self.record(function, x)
            relevance = propagate(tape, value, out, COMPOSITES["epsilon"], {start})[start]
            found.append(relevance)
            assert torch.equal(start.tensor, x)
        torch.testing.assert_close(*found)

    def test_a_change_through_a_view_is_refused(self):
        def sly(a):
            flat = a.view(-1)
            flat.mul_(2)
            return a

        with pytest.raises(TrompeError, match="in place through a view"):
            self.record(sly, torch.ones(1, 4, dtype=torch.float64))

    def test_a_layer_that_the_output_ignores(self):
        class Ignores(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

            def forward(self, x):
                self.unused(x)
                return self.used(x).mean((2, 3))

        with pytest.raises(TrompeError, match="does not depend on"):
            LRP(layer="unused")(Ignores(), images(), 0)

    def test_a_registered_operation_works(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(torch.nan_to_num(self.stem(x)).mean((2, 3)))

        model = Scaled()
        with pytest.raises(TrompeError, match="nan_to_num"):
            LRP()(model, images(), 0)
        register_operation("pass", "nan_to_num")
        assert LRP()(model, images(), 0).shape == (3, 32, 32)
