"""Places in a model: layers of any layout, called any number of times, in any wrapper."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import timm.models
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer

from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, GradCAM, IntegratedGradients, Recording, SimpleGrad, SmoothGrad, TrompeError
from trompe.explainers.foreign.captum import CaptumExplainer
from trompe.explainers.relevance import conservation
from trompe.explainers.sites import Site
from trompe.models import evaluation_mode


def images(count=2, side=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, generator=generator, dtype=dtype)


def at(layer):
    """Every explainer at a layer."""
    return [
        GradCAM(layer=layer),
        SimpleGrad(layer=layer),
        SmoothGrad(layer=layer, samples=2),
        IntegratedGradients(layer=layer, steps=2),
        LRP(layer=layer, composite="epsilon"),
    ]


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()


class ChannelsLast(nn.Module):
    """The same network, with its map as [N, h, w, C] or as tokens behind a class token."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form, self.map = small(), form, nn.Identity()

    def forward(self, x):
        x = self.net[:4](x)
        n, c, h, w = x.shape
        if self.form == "last":
            x = self.map(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            tokens = x.flatten(2).mT
            tokens = self.map(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1))
            x = tokens[:, 1:].mT.reshape(n, c, h, w)
        return self.net[4:](x)


class TestLayouts:
    @pytest.mark.parametrize("form", ["last", "tokens"])
    @pytest.mark.parametrize("explainer", at("map")[:4], ids=str)
    def test_maps_are_those_of_channels_first(self, form, explainer):
        model = ChannelsLast(form)
        plain = replace(explainer, layer="3")
        torch.testing.assert_close(explainer(model, images(), 1), plain(model.net, images(), 1))

    @pytest.mark.parametrize("side", ["", ":input"])
    def test_relevance_too(self, side):
        ours = LRP(layer=f"map{side}", composite="epsilon")(ChannelsLast("last"), images(), 1)
        torch.testing.assert_close(ours, LRP(layer="3", composite="epsilon")(small(), images(), 1))

    @pytest.mark.parametrize("name", ["vit", "swin", "torchvision swin"])
    def test_transformers_have_gradients(self, name):
        sizes = {"patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
        windows = {"depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "num_classes": 3}
        torch.manual_seed(0)
        model = {
            "vit": lambda: timm.models.VisionTransformer(16, **sizes),
            "swin": lambda: timm.models.SwinTransformer(16, 2, embed_dim=8, **windows),
            "torchvision swin": lambda: SwinTransformer(
                [4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=3
            ),
        }[name]()
        model = model.eval().double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = images(dtype=torch.float64)
        assert GradCAM()(model, x, 1).shape == ((2, 4, 4) if name == "swin" else (2, 2, 2))
        assert_gradient_is_finite_difference(GradCAM(), model, x, torch.tensor([0, 2]))

    @pytest.mark.parametrize("explainer", at("part"), ids=str)
    def test_what_does_not_lie_over_the_images_is_refused(self, explainer):
        class Windows(nn.Module):
            def __init__(self):
                super().__init__()
                self.part, self.head = nn.Identity(), small()

            def forward(self, x):
                parts = x.unflatten(3, (2, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)
                return self.head(self.part(parts).unflatten(0, (-1, 2)).flatten(1, 2)[:, :3])

        with pytest.raises(TrompeError, match=r"'part' has the output \[4, 3, 16, 8\].*N, C, h, w"):
            explainer(Windows(), images(), 1)


class Calls(nn.Module):
    """One activation, called three times, beside one for each call."""

    def __init__(self, keyword=False):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.act, self.keyword = nn.Tanh(), keyword
        self.own = nn.ModuleList(nn.Identity() for _ in range(3))
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        for conv, own in zip(self.convs, self.own, strict=True):
            x = own(self.act(input=conv(x)) if self.keyword else self.act(conv(x)))
        return self.fc(x.mean((2, 3)))


class TestCalls:
    @pytest.mark.parametrize(("call", "own"), [("", 2), ("#3", 2), ("#2", 1), ("#1", 0)])
    @pytest.mark.parametrize("index", range(5))
    def test_the_last_or_a_named_one_is_explained(self, call, own, index):
        model = Calls()
        ours = at(f"act{call}")[index](model, images(), 1)
        torch.testing.assert_close(ours, at(f"own.{own}")[index](model, images(), 1))

    @pytest.mark.parametrize("keyword", [False, True])
    @pytest.mark.parametrize("index", range(5))
    def test_what_it_is_given_by_position_or_keyword(self, keyword, index):
        ours = at("act#2:input")[index](Calls(keyword), images(), 1)
        torch.testing.assert_close(ours, at("convs.1")[index](Calls(), images(), 1))

    @pytest.mark.parametrize("explainer", at("own.0"), ids=str)
    def test_a_layer_that_is_not_called(self, explainer):
        model = Calls()
        model.own = nn.ModuleList([nn.Identity(), *model.own])
        model.forward = lambda x: model.fc(model.act(model.convs[0](x)).mean((2, 3)))
        with pytest.raises(TrompeError, match="own.0' is not called in the forward pass of Calls"):
            explainer(model, images(), 1)
        with pytest.raises(TrompeError, match="'act' is called only 1 times in the forward pass"):
            GradCAM(layer="act#2")(model, images(), 1)

    @pytest.mark.parametrize(
        "text",
        ["input", "input:output", "input:input", "act", "act:input", "act#2", "act#12:input"],
    )
    def test_text_of_a_site(self, text):
        model = Calls()
        model.input = nn.Identity()
        site = Site.parse(text, model)
        assert str(site) == text
        assert Site.parse(str(site), model) == site
        assert (site.side == "images") == (text == "input")

    @pytest.mark.parametrize("text", ["act#0", "act#x", "act:middle", "act:", "#1", ":input"])
    def test_text_that_is_none(self, text):
        with pytest.raises(TrompeError, match="can't be read|has no layer"):
            Site.parse(text, Calls())

    def test_a_tuple_is_read_by_its_first(self):
        class Pair(nn.Module):
            def forward(self, x):
                return x, None

        model = Calls()
        model.own[2] = Pair()
        model.fc = nn.Sequential(model.fc)
        forward = lambda x: model.fc(model.own[2](model.act(model.convs[0](x)))[0].mean((2, 3)))  # noqa: E731
        model.forward = forward
        for ours, plain in zip(at("own.2"), at("act"), strict=True):
            torch.testing.assert_close(ours(model, images(), 1), plain(model, images(), 1))

    def test_a_module_that_is_called_input(self):
        model, plain = nn.Sequential(), small()
        for index, module in enumerate(plain):
            model.add_module("input" if index == 3 else f"{index}", module)
        assert GradCAM().resolve(model, images(1)).layer == "input:output"
        for found, given, named in zip(at(None), at(model.input), at("3"), strict=True):
            expected = named(plain, images(), 1)
            torch.testing.assert_close(found(model, images(), 1), expected)
            torch.testing.assert_close(given(model, images(), 1), expected)

    def test_modules_are_told_apart(self):
        model = nn.Sequential(nn.ReLU(), nn.ReLU())
        first, second = (GradCAM(layer=m) for m in model)
        assert first != second
        assert first == GradCAM(layer=model[0])


class Own(nn.Module):
    """A network that checkpoints its own activations."""

    def __init__(self, reentrant):
        super().__init__()
        self.net, self.reentrant = small(), reentrant

    def forward(self, x):
        return self.net[2:](checkpoint(self.net[:2], x, use_reentrant=self.reentrant))


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled inside": lambda m: nn.Sequential(compiled(m[0]), *m[1:]),
    "parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "nested": lambda m: compiled(nn.DataParallel(m)),
}


class TestWrappers:
    @pytest.fixture(params=WRAPPERS.values(), ids=WRAPPERS)
    def wrapped(self, request):
        model = request.param(small()).eval()
        model(images())
        return model

    @pytest.mark.parametrize("layer", [None, "2", "input"])
    def test_are_explained_as_what_is_inside(self, wrapped, layer):
        for explainer in at(layer):
            torch.testing.assert_close(
                explainer(wrapped, images(), 1), explainer(small(), images(), 1)
            )
        with Recording(wrapped, "grad-cam") as forward:
            (forward(images()).sum() + forward.maps(1).sum()).backward()
        assert all(p.grad is not None for p in wrapped.parameters())

    def test_a_scripted_part_is_passed_by(self):
        plain, model = small(), small()
        model[0] = torch.jit.freeze(torch.jit.script(model[0]))
        for index, explainer in enumerate(at("3")):
            torch.testing.assert_close(
                explainer(model, images(), 1), at("3")[index](plain, images(), 1)
            )
        torch.testing.assert_close(
            SimpleGrad()(model, images(), 1), SimpleGrad()(plain, images(), 1)
        )
        with pytest.raises(TrompeError, match="compiled by TorchScript"):
            GradCAM(layer="0")(model, images(), 1)

    @pytest.mark.parametrize("layer", ["net.0", "net.3", "input"])
    def test_own_checkpoints(self, layer):
        for explainer in at(layer):
            if layer == "net.0" and isinstance(explainer, IntegratedGradients):
                with pytest.raises(TrompeError, match="switch its checkpoints off"):
                    explainer(Own(False), images(), 1)
                continue
            plain = replace(explainer, layer=layer.removeprefix("net."))
            torch.testing.assert_close(
                explainer(Own(False), images(), 1), plain(small(), images(), 1)
            )

    def test_own_checkpoints_whose_gradients_cant_be_taken(self):
        with pytest.raises(TrompeError, match="use_reentrant=False"):
            SimpleGrad()(Own(True), images(), 1)
        maps = GradCAM(layer="net.3")(Own(True), images(), 1)
        torch.testing.assert_close(maps, GradCAM(layer="3")(small(), images(), 1))

    @pytest.mark.parametrize("branch", [False, True])
    def test_a_gradient_that_is_missing_is_no_zero(self, branch):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = small()[:6]
                self.head, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

            def forward(self, x):
                h = self.body(x)
                return self.head(h) + self.other(h) if branch else self.head(h)

        model = Net().eval()
        model.head = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(model.head), {nn.Linear}, dtype=torch.qint8
        )[0]
        for explainer in [*at("body.3")[:4], SimpleGrad()]:
            for mode in (torch.enable_grad, torch.no_grad):
                with mode(), pytest.raises(TrompeError, match="before it was quantised"):
                    explainer(model, images(), 1)

    def test_below_the_explained_layer_nothing_is_missing(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(3, 3), small()

            def forward(self, x):
                return self.head(self.body(x.movedim(1, 3)).movedim(3, 1))

        model = Net().eval()
        model.body = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(model.body), {nn.Linear}, dtype=torch.qint8
        )[0]
        assert GradCAM(layer="head.3")(model, images(), 1).abs().sum() > 0

    def test_an_output_that_does_not_depend_on_the_layer(self):
        model = small()
        model.forward = lambda x: nn.Sequential.forward(model, x).detach()
        for explainer in (GradCAM(layer="3"), SimpleGrad(), SmoothGrad(samples=1)):
            with pytest.raises(TrompeError, match="does not depend on layer"):
                explainer(model, images(), 1)


class TestThreads:
    def test_each_works_as_if_alone(self):
        """Different explainers of one model in training mode, often switched between."""
        model = small().train()
        model.insert(1, nn.BatchNorm2d(6))
        explainers = [
            GradCAM(),
            LRP(layer=None),
            SimpleGrad(layer="4"),
            SmoothGrad(samples=2),
            IntegratedGradients(layer="4", steps=2),
            CaptumExplainer(method="Saliency"),
        ]
        expected = [e(model, images(), 1).detach() for e in explainers]
        state = copy.deepcopy(model.state_dict())
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        start = threading.Barrier(len(explainers))

        def work(explainer):
            start.wait()
            return [explainer(model, images(), 1).detach() for _ in range(8)]

        try:
            with ThreadPoolExecutor(len(explainers)) as pool:
                found = list(pool.map(work, explainers))
        finally:
            sys.setswitchinterval(interval)
        for maps, wanted in zip(found, expected, strict=True):
            for one in maps:
                torch.testing.assert_close(one, wanted)
        assert all(module.training for module in model.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())

    def test_conservation_leaves_a_model_in_training_mode_as_it_was(self):
        model = small().train()
        model.insert(1, nn.BatchNorm2d(6))
        state = copy.deepcopy(model.state_dict())
        conservation(LRP(), model, images(), 1)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(module.training for module in model.modules())

    def test_a_mode_is_given_back_when_the_last_is_done(self):
        model = small().train()
        first, second = evaluation_mode(model), evaluation_mode(model)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not any(m.training for m in model.modules())
        second.__exit__(None, None, None)
        assert all(m.training for m in model.modules())


class TestAttention:
    """Its fused kernels have no second derivative."""

    @pytest.mark.parametrize("kind", ["timm", "torchvision"])
    @pytest.mark.parametrize(
        "explainer", [SimpleGrad(), IntegratedGradients(steps=2), GradCAM()], ids=str
    )
    def test_parameter_gradients_are_finite_differences(self, kind, explainer):
        torch.manual_seed(0)
        model = (
            timm.models.VisionTransformer(16, 8, embed_dim=8, depth=2, num_heads=2, num_classes=3)
            if kind == "timm"
            else VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3)
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        x = images(dtype=torch.float64)
        model = model.eval().double()
        assert_gradient_is_finite_difference(explainer, model, x, torch.tensor([0, 2]))

    def test_weights_are_returned_if_they_were_asked_for(self):
        attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        x = torch.randn(2, 5, 8)

        class Asks(nn.Module):
            def __init__(self, weights):
                super().__init__()
                self.attention, self.weights = attention, weights

            def forward(self, images):
                output, weights = self.attention(x, x, x, need_weights=self.weights)
                assert (weights is not None) == self.weights
                return output.sum((1, 2))[:, None] * images.mean((1, 2, 3))[:, None]

        for weights in (True, False):
            SimpleGrad()(Asks(weights), images(), 1)


class TestSmoothGradsNoise:
    def test_belongs_to_the_image(self):
        model, x = small(), images(4)
        explainer = SmoothGrad(samples=3)
        maps = explainer(model, x, 1)
        for index in range(4):
            torch.testing.assert_close(explainer(model, x[index : index + 1], 1)[0], maps[index])
        torch.testing.assert_close(explainer(model, x.flip(0), 1), maps.flip(0))

    def test_does_not_depend_on_the_default_dtype(self):
        model, x = small(), images()
        expected = SmoothGrad(samples=3)(model, x, 1)
        torch.set_default_dtype(torch.float64)
        try:
            torch.testing.assert_close(SmoothGrad(samples=3)(model, x, 1), expected)
        finally:
            torch.set_default_dtype(torch.float32)
        again = SmoothGrad(samples=3)(model.double(), x.double(), 1)
        torch.testing.assert_close(again.float(), expected, rtol=1e-4, atol=1e-6)
