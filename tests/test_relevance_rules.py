"""Every rule of relevance propagation against a slow one written from its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trompe import TrompeError
from trompe.explainers.relevance import (
    AlphaBeta,
    Box,
    Choice,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    Tape,
    WSquare,
    propagate,
)
from trompe.explainers.relevance.folding import fold_batch_norm
from trompe.explainers.relevance.operations import WEIGHTED
from trompe.explainers.relevance.summation import summations

STABILISER = 0.01


def by_rule(model, x, relevance, rule, fold=False):
    """Relevance of ``x`` for that of ``model(x)``, all sums by one rule."""
    composite = Composite("one rule", tuple(Choice(rule, kind) for kind in rule.kinds))
    tape = Tape(model, keep=["batch_norm"])
    with torch.no_grad(), tape:
        live = x.clone()
        value = tape.start(x, live)
        output = tape.value(model(live))
    with torch.no_grad():
        first = tape.operations[0]
        if first.kind in WEIGHTED:
            assert summations(first, x.dtype)[0].nonnegative == bool((x >= 0).all())
        return propagate(tape, output, relevance, composite, {value}, fold=fold)[value]


# The slow rules work on matrices: w [outputs, inputs] is the Jacobian of the layer without its
# bias, b [outputs] the bias, a [inputs], r [outputs].


def matrices(layer, x):
    w = torch.autograd.functional.jacobian(lambda a: layer(a[None])[0], x)
    b = layer(torch.zeros_like(x)[None])[0].flatten().detach()
    return w.reshape(len(b), -1), b


def stabilised(z):
    return z + STABILISER * torch.where(z >= 0, 1, -1).to(z)


def shared(parts, constant, r):
    """Relevance in proportion to ``parts [outputs, inputs]`` of z = Σ parts + constant."""
    return (parts / stabilised(parts.sum(1) + constant)[:, None] * r[:, None]).sum(0)


def slow_epsilon(w, b, a, r):
    return shared(w * a, b, r)


def slow_alpha_beta(alpha, beta):
    def rule(w, b, a, r):
        positive = shared((w * a).clamp(min=0), b.clamp(min=0), r)
        return alpha * positive + beta * shared((w * a).clamp(max=0), b.clamp(max=0), r)

    return rule


def slow_gamma(gamma):
    def rule(w, b, a, r):
        z = w * a
        total = z.sum(1) + b
        up = shared(z + gamma * z.clamp(min=0), b + gamma * b.clamp(min=0), r * (total > 0))
        down = shared(z + gamma * z.clamp(max=0), b + gamma * b.clamp(max=0), r * (total < 0))
        return up + down

    return rule


def slow_w_square(w, b, a, r):
    return shared(w**2, 0, r)


def slow_flat(w, b, a, r):
    return shared((w != 0).to(w), 0, r)


def slow_box(w, b, a, r):
    low, high = -3.0, 2.0
    return shared(w * a - low * w.clamp(min=0) - high * w.clamp(max=0), 0, r)


RULES = [
    (Epsilon(STABILISER), slow_epsilon),
    (AlphaBeta(1, 0, STABILISER), slow_alpha_beta(1, 0)),
    (AlphaBeta(2, -1, STABILISER), slow_alpha_beta(2, -1)),
    (AlphaBeta(0.5, 0.5, STABILISER), slow_alpha_beta(0.5, 0.5)),
    (Gamma(0.25, STABILISER), slow_gamma(0.25)),
    (Gamma(2.0, STABILISER), slow_gamma(2.0)),
    (WSquare(STABILISER), slow_w_square),
    (Flat(STABILISER), slow_flat),
    (Box(-3.0, 2.0, STABILISER), slow_box),
]
EVERY = [pytest.param(rule, slow, id=str(rule)) for rule, slow in RULES]
FOR_SUMS = [pytest.param(rule, slow, id=str(rule)) for rule, slow in RULES if "sum" in rule.kinds]


def assert_follows(model, x, rule, slow, generator):
    relevance = torch.randn(model(x).shape, generator=generator, dtype=torch.float64)
    ours = by_rule(model, x, relevance, rule)
    w, b = matrices(model, x[0])
    theirs = slow(w, b, x[0].flatten(), relevance[0].flatten()).view_as(x[0])
    torch.testing.assert_close(ours[0], theirs, rtol=1e-8, atol=1e-8)


def random_like(layer, generator):
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


@pytest.mark.parametrize(("rule", "slow"), EVERY)
@given(
    seed=st.integers(0, 10_000),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from([0, 1, (0, 1), "valid", "same"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    signed=st.booleans(),
    with_bias=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_convolutions(
    rule, slow, seed, kernel, stride, padding, dilation, groups, signed, with_bias
):
    generator = torch.Generator().manual_seed(seed)
    options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": with_bias}
    stride = 1 if padding == "same" else stride
    layer = random_like(nn.Conv2d(4, 8, kernel, stride, **options).double(), generator)
    x = torch.randn(1, 4, 6, 5, generator=generator, dtype=torch.float64)
    assert_follows(layer, x if signed else x.abs(), rule, slow, generator)


@pytest.mark.parametrize(("rule", "slow"), EVERY)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Linear(3, 4, bias=False), (5, 3)),
        (nn.Conv1d(2, 3, 3, 2, 1), (2, 7)),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
        (nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), (2, 3, 4)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_layers_with_weights(rule, slow, layer, shape):
    generator = torch.Generator().manual_seed(0)
    layer = random_like(layer.double(), generator)
    for x in (torch.randn(1, *shape, generator=generator, dtype=torch.float64),):
        assert_follows(layer, x, rule, slow, generator)
        assert_follows(layer, x.abs(), rule, slow, generator)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(mode):
    generator = torch.Generator().manual_seed(0)
    layer = random_like(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode).double(), generator)
    x = torch.randn(1, 2, 5, 6, generator=generator, dtype=torch.float64)
    assert_follows(layer, x, Epsilon(STABILISER), slow_epsilon, generator)


GRID = torch.linspace(-1, 1, 30, dtype=torch.float64).view(1, 1, 6, 5)


def written(x):
    canvas = torch.zeros(1, 3, 6, 5, dtype=torch.float64)
    canvas[:, :2] = x
    canvas[:, 2:] = GRID
    return canvas


SIGNED = {
    "joined with coordinates": lambda x: torch.cat([x, GRID], 1),
    "stacked with a constant": lambda x: torch.stack([x, GRID.expand_as(x)], 2).flatten(1, 2),
    "less its transpose": lambda x: torch.add(x, x.flip(-1), alpha=-2),
    "times a constant": lambda x: x * GRID,
    "times a number": lambda x: torch.mul(x, -1.0),
    "plus a number": lambda x: x + -1.0,
    "padded": lambda x: nn.functional.pad(x, (1, 1), value=-2.0),
    "filled": lambda x: x.masked_fill(GRID < 0, -1.0),
    "chosen": lambda x: torch.where(GRID < 0, GRID, x),
    "scaled in place": lambda x: x.clone().mul_(-0.5),
    "averaged with a negative scale": lambda x: (-x).mean(1, keepdim=True),
    "clamped": lambda x: (x - 1).clamp(-0.5, 0.5),
    "leaky": lambda x: nn.functional.leaky_relu(x - 1),
    "hard tanh": lambda x: nn.functional.hardtanh(x - 1, max_val=1.0),
    "written into a canvas": written,
}


@pytest.mark.parametrize("mix", SIGNED.values(), ids=SIGNED)
def test_signs_of_inputs_are_those_of_their_numbers(mix):
    """z⁺ at a convolution, whatever computed its input from non-negative numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 6, 5, generator=generator, dtype=torch.float64)
    mixed = mix(x)
    assert (mixed < 0).any()
    layer = random_like(nn.Conv2d(mixed.shape[1], 3, 3, padding=1).double(), generator)
    relevance = torch.randn(layer(mixed).shape, generator=generator, dtype=torch.float64)
    tape = Tape(layer)
    with torch.no_grad(), tape:
        live = x.clone()
        tape.start(x, live)
        output = tape.value(layer(mix(live)))
    (at,) = (o.inputs[0] for o in tape.operations if o.name == "conv2d")
    composite = Composite("z-plus", (Choice(AlphaBeta(1, 0, STABILISER), "convolution"),))
    with torch.no_grad():
        ours = propagate(tape, output, relevance, composite.extended("", *REST), {at})[at]
    w, b = matrices(layer, mixed[0])
    theirs = slow_alpha_beta(1, 0)(w, b, mixed.flatten(), relevance.flatten())
    torch.testing.assert_close(ours.flatten(), theirs, rtol=1e-8, atol=1e-8)


