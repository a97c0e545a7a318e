"""What the tape records, and the operations that pass, move or route relevance."""

import copy
import weakref

import pytest
import torch
from torch import nn

from tests.models.small import images, make
from trompe import LRP, Recording, TrompeError
from trompe.explainers.relevance import (
    COMPOSITES,
    Tape,
    find_composite,
    propagate,
    register_rule,
)
from trompe.explainers.relevance.operations import RULES, WEIGHTED
from trompe.explainers.sites import run


@torch.jit.script
def scripted(a: torch.Tensor):
    return a * a.sigmoid()


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return a

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def assigned(tensor, columns, other):
    tensor[:, columns] = other[:, columns]
    return tensor


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
            start = tape.start(x, live)
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

    @pytest.mark.parametrize(
        "function",
        [
            lambda a: torch.fft.irfft(torch.fft.rfft(a)),
            lambda a: torch.cumprod(a, 1),
            lambda a: torch.ops.aten.cumprod(a, 1),
            lambda a: nn.functional.log_softmax(a, 1),
        ],
        ids=["fft_irfft", "cumprod", "cumprod", "log_softmax"],
    )
    def test_an_operation_without_a_rule_is_named(self, function, request):
        tape, start, out, value = self.record(function, torch.ones(1, 4, dtype=torch.float64))
        name = request.node.callspec.id.rstrip("01")
        with pytest.raises(TrompeError, match=rf"'{name}' in the model's own .*_rule\('{name}'\)"):
            propagate(tape, value, out, find_composite("epsilon"), {start})

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda a: scripted(a), "called where LRP can't follow it, by TorchScript"),
            (lambda a: a + scripted(a), "called where LRP can't follow it, by TorchScript"),
            (lambda a: torch.from_numpy(a.detach().numpy()), "'numpy' in the model's own .* turns"),
            (lambda a: torch.tensor(a.tolist()).double(), "'tolist' in the model's own .* turns"),
            (lambda a: (a * 9).to(torch.int64).double(), "'to' in the model's own .* turns"),
            (
                lambda a: (
                    torch.quantize_per_tensor(a.float(), 0.1, 0, torch.qint8).dequantize().double()
                ),
                "'quantize_per_tensor' in the model's own .* turns",
            ),
        ],
        ids=["script", "script beside", "numpy", "list", "integers", "quantised"],
    )
    def test_where_the_trail_is_lost_is_said(self, function, message):
        with pytest.raises(TrompeError, match=message):
            self.record(function, torch.ones(1, 4, dtype=torch.float64))

    def test_a_scripted_module_is_named(self):
        class Inner(nn.Module):
            def forward(self, x):
                return x * x.sigmoid()

        model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(Inner()), nn.Flatten())
        with pytest.raises(
            TrompeError, match="is called where LRP can't follow it, by TorchScript"
        ):
            LRP()(model, images(), 0)

    def test_an_autograd_function_that_returns_its_input_changes_nothing(self):
        class Reversed(nn.Module):
            def forward(self, x):
                return Same.apply(x)

        model = nn.Sequential(nn.Conv2d(3, 4, 3), Reversed(), nn.ReLU(), nn.Flatten())
        plain = nn.Sequential(*(module for i, module in enumerate(model) if i != 1))
        torch.testing.assert_close(LRP()(model, images(), 0), LRP()(plain, images(), 0))

    @pytest.mark.parametrize(
        "function",
        [
            lambda a, canvas: canvas[:, :2].copy_(a[:, :2]) is None or canvas,
            lambda a, canvas: canvas[:, 1:].add_(a[:, 1:]) is None or canvas,
            lambda a, canvas: torch.exp(a[:, :2], out=canvas[:, :2]) is None or canvas,
        ],
    )
    def test_a_part_that_is_written_and_read_as_a_whole_is_refused(self, function):
        with pytest.raises(TrompeError, match="writes into a part of a tensor"):
            self.record(
                lambda a: function(a, torch.zeros(1, 4).double()), torch.ones(1, 4).double()
            )

    @pytest.mark.parametrize(
        ("written", "plain"),
        [
            (lambda a, c: c.copy_(a), lambda a, c: a),
            (lambda a, c: c.add_(a), lambda a, c: a + c),
            (lambda a, c: torch.add(a, a, out=c), lambda a, c: a + a),
            (lambda a, c: torch.exp(a, out=c), lambda a, c: a.exp()),
            (lambda a, c: torch.exp(a, out=a), lambda a, c: a.exp()),
            (lambda a, c: a.transpose_(0, 1).t_(), lambda a, c: a),
            (lambda a, c: a.masked_fill_(c > 2, 0.0), lambda a, c: a * (c <= 2)),
            (
                lambda a, c: assigned(c, slice(2), a),
                lambda a, c: torch.cat([a[:, :2], c[:, 2:]], 1),
            ),
            (
                lambda a, c: assigned(a.clone(), 1, c),
                lambda a, c: torch.cat([a[:, :1], c[:, 1:2], a[:, 2:]], 1),
            ),
        ],
    )
    def test_what_is_written_into_a_tensor_is_followed(self, written, plain):
        x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], dtype=torch.float64)
        found = []
        for function in (written, plain):
            constant = torch.arange(4.0, dtype=torch.float64)[None]
            tape, start, out, value = self.record(lambda a: function(a, constant), x)  # noqa: B023
            found.append(propagate(tape, value, out, find_composite("epsilon"), {start})[start])
        torch.testing.assert_close(*found)

    def test_a_rule_that_returns_something_else_is_refused(self):
        tape, start, out, value = self.record(torch.nan_to_num, torch.ones(1, 4).double())
        for wrong in ([], [torch.zeros(1, 3)], [torch.zeros(1, 4)] * 2):
            RULES["nan_to_num"] = lambda operation, relevance, wrong=wrong: wrong
            try:
                with pytest.raises(TrompeError, match=r"rule for .*'nan_to_num'.* \[\(1, 4\)\]"):
                    propagate(tape, value, out, find_composite("epsilon"), {start})
            finally:
                del RULES["nan_to_num"]

    @pytest.mark.parametrize("register", ["full_backward_hook", "full_backward_pre_hook"])
    def test_backward_hooks_change_nothing(self, register):
        model, x = make("resnet"), images(2)
        explainers = [LRP(), LRP(composite="epsilon", batch_norm="fold"), LRP(layer="layer3")]
        before = [explainer(model, x, 1) for explainer in explainers]
        for name in ("stem.0", "layer4.0.conv1", "layer4", "fc"):
            getattr(model.get_submodule(name), f"register_{register}")(lambda *_: None)
        for explainer, without in zip(explainers, before, strict=True):
            torch.testing.assert_close(explainer(model, x, 1), without)

    def test_a_registered_operation_works(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                return self.head(torch.nan_to_num(self.stem(x)).mean((2, 3)))

        model = Scaled()
        with pytest.raises(TrompeError, match=r"nan_to_num' in the model.*register_rule\("):
            LRP()(model, images(), 0)

        @register_rule("nan_to_num")
        def unchanged(operation, relevance):
            return [relevance]

        try:
            plain = copy.deepcopy(model)
            plain.forward = lambda x: plain.head(plain.stem(x).mean((2, 3)))
            torch.testing.assert_close(LRP()(model, images(), 0), LRP()(plain, images(), 0))
        finally:
            del RULES["nan_to_num"]

    def test_what_takes_only_the_form_of_a_tensor_is_not_followed(self):
        def masked(a):
            mask = a.new_zeros(a.shape)
            mask[:, :2] = 1
            return a * mask + torch.zeros_like(a) * (a > 0)

        x = torch.tensor([[1.0, -2.0, 3.0, 0.5]], dtype=torch.float64)
        tape, start, out, value = self.record(masked, x)
        relevance = propagate(tape, value, out, COMPOSITES["epsilon"], {start})[start]
        assert relevance[0, :2].abs().min() > 0

    def test_numbers_that_no_rule_reads_are_not_kept(self):
        model = make("resnet")
        outputs = {}

        def remember(name):
            return lambda module, args, output: outputs.update({name: weakref.ref(output)})

        for name in ("stem.0", "stem.1", "layer4.0.conv1"):
            model.get_submodule(name).register_forward_hook(remember(name))
        with torch.no_grad(), LRP().record(model) as forward:
            forward(images())
            assert outputs["stem.0"]() is None, "read by BatchNorm alone"
            assert outputs["layer4.0.conv1"]() is None, "read by BatchNorm alone"
            plain = forward.maps(2)
        with torch.no_grad(), LRP(batch_norm="fold").record(model) as forward:
            forward(images())
            assert outputs["stem.0"]() is not None, "folding may need it"
            assert not torch.equal(forward.maps(2), plain)

    def test_depth_counts_the_layers_with_weights_of_the_whole_network(self):
        model = make("resnet")
        counts = {}
        for layer in ("input", "layer4.1:input"):
            tape = Tape(model)
            with torch.no_grad():
                site = LRP(layer=layer).site(model)
                run(
                    model,
                    images(),
                    {site: lambda _, t, __, tape=tape: follow(tape, t)},
                    False,
                    tape,
                )
            counts[layer] = {o.path: o.depth for o in tape.operations if o.kind in WEIGHTED}
            assert tape.depth == 9
        assert counts["input"]["stem.0"] == 0
        assert counts["layer4.1:input"] == {
            k: v for k, v in counts["input"].items() if k.startswith(("layer4.1", "fc"))
        }


class TestAutocast:
    def test_what_is_recorded_runs_in_full_precision(self):
        model, x = make("resnet"), images(2)
        dtypes = {}
        for name in ("stem.0", "layer4.0.conv1", "fc"):
            model.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: dtypes.update({name: output.dtype})
            )
        with torch.autocast("cpu", torch.bfloat16):
            LRP(layer="layer3")(model, x, 2)
        full, half = torch.float32, torch.bfloat16
        assert dtypes == {"stem.0": half, "layer4.0.conv1": full, "fc": full}

    @pytest.mark.parametrize("batch_norm", ["pass", "fold"])
    def test_maps_and_gradients_at_the_input_are_those_in_full_precision(self, batch_norm):
        model, x = make("resnet"), images(2)
        explainer = LRP(composite="epsilon", batch_norm=batch_norm)
        found = []
        for enabled in (False, True):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                maps = explainer(model, x, 2)
            maps.square().sum().backward()
            found.append([maps.detach(), *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(*found)

    def test_half_precision_from_elsewhere_is_lifted(self):
        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 3, bias=False)
                self.factors = nn.Parameter(torch.randn(2, 4, 5))
                self.head = nn.Linear(4, 2, bias=False)

            def forward(self, x):
                x = self.stem(x).to(torch.bfloat16)
                weight = (self.factors[0] @ self.factors[1].T)[..., None, None]
                return self.head(nn.functional.conv2d(x, weight).relu_().mean((2, 3)))

        torch.manual_seed(0)
        model, x = Mixed(), images(2)
        with (
            torch.autocast("cpu", torch.bfloat16),
            LRP(composite="epsilon").record(model) as forward,
        ):
            logits, maps = forward(x), forward.maps(0)
        torch.testing.assert_close(maps.sum((1, 2)), logits[:, 0], rtol=1e-3, atol=0)


def follow(tape, tensor):
    with tape.paused():
        tape.start(tensor, tensor)
    return tensor


class TestProducts:
    @pytest.mark.parametrize("gate", [torch.sigmoid, nn.functional.hardsigmoid, torch.tanh])
    def test_a_gate_gets_nothing(self, gate):
        class Gated(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.squeeze = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                x = self.stem(x)
                return self.head((gate(self.squeeze(x)) * x).mean((2, 3)))

        torch.manual_seed(0)
        model = Gated().double()
        x = images(2, dtype=torch.float64)
        with torch.no_grad():
            factor = gate(model.squeeze(model.stem(x)))
        held = copy.deepcopy(model)
        held.forward = lambda x: held.head((factor * held.stem(x)).mean((2, 3)))
        torch.testing.assert_close(LRP()(model, x, 0), LRP()(held, x, 0))

    def test_a_divisor_gets_nothing(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                x = self.stem(x)
                return self.head((x / (x.mean((2, 3), keepdim=True) + 3)).mean((2, 3)))

        torch.manual_seed(0)
        model = Scaled().double()
        x = images(2, dtype=torch.float64)
        with torch.no_grad():
            factor = model.stem(x).mean((2, 3), keepdim=True) + 3
        held = copy.deepcopy(model)
        held.forward = lambda x: held.head((held.stem(x) / factor).mean((2, 3)))
        torch.testing.assert_close(LRP()(model, x, 0), LRP()(held, x, 0))

    def test_like_factors_share_alike(self):
        class Squared(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = (nn.Conv2d(3, 4, 1, bias=False) for _ in range(2))

            def forward(self, x):
                return (self.left(x) * self.right(x)).mean((2, 3))

        torch.manual_seed(0)
        model = Squared().double()
        x = images(2, dtype=torch.float64)
        explainers = [LRP(layer=layer, composite="epsilon") for layer in ("left", "right")]
        with Recording(model, explainers) as forward:
            logits = forward(x)
            left, right = forward.maps(1)
        torch.testing.assert_close(left, right)
        torch.testing.assert_close((left + right).sum((1, 2)), logits[:, 1], rtol=0, atol=1e-5)


class Halves(nn.Module):
    """f(signal, what a gate is made of): the left and the right half of the image."""

    def __init__(self, function):
        super().__init__()
        self.function, self.head = function, nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.head(self.function(x[..., :6], x[..., 6:]).mean((2, 3)))


def spread(g):
    return g.mean((2, 3), keepdim=True)


STRAIGHT = torch.linspace(0.1, 1, 4, dtype=torch.float64)
GATES = {
    "view": lambda g: g.sigmoid().view(g.shape),
    "reshape, permute": lambda g: g.sigmoid().permute(0, 2, 3, 1).reshape(1, 6, 6, 4).movedim(3, 1),
    "expand": lambda g: spread(g).sigmoid().expand(g.shape),
    "expand_as": lambda g: spread(g).sigmoid().expand_as(g),
    "repeat": lambda g: spread(g).sigmoid().repeat(1, 1, 6, 6),
    "interpolate": lambda g: nn.functional.interpolate(spread(g).sigmoid(), (6, 6)),
    "chunk": lambda g: torch.cat([g, g], 1).sigmoid().chunk(2, 1)[1],
    "split, unsqueeze": lambda g: g.sigmoid().unsqueeze(1).split(1, 1)[0].squeeze(1),
    "unbind, stack": lambda g: torch.stack(g.sigmoid().unbind(1), 1),
    "times a number": lambda g: 2 * g.sigmoid(),
    "times a constant": lambda g: g.sigmoid() * STRAIGHT.view(1, 4, 1, 1),
    "divided": lambda g: g.sigmoid() / 3,
    "one less": lambda g: 1 - g.sigmoid(),
    "plus a number": lambda g: g.sigmoid() + 1,
    "clamped": lambda g: g.sigmoid().clamp(0.2, 0.8),
    "cast": lambda g: g.sigmoid().float().double(),
    "in place": lambda g: g.sigmoid().mul_(2).add_(0.1),
    "dropped out": lambda g: nn.functional.dropout(g.sigmoid(), 0.5, False),
    "times another": lambda g: g.sigmoid() * g.softmax(1),
    "plus another": lambda g: (g.sigmoid() + g.flip(-1).tanh()) / 2,
    "rooted": lambda g: g.sigmoid().sqrt(),
    "pooled": lambda g: nn.functional.avg_pool2d(g.sigmoid(), 3, 1, 1),
    "maximum": lambda g: torch.maximum(g.sigmoid(), g.flip(-1).sigmoid()),
    "normalised": lambda g: g.sigmoid() / g.sigmoid().sum(1, keepdim=True),
    "padded": lambda g: nn.functional.pad(g[..., 1:-1].sigmoid(), (1, 1)),
    "contiguous, clone": lambda g: g.sigmoid().contiguous().clone(),
    "detached": lambda g: g.sigmoid().detach(),
    "softmax": lambda g: g.softmax(1),
    "softmin": lambda g: nn.functional.softmin(g, 1),
    "expit": torch.special.expit,
    "hard sigmoid": nn.functional.hardsigmoid,
    "hard sigmoid, written out": lambda g: nn.functional.relu6(g + 3) / 6,
    "hard sigmoid, clamped": lambda g: ((g + 3) / 6).clamp(0, 1),
    "tanh": torch.tanh,
    "gumbel": lambda g: nn.functional.softmax(g + 0.1, 1),
    "sigmoid, written out": lambda g: 1 / (1 + torch.exp(-g)),
    "softmax, written out": lambda g: g.exp() / g.exp().sum(1, keepdim=True),
    "no rule below": lambda g: torch.cumprod(g, 1).sigmoid(),
}
SIGNALS = {
    "a signal": lambda s: s,
    "of tanh": lambda s: s.tanh(),
    "relu6": nn.functional.relu6,
}


class TestGates:
    @pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
    @pytest.mark.parametrize("turned", [False, True])
    def test_gates_get_nothing_however_they_are_passed_on(self, gate, turned):
        def gated(s, g):
            return gate(g) * s if turned else s * gate(g)

        torch.manual_seed(0)
        model, x = Halves(gated).double(), torch.randn(1, 4, 6, 12, dtype=torch.float64)
        factor = gate(x[..., 6:])
        held = copy.deepcopy(model)
        held.function = lambda s, g: s * factor
        ours, theirs = (LRP(composite="epsilon")(m, x, 1) for m in (model, held))
        assert ours[..., 6:].abs().max() == 0
        torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
    def test_what_is_least_like_a_gate_is_the_signal(self, signal):
        torch.manual_seed(0)
        model = Halves(lambda s, g: signal(s) * g.sigmoid()).double()
        relevance = LRP(composite="epsilon")(model, torch.randn(1, 4, 6, 12).double(), 1)
        assert relevance[..., 6:].abs().max() == 0
        assert relevance[..., :6].abs().max() > 0

    @pytest.mark.parametrize(
        "join", [torch.add, torch.maximum, lambda s, g: torch.cat([s, g], -1)[..., 3:9]]
    )
    def test_a_gate_joined_with_a_signal_is_a_signal(self, join):
        torch.manual_seed(0)
        model = Halves(lambda s, g: join(s, g.sigmoid()) * s).double()
        relevance = LRP(composite="epsilon")(model, torch.randn(1, 4, 6, 12).double(), 1)
        assert relevance[..., 6:].abs().max() > 0

    def test_layers_make_features_of_what_saturates(self):
        """A network whose activation is a sigmoid has signals as well."""

        class Saturating(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.left, self.right = (nn.Conv2d(4, 4, 1) for _ in range(3))

            def forward(self, s, g):
                x = self.stem(torch.cat([s, g], -1)).sigmoid()
                return self.left(x)[..., :6] * self.right(x)[..., 6:].sigmoid()

        torch.manual_seed(0)
        model, x = Halves(Saturating()).double(), torch.randn(1, 4, 6, 12, dtype=torch.float64)
        relevance = LRP(composite="epsilon")(model, x, 1)
        assert relevance[..., 6:].abs().max() == 0

    def test_a_layer_that_only_computes_a_gate(self):
        class Excited(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.squeeze = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                x = self.stem(x)
                return self.head((self.squeeze(x).sigmoid() * x).mean((2, 3)))

        maps = LRP(layer="squeeze")(Excited(), images(), 1)
        assert maps.abs().max() == 0

    def test_weights_computed_from_the_image_get_nothing(self):
        class Dynamic(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(4, 2, bias=False)
                self.make = nn.Linear(4, 16)

            def kernel(self, g):
                return self.make(g.mean((2, 3))).softmax(1).view(4, 4, 1, 1)

            def forward(self, s, g):
                return nn.functional.conv2d(s, self.kernel(g))

        torch.manual_seed(0)
        model, x = Halves(Dynamic()).double(), torch.randn(1, 4, 6, 12, dtype=torch.float64)
        kernel = model.function.kernel(x[..., 6:]).detach()
        held = Halves(lambda s, g: nn.functional.conv2d(s, kernel)).double()
        held.head = model.head
        torch.testing.assert_close(LRP()(model, x, 1), LRP()(held, x, 1))


def attended(s, g):
    """Tokens [1, heads, tokens, features] as query, key and value, from the two halves."""
    tokens = (
        t.flatten(2).mT.unsqueeze(1).unflatten(-1, (2, 2)).transpose(2, 3)[:, 0] for t in (s, g)
    )
    return next(tokens), next(tokens)


def back(tokens, s):
    return tokens.transpose(1, 2).flatten(2).mT.view(s.shape)


MASK = torch.rand(36, 36, generator=torch.Generator().manual_seed(0)) > 0.4
ATTENTION = {
    "written out": lambda q, k, v: (q @ k.mT / 3).softmax(-1) @ v,
    "einsum": lambda q, k, v: torch.einsum(
        "bhij,bhjc->bhic", torch.einsum("bhic,bhjc->bhij", q, k).softmax(-1), v
    ),
    "mixed over heads": lambda q, k, v: torch.einsum(
        "gh,bhij,bhjc->bgic", MASK[:2, :2].double() + 1, (q @ k.mT).softmax(-1), v
    ),
    "cosine": lambda q, k, v: (
        (nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).mT).softmax(-1) @ v
    ),
    "fused": nn.functional.scaled_dot_product_attention,
    "fused, scaled": lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3),
    "fused, causal": lambda q, k, v: nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True
    ),
    "fused, masked": lambda q, k, v: nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=MASK | torch.eye(36, dtype=torch.bool)
    ),
    "fused, biased": lambda q, k, v: nn.functional.scaled_dot_product_attention(
        q, k, v, MASK.double()
    ),
}


class TestAttention:
    @pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)
    def test_what_is_attended_to_gets_all_relevance(self, attention):
        """As if the attention were a constant matrix, which is the Jacobian of the result."""

        def function(s, g):
            of_s, of_g = attended(s, g)
            return back(attention(of_g, of_g.flip(2), of_s), s)

        torch.manual_seed(0)
        model, x = Halves(function).double(), torch.randn(1, 4, 6, 12, dtype=torch.float64)
        s, g = x[..., :6], x[..., 6:]
        w = torch.autograd.functional.jacobian(lambda s: function(s, g), s).view(144, 144)
        held = copy.deepcopy(model)
        held.function = lambda s, g: (s.reshape(1, 144) @ w.T).view(s.shape)
        ours, theirs = (LRP(composite="epsilon")(m, x, 1) for m in (model, held))
        assert ours[..., 6:].abs().max() == 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


KERNEL = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens(x):
    return x.flatten(2).mT


def linear(x):
    return nn.functional.conv2d(x, KERNEL.T[:, :, None, None])


EQUALS = {
    "view_as": (lambda x: x.view_as(x.clone()), lambda x: x),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), lambda x: nn.functional.leaky_relu(x, 0.1)),
    "maximum": (lambda x: torch.maximum(x, 0.1 * x), lambda x: nn.functional.leaky_relu(x, 0.1)),
    "minimum": (lambda x: -torch.minimum(-x, -0.1 * x), lambda x: nn.functional.leaky_relu(x, 0.1)),
    "matmul": (lambda x: (tokens(x) @ KERNEL).mT.reshape(x.shape), linear),
    "linear": (
        lambda x: nn.functional.linear(tokens(x), KERNEL.T).mT.reshape(x.shape),
        linear,
    ),
    "einsum": (lambda x: torch.einsum("nchw,cd->ndhw", x, KERNEL), linear),
    "einsum of one": (lambda x: torch.einsum("nchw->nwhc", x), lambda x: x.permute(0, 3, 2, 1)),
    "einsum that sums": (lambda x: torch.einsum("nchw->nch", x), lambda x: x.sum(3)),
    "bmm": (
        lambda x: torch.bmm(tokens(x), KERNEL.expand(len(x), 4, 4)).mT.reshape(x.shape),
        linear,
    ),
    "pool with indices": (
        lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: nn.functional.max_pool2d(x, 2),
    ),
    "adaptive pool with indices": (
        lambda x: nn.functional.adaptive_max_pool2d(x, 2, return_indices=True)[0],
        lambda x: nn.functional.adaptive_max_pool2d(x, 2),
    ),
    "normalize": (nn.functional.normalize, lambda x: x / x.norm(dim=1, keepdim=True)),
    "stack, pad, roll": (
        lambda x: torch.roll(nn.functional.pad(torch.stack([x], 1).squeeze(1), (1, 1)), 1, 3),
        lambda x: nn.functional.pad(x, (2, 0)),
    ),
    "pixel shuffle": (
        lambda x: nn.functional.pixel_unshuffle(nn.functional.pixel_shuffle(x, 2), 2),
        lambda x: x,
    ),
    "power": (lambda x: (x**2) ** 0.5, torch.abs),
    "square": (lambda x: x.square().sqrt(), torch.abs),
    "one over": (lambda x: 1 / (1 / x), lambda x: x),
    "glu": (
        lambda x: nn.functional.glu(torch.cat([x, x], 1), 1),
        lambda x: x * x.detach().clone().sigmoid(),
    ),
    "addcmul": (
        lambda x: torch.addcmul(KERNEL.view(1, 4, 4, 1)[..., :1, :], x, KERNEL[0].view(4, 1, 1)),
        lambda x: KERNEL.view(1, 4, 4, 1)[..., :1, :] + x * KERNEL[0].view(4, 1, 1),
    ),
    "gelu": (nn.functional.gelu, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
    "two to the power": (lambda x: (2**x).log2(), lambda x: x),
    "reflected": (lambda x: 1 - (1 - x), lambda x: x + 0.0),
    "lp pool": (
        lambda x: nn.functional.lp_pool2d(x.relu(), 1, 2),
        lambda x: nn.functional.avg_pool2d(x.relu(), 2) * 4,
    ),
    "mish": (nn.functional.mish, lambda x: x * nn.functional.softplus(x).tanh()),
    "silu": (nn.functional.silu, lambda x: x * x.sigmoid()),
    "hardswish": (nn.functional.hardswish, lambda x: x * nn.functional.relu6(x + 3) / 6),
    "aten": (lambda x: torch.ops.aten.relu(x), torch.relu),
    "properties": (lambda x: x.mT.data.mT, lambda x: x),
    "logsumexp": (
        lambda x: torch.logsumexp(1000 * x, (2, 3), True) / 1000,
        lambda x: nn.functional.adaptive_max_pool2d(x, 1),
    ),
    "torch.batch_norm": (
        lambda x: torch.batch_norm(
            linear(x), KERNEL[0], KERNEL[1], KERNEL[2], KERNEL[3].abs(), False, 0.1, 1e-5, False
        ),
        lambda x: nn.functional.batch_norm(
            linear(x), KERNEL[2], KERNEL[3].abs(), KERNEL[0], KERNEL[1]
        ),
    ),
}


@pytest.mark.parametrize(("function", "equal"), EQUALS.values(), ids=EQUALS)
@pytest.mark.parametrize("batch_norm", ["pass", "fold"])
def test_equal_functions_have_equal_maps(function, equal, batch_norm):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.function = nn.Conv2d(3, 4, 3, bias=False), function
            self.head = nn.Linear(4, 2, bias=False)

        def forward(self, x):
            x = self.function(self.stem(x))
            return self.head(x.flatten(2).mean(2)[:, :4])

    torch.manual_seed(0)
    model, x = Model().double(), images(2, 10, torch.float64)
    plain = copy.deepcopy(model)
    plain.function = equal
    torch.testing.assert_close(model(x), plain(x), rtol=1e-2, atol=1e-3)
    explainer = LRP(composite="epsilon", batch_norm=batch_norm)
    ours, theirs = explainer(model, x, 1), explainer(plain, x, 1)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))
