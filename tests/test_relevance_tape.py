"""What the tape records, and the operations that pass, move or route relevance."""

import copy
import weakref

import pytest
import torch
from torch import nn

from tests.models.small import images, make
from trompe import LRP, Recording, TrompeError
from trompe.explainers.relevance import COMPOSITES, Tape, propagate, register_rule
from trompe.explainers.relevance.operations import RULES, WEIGHTED
from trompe.explainers.sites import run


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