REST = [Choice(Epsilon(), kind) for kind in ("sum", "average-pool")]


class Times(nn.Module):
    def __init__(self, function, *weights):
        super().__init__()
        self.function, self.weights = function, weights

    def forward(self, a):
        return self.function(a, *self.weights)


W, V = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PRODUCTS_WITH_CONSTANTS = {
    "a @ w": Times(torch.matmul, W),
    "w @ a": Times(lambda a, w: w @ a, W),
    "bmm": Times(torch.bmm, W.expand(3, 4, 4)),
    "addmm": Times(lambda a, w, b: torch.addmm(b, a[0], w), W, V[0]),
    "baddbmm": Times(lambda a, w, b: torch.baddbmm(b, a, w.expand_as(a), alpha=0.5), W, V),
    "einsum": Times(lambda a, w: torch.einsum("nij,jk->nki", a, w), W),
    "tensordot": Times(lambda a, w: torch.tensordot(a, w, ([1], [0])), W),
    "mv": Times(lambda a, w: torch.mv(w, a[0, 0]), W),
    "a weight of the image's form": Times(lambda a, w: torch.bmm(a, w.expand_as(a)), W),
}


@pytest.mark.parametrize(("rule", "slow"), EVERY)
@pytest.mark.parametrize("model", PRODUCTS_WITH_CONSTANTS.values(), ids=PRODUCTS_WITH_CONSTANTS)
def test_products_with_constants_are_linear_layers(rule, slow, model):
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = model(x)
    relevance = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    w = torch.autograd.functional.jacobian(model, x).reshape(out.numel(), -1)
    b = model(torch.zeros_like(x)).flatten()
    for a in (x, x.abs()):
        theirs = slow(w, b, a.flatten(), relevance.flatten())
        ours = by_rule(model, a, relevance, rule).flatten()
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_products_with_several_constants_take_epsilon():
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Times(lambda a, w, v: torch.einsum("nij,jk,kl->nil", a, w, v), W, V)
    ours = by_rule(model, x, torch.ones_like(x), Epsilon(STABILISER))
    w = torch.autograd.functional.jacobian(model, x).reshape(x.numel(), -1)
    theirs = slow_epsilon(w, 0, x.flatten(), torch.ones(x.numel(), dtype=torch.float64))
    torch.testing.assert_close(ours.flatten(), theirs, rtol=1e-8, atol=1e-8)


PRODUCTS_OF_TWO = {
    "matmul": lambda a: (a, a.flip(0).tanh().atan(), torch.matmul),
    "einsum": lambda a: (a, a.square(), lambda p, q: torch.einsum("nij,nkj->nik", p, q)),
    "with its own transpose": lambda a: (a, a.mT, torch.matmul),
}


@pytest.mark.parametrize("factors", PRODUCTS_OF_TWO.values(), ids=PRODUCTS_OF_TWO)
def test_factors_of_a_product_share_alike_each_by_epsilon(factors):
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right, multiply = factors(x)
    left, right = left.clone(), right.clone()
    z = multiply(left, right)
    relevance = torch.randn(
        z.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    tape = Tape(nn.Identity())
    with torch.no_grad(), tape:
        starts = [tape.start(tensor, tensor) for tensor in (left, right)]
        output = tape.value(multiply(left, right))
    composite = Composite("epsilon", tuple(EPSILON))
    with torch.no_grad():
        ours = propagate(tape, output, relevance, composite, {*starts})
    jacobians = torch.autograd.functional.jacobian(multiply, (left, right))
    for start, factor, jacobian in zip(starts, (left, right), jacobians, strict=True):
        w = jacobian.reshape(z.numel(), -1)
        theirs = slow_epsilon(w, 0, factor.flatten(), relevance.flatten() / 2)
        torch.testing.assert_close(ours[start].flatten(), theirs, rtol=1e-8, atol=1e-8)


EPSILON = [Choice(Epsilon(STABILISER), kind) for kind in Epsilon.kinds]


class Difference(nn.Module):
    def __init__(self, other, scale):
        super().__init__()
        self.other, self.scale = other, scale

    def forward(self, a):
        return torch.sub(self.other, a, alpha=self.scale)


class Sum(Difference):
    def forward(self, a):
        return torch.add(a, self.other, alpha=self.scale) + 1.5


@pytest.mark.parametrize(("rule", "slow"), FOR_SUMS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_averages(rule, slow, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, 5, 4, generator=generator, dtype=torch.float64)
    for pool in (
        nn.AvgPool2d(2, 1, padding=1),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.AdaptiveAvgPool2d((7, 7)),
        nn.AdaptiveAvgPool2d(1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ):
        assert_follows(pool, x, rule, slow, generator)
        assert_follows(pool, x.abs(), rule, slow, generator)


def test_bicubic_interpolation_has_negative_weights():
    pool = nn.Upsample(scale_factor=2, mode="bicubic")
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_follows(pool, x, Epsilon(STABILISER), slow_epsilon, torch.Generator().manual_seed(1))
    with pytest.raises(TrompeError, match="of the kind 'product'"):
        by_rule(pool, x, pool(x), AlphaBeta())


@pytest.mark.parametrize(("rule", "slow"), FOR_SUMS)
@pytest.mark.parametrize("kind", [Sum, Difference])
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 0.5, 3.0]))
@settings(max_examples=10, deadline=None)
def test_sums_and_differences_with_a_constant(kind, rule, slow, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    x, other = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64)
    relevance = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ours = by_rule(kind(other, scale), x[None], relevance[None], rule)[0].flatten()
    a, r = x.flatten(), relevance.flatten()
    if kind is Sum:
        inner = torch.stack([a, scale * other.flatten()], 1)
        outer = torch.stack([inner.sum(1), torch.full_like(a, 1.5)], 1)
        for parts in (outer, inner):
            ones = torch.ones(1, 2, dtype=torch.float64)
            r = torch.stack(
                [slow(ones, torch.zeros(1), p, q[None])[0] for p, q in zip(parts, r, strict=True)]
            )
    else:
        parts = torch.stack([-scale * a, other.flatten()], 1)
        ones = torch.ones(1, 2, dtype=torch.float64)
        r = torch.stack(
            [slow(ones, torch.zeros(1), p, q[None])[0] for p, q in zip(parts, r, strict=True)]
        )
    torch.testing.assert_close(ours, r, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_linear_at_a_fixed_deviation(affine):
    generator = torch.Generator().manual_seed(0)
    layer = random_like(nn.LayerNorm([3, 4], elementwise_affine=affine).double(), generator)
    x = torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64)
    deviation = (x.var((-2, -1), correction=0, keepdim=True) + layer.eps).sqrt()

    class Fixed(nn.Module):
        def forward(self, a):
            centred = (a - a.mean((-2, -1), keepdim=True)) / deviation
            return centred * layer.weight + layer.bias if affine else centred

    relevance = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    ours = by_rule(layer, x, relevance, Epsilon(STABILISER))
    w, b = matrices(Fixed(), x[0])
    theirs = slow_epsilon(w, b, x.flatten(), relevance.flatten())
    torch.testing.assert_close(ours.flatten(), theirs, rtol=1e-8, atol=1e-8)
    assert torch.equal(by_rule(layer, x, relevance, Pass()), relevance)


@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([1.0, 2.0]), stride=st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_alpha_beta_without_stabiliser_conserves_whatever_the_signs(seed, alpha, stride):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(2, 4, 2, stride, groups=2, bias=False).double()
    random_like(layer, generator)
    x = torch.randn(1, 2, 5, 5, generator=generator, dtype=torch.float64)
    x *= torch.rand(x.shape, generator=generator) > 0.5
    reached = layer(x) != 0
    relevance = torch.randn(reached.shape, generator=generator, dtype=torch.float64) * reached
    arrived = by_rule(layer, x, relevance, AlphaBeta(alpha, 1 - alpha, 0.0))
    torch.testing.assert_close(arrived.sum(), relevance.sum())


def test_box_bounds_per_channel():
    generator = torch.Generator().manual_seed(0)
    layer = random_like(nn.Conv2d(2, 3, 3).double(), generator)
    x = torch.randn(1, 2, 5, 5, generator=generator, dtype=torch.float64)
    relevance = torch.randn(1, 3, 3, 3, generator=generator, dtype=torch.float64)
    low, high = torch.tensor([-3.0, -1.0]), torch.tensor([2.0, 4.0])
    w, _ = matrices(layer, x[0])
    low_at, high_at = (bound.double()[:, None].expand(2, 25).flatten() for bound in (low, high))
    parts = w * x.flatten() - low_at * w.clamp(min=0) - high_at * w.clamp(max=0)
    ours = by_rule(layer, x, relevance, Box((-3.0, -1.0), (2.0, 4.0), STABILISER))
    theirs = shared(parts, 0, relevance.flatten())
    torch.testing.assert_close(ours.flatten(), theirs, rtol=1e-8, atol=1e-8)


def batch_norm(channels, generator, dims=2):
    norm = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(channels).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data = torch.randn(channels, generator=generator, dtype=torch.float64)
    norm.running_var = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5
    return norm


@pytest.mark.parametrize(("rule", "slow"), EVERY)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_folded_batch_norm_is_one_layer_with_its_neighbour(rule, slow, groups, order):
    generator = torch.Generator().manual_seed(0)
    layer = random_like(nn.Conv2d(4, 6, 3, 2, 1, groups=groups).double(), generator)
    norms = (batch_norm(4, generator), batch_norm(6, generator))
    chain = {"before": [layer, norms[1]], "after": [norms[0], layer]}
    model = nn.Sequential(*chain.get(order, [norms[0], layer, norms[1]]))
    x = torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64)
    relevance = torch.randn(model(x).shape, generator=generator, dtype=torch.float64)
    ours = by_rule(model, x, relevance, rule, fold=True)
    w, b = matrices(model, x[0])
    theirs = slow(w, b, x.flatten(), relevance.flatten())
    torch.testing.assert_close(ours.flatten(), theirs, rtol=1e-8, atol=1e-8)


def test_folding_into_a_linear_layer():
    generator = torch.Generator().manual_seed(0)
    layer = random_like(nn.Linear(4, 6).double(), generator)
    for model in (
        nn.Sequential(layer, batch_norm(6, generator, 1)),
        nn.Sequential(batch_norm(4, generator, 1), layer),
    ):
        x = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        relevance = torch.randn(1, 6, generator=generator, dtype=torch.float64)
        w, b = matrices(model, x[0])
        ours = by_rule(model, x, relevance, Epsilon(STABILISER), fold=True)[0]
        theirs = slow_epsilon(w, b, x[0], relevance[0])
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_folding_needs_fixed_statistics():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(TrompeError, match="'batch_norm' in module '1' uses the statistics of the"):
        by_rule(model, torch.ones(2, 2, 3, 3), torch.ones(2, 3, 3, 3), Epsilon(), fold=True)


def test_folding_leaves_alone_what_others_read():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.layer(x)
            return x + self.norm(x)

    model = Branching().eval()
    tape = Tape(model, keep=["batch_norm"])
    with torch.no_grad(), tape:
        x = torch.ones(1, 2, 3, 3)
        tape.start(x, x)
        model(x)
    assert fold_batch_norm(tape.operations, ()) == tape.operations


def test_rules_refuse_what_they_are_not_made_for():
    with pytest.raises(TrompeError, match=r"needs α \+ β = 1"):
        AlphaBeta(2, 1)
    with pytest.raises(TrompeError, match="can't pass through unchanged"):
        by_rule(nn.Conv2d(2, 3, 3), torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2), Pass())
