"""LRP on whole networks: Zennit's values, conservation, gradients, composites, reports."""

import copy
import gc
import sys
from functools import partial
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from scipy.stats import spearmanr
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from zennit.attribution import Gradient
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    LayerMapComposite,
)
from zennit.core import BasicHook
from zennit.layer import Sum
from zennit.rules import AlphaBeta as ZennitAlphaBeta
from zennit.rules import Epsilon as ZennitEpsilon
from zennit.rules import Gamma as ZennitGamma
from zennit.rules import Norm
from zennit.rules import Pass as ZennitPass
from zennit.torchvision import (
    ResNetBasicBlockCanonizer,
    ResNetBottleneckCanonizer,
    ResNetCanonizer,
    VGGCanonizer,
)
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from tests.models.small import SMALL, images, make, randomise_batch_norms
from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, Recording, TrompeError, load_model
from trompe.base.code import written_by_others
from trompe.data import load_data
from trompe.explainers import parse_explainer
from trompe.explainers.relevance import (
    COMPOSITES,
    RULE_NAMES,
    AlphaBeta,
    Box,
    Choice,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    Tape,
    conservation,
    find_composite,
)

SHARED = Path(__file__).parents[2] / "shared"
models = torchvision.models


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


class ReleasedNorm(PositiveNorm):
    """The same at a residual sum, with the sum where the branch should stand, as it was released.

    Zennit's canonizers stack (identity, branch).
    """

    def __init__(self):
        super().__init__()
        self.input_modifiers = [
            lambda x: torch.stack([x[..., 0], x.sum(-1)], -1).clamp(min=0),
        ]


def of_layers(convolution, linear, others, sums=None):
    return lambda canonizers: LayerMapComposite(
        layer_map=[
            (Activation, ZennitPass()),
            (Sum, sums or others),
            (AvgPool, others),
            (BatchNorm, ZennitPass()),
            (Convolution, convolution),
            (Linear, linear),
        ],
        canonizers=canonizers,
    )


ZENNIT = {
    "epsilon": of_layers(ZennitEpsilon(), ZennitEpsilon(), Norm()),
    "heo2019": of_layers(
        ZennitAlphaBeta(alpha=1, beta=0, stabilizer=0.01), ZennitEpsilon(0.01), PositiveNorm()
    ),
    "heo2019-released": of_layers(
        ZennitAlphaBeta(alpha=1, beta=0, stabilizer=0.01),
        ZennitEpsilon(0.01),
        PositiveNorm(),
        ReleasedNorm(),
    ),
    "epsilon-plus": lambda c: EpsilonPlus(canonizers=c),
    "z-plus": of_layers(*[ZennitAlphaBeta(alpha=1, beta=0)] * 2, Norm()),
    "epsilon-plus-flat": lambda c: EpsilonPlusFlat(canonizers=c),
    "epsilon-alpha2-beta1": lambda c: EpsilonAlpha2Beta1(canonizers=c),
    "epsilon-alpha2-beta1-flat": lambda c: EpsilonAlpha2Beta1Flat(canonizers=c),
    "epsilon-gamma-box": lambda c: EpsilonGammaBox(low=-2.2, high=2.7, canonizers=c),
    "attn-lrp": of_layers(ZennitGamma(), ZennitEpsilon(), Norm()),
    "cp-lrp": of_layers(ZennitGamma(), ZennitEpsilon(), Norm()),
}
SUMS = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
NETWORKS = {
    "vgg11": ([], [VGGCanonizer()]),
    "vgg13_bn": ([], [VGGCanonizer()]),
    "resnet18": (SUMS, [ResNetCanonizer()]),
    "resnet50": (SUMS, [ResNetCanonizer()]),
}


def narrow(model):
    """A VGG with a head of the same layers, but not of a hundred million weights."""
    if isinstance(model, models.VGG):
        for place, (inputs, outputs) in {0: (25088, 64), 3: (64, 64), 6: (64, 10)}.items():
            model.classifier[place] = nn.Linear(inputs, outputs)
    return model


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = narrow(models.get_model(name, num_classes=10))
        randomise_batch_norms(model)
    return model.double().eval()


def after_a_few_steps():
    model, x = network("resnet18").train(), images(4, 64, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
    return model.eval()


def trained_on_imagenette():
    weights = SHARED / "models/resnet18-imagenette.safetensors"
    if not weights.exists():
        pytest.skip(f"needs {weights}")
    return load_model("resnet18", weights=str(weights), num_classes=10).model.double().eval()


def without_eps(model):
    """The same function with eps = 0, as Zennit leaves it behind in a BatchNorm that it merged."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var += module.eps
            module.eps = 0.0
    return model


def assert_zennits(model, x, classes, name, composite, batch_norm):
    ours = LRP(composite=composite, batch_norm=batch_norm)
    with torch.no_grad():
        ours = ours(model, x, classes)
    canonizers = NETWORKS[name][batch_norm == "fold"]
    with Gradient(model=model, composite=ZENNIT[composite](canonizers)) as attributor:
        hot = torch.eye(10, dtype=x.dtype)[classes]
        _, theirs = attributor(x.clone(), lambda out: out * hot)
    theirs = theirs.sum(1)
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)


class TestZennit:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_values_at_random_weights(self, name):
        model, x, classes = (
            without_eps(network(name)),
            images(2, 64, torch.float64),
            torch.tensor([3, 7]),
        )
        for composite in COMPOSITES:
            assert_zennits(model, x, classes, name, composite, "fold")
        assert_zennits(model, x, classes, name, "heo2019", "pass")
        assert_zennits(model, x, classes, name, "epsilon-plus", "pass")

    @pytest.mark.parametrize("trained", [after_a_few_steps, trained_on_imagenette])
    def test_values_at_trained_weights(self, trained):
        model, x, classes = (
            without_eps(trained()),
            images(1, 64 if trained is after_a_few_steps else 96, torch.float64),
            torch.tensor([3]),
        )
        for composite in COMPOSITES:
            assert_zennits(model, x, classes, "resnet18", composite, "fold")


class FewDraws(TorchFunctionMode):
    """Zeros in place of the random initialisation of weights, which `fill` does faster."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__.endswith(("normal_", "uniform_", "erfinv_")):
            tensor = args[0] if args else kwargs["tensor"]
            tensor.detach().zero_()
            return tensor
        return func(*args, **(kwargs or {}))


def fill(model):
    """Random weights of a size that keeps signals alive; biases and BatchNorm's shifts are 0."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2**20, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean", "num_batches_tracked")):
                tensor.zero_()
            elif tensor.numel() == tensor.shape[0]:
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                scale = (2 / tensor[0].numel()) ** 0.5
                for part in tensor.view(-1).split(len(noise)):
                    torch.mul(noise[: len(part)], scale, out=part)
    return model.eval()


def boundaries(model):
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):
            yield from (f"{name}.{key}" for key, _ in child.named_children())
        else:
            yield name


EVERY = models.list_models(module=models)
CONVOLUTIONAL = [n for n in EVERY if not n.startswith(("vit_", "swin_", "maxvit_"))]
PURE = [
    Composite(
        "lrp-0",
        tuple(Choice(Epsilon(0.0), kind) for kind in Epsilon.kinds),
    ),
    Composite(
        "z-plus",
        (
            Choice(AlphaBeta(1, 0, 0.0), "linear"),
            Choice(AlphaBeta(1, 0, 0.0), "convolution"),
            Choice(Epsilon(0.0), "sum"),
            Choice(Epsilon(0.0), "average-pool"),
            Choice(Pass(), "layer-norm"),
        ),
    ),
]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_network_conserves_relevance(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.set_default_dtype(torch.float64)
    try:
        with FewDraws():
            model = narrow(models.get_model(name, num_classes=10, **options))
    finally:
        torch.set_default_dtype(torch.float32)
    model = fill(model)
    x = images(1, 96 if name == "inception_v3" else 64, torch.float64)
    layers = []

    def note(layer):
        def hook(module, args, output):
            if isinstance(output, torch.Tensor) and output.dim() == 4:
                layers.append(layer)

        return hook

    hooks = [model.get_submodule(b).register_forward_hook(note(b)) for b in boundaries(model)]
    with torch.no_grad():
        model(x)
        for hook in hooks:
            hook.remove()
        assert len(layers) >= 5
        for composite in PURE:
            explainers = [LRP(layer=layer, composite=composite) for layer in ["input", *layers]]
            with Recording(model, explainers) as forward:
                logit = forward(x)[0, 3]
                totals = torch.stack([relevance.sum() for relevance in forward.maps(3)])
            assert logit.abs() > 0
            torch.testing.assert_close(totals, logit.expand_as(totals), rtol=1e-4, atol=0)
    del model, forward
    gc.collect()


TRANSFORMERS = {
    "vit": lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
    "swin": lambda: models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=10),
    "swin v2": lambda: models.SwinTransformer(
        [4, 4],
        8,
        [1, 1],
        [2, 2],
        [2, 2],
        num_classes=10,
        block=models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=models.swin_transformer.PatchMergingV2,
    ),
    "maxvit": lambda: models.MaxVit((64, 64), 8, 2, [8, 8], [1, 1], 4, 0.0, num_classes=10),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_account_for_every_part_of_the_logit(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TRANSFORMERS[name]().double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    x = images(1, 64 if name == "maxvit" else 32, torch.float64)
    for composite in ("epsilon", "epsilon-plus"):
        explainer = LRP(composite=composite)
        with torch.no_grad():
            share = explainer(model, x, 2).sum() / model(x)[0, 2]
        table = conservation(explainer, model, x, 2)
        assert abs(share) > 1e-6
        np.testing.assert_allclose(table["received"].iloc[-1], share, rtol=1e-9)
        assert "product" in {o.kind for o in recorded(model, x)}


@pytest.mark.parametrize("name", ["vit", "swin v2"])
def test_gradients_through_attention_are_finite_differences(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TRANSFORMERS[name]().double().eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.1)
    x, classes = images(1, 32, torch.float64), torch.tensor([2])
    rough = find_composite("epsilon").extended(
        "rough", *(Choice(Epsilon(0.1), kind) for kind in Epsilon.kinds)
    )
    assert_gradient_is_finite_difference(LRP(composite=rough), model, x, classes)


def recorded(model, x):
    tape = Tape(model)
    with torch.no_grad(), tape:
        live = x.clone()
        tape.start(x, live)
        model(live)
    return tape.operations


def test_an_lstm_gets_a_clear_error():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.rows(x.mean(3).mT)[0].mean(1)

    with torch.no_grad(), pytest.raises(TrompeError, match="'lstm' .*no relevance rule; write one"):
        LRP()(Recurrent(), images(), 0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("composite", COMPOSITES)
class TestGradients:
    def test_parameter_gradients_are_finite_differences(self, name, composite):
        x, classes = images(2, dtype=torch.float64), torch.tensor([1, 4])
        explainer = LRP(composite=composite)
        assert_gradient_is_finite_difference(explainer, make(name, torch.float64), x, classes)

    def test_folded_as_well(self, name, composite):
        x, classes = images(2, dtype=torch.float64), torch.tensor([1, 4])
        explainer = LRP(composite=composite, batch_norm="fold")
        assert_gradient_is_finite_difference(explainer, make(name, torch.float64), x, classes)

    def test_values_are_the_same_with_a_graph(self, name, composite):
        model, x = make(name, torch.float64), images(2, dtype=torch.float64)
        explainer = LRP(composite=composite)
        with torch.no_grad():
            plain = explainer(model, x, 2)
        torch.testing.assert_close(explainer(model, x, 2).detach(), plain)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_folding_is_what_a_fused_model_gives(composite):
    model = models.resnet18(num_classes=10).double().eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(tensor)
    fused = copy.deepcopy(model)
    for owner in fused.modules():
        children = list(owner.named_children())
        for (first, layer), (second, norm) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(owner, first, fuse_conv_bn_eval(layer, norm))
                setattr(owner, second, nn.Identity())
    x = images(2, 64, torch.float64)
    with torch.no_grad():
        ours = LRP(composite=composite, batch_norm="fold")(model, x, 2)
        theirs = LRP(composite=composite)(fused, x, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_lrp_0_is_input_times_gradient_in_relu_networks(name):
    model, x = make(name, torch.float64), images(2, dtype=torch.float64)
    explainer = LRP(composite=PURE[0], batch_norm="fold")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
    with torch.no_grad():
        torch.testing.assert_close(explainer(model, x, 2), (x * gradient).sum(1))


def test_several_layers_and_classes_from_one_forward_pass():
    model, x = make("resnet", torch.float64), images(2, dtype=torch.float64)
    explainers = [LRP(), LRP(layer="layer3"), LRP(layer="layer4.0", composite="epsilon")]
    calls = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), Recording(model, explainers) as forward:
        forward(x)
        together = [forward.maps(c) for c in (0, 3)]
    assert len(calls) == 1
    with torch.no_grad():
        for found, c in zip(together, (0, 3), strict=True):
            for ours, explainer in zip(found, explainers, strict=True):
                torch.testing.assert_close(ours, explainer(model, x, c))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_half_precision_keeps_the_ranks(dtype, composite):
    loaded = load_model("embedded")
    data = load_data("shapes:validation", loaded.preprocessing, limit=8)
    images, labels = zip(*data, strict=True)
    x, labels = torch.stack(images), torch.tensor(labels)
    for layer, batch_norm in (("input", "pass"), ("input", "fold"), (None, "pass")):
        explainer = LRP(layer, composite, batch_norm)
        full = explainer(loaded.model, x, labels).detach()
        with torch.autocast("cpu", dtype):
            half = explainer(loaded.model, x, labels).detach()
        assert half.dtype == torch.float32
        assert half.isfinite().all()
        for a, b in zip(full.numpy(), half.numpy(), strict=True):
            assert spearmanr(a.ravel(), b.ravel()).statistic >= 0.98


def test_released_composite_is_its_definition_at_a_residual_sum():
    """Relevance of out = branch + identity, by the positive parts of (out, identity)."""

    class Residual(nn.Module):
        def __init__(self, add):
            super().__init__()
            self.branch, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2, bias=False)
            self.add = add

        def forward(self, x):
            return self.head(self.add(self.branch(x), x).mean((2, 3)))

    torch.manual_seed(0)
    for add in (torch.Tensor.add, lambda out, identity: out.add_(identity)):
        model, x = Residual(add).double(), images(2, 6, torch.float64)
        with torch.no_grad():
            branch, weight = model.branch(x), model.head.weight[1]
            out = branch + x
            pooled, logit = out.mean((2, 3)), model(x)[:, 1]
            of_pooled = pooled * weight / (logit + 0.01 * logit.sign())[:, None] * logit[:, None]
            share = out.clamp(min=0) / 36
            share = share / (share.sum((2, 3), keepdim=True) + 1e-6)
            relevance = share * of_pooled[..., None, None]
            total = out.clamp(min=0) + x.clamp(min=0) + 1e-6
            to_branch = relevance * out.clamp(min=0) / total
            to_identity = relevance * x.clamp(min=0) / total
            w = model.branch.weight[:, :, 0, 0]
            parts = (w[None, :, :, None, None] * x[:, None]).clamp(min=0)
            z = parts.sum(2) + model.branch.bias.clamp(min=0)[None, :, None, None] + 0.01
            through = (parts * (to_branch / z)[:, :, None]).sum(1)
            ours = LRP(composite="heo2019-released")(model, x, 1)
        torch.testing.assert_close(ours, (to_identity + through).sum(1), rtol=1e-6, atol=1e-9)


class TestComposites:
    def test_first_choice_that_fits_counts(self):
        model, x = make("vgg", torch.float64), images(2, dtype=torch.float64)
        mine = COMPOSITES["epsilon"].extended(
            "mine",
            Choice(Flat(), depth=0),
            Choice(Gamma(0.5), kind="convolution", depth=(1, -3)),
            Choice(AlphaBeta(2, -1), layer="classifier.*"),
        )
        rules = dict(
            conservation(LRP(composite=mine), model, x, 0)
            .query("operation in ('conv2d', 'linear')")[["layer", "rule"]]
            .to_numpy()
            .tolist()
        )
        assert rules["features.0"] == str(Flat())
        assert {rules[f"features.{i}"] for i in (3, 5, 8)} == {str(Gamma(0.5))}
        assert {rules["classifier.0"], rules["classifier.3"]} == {str(AlphaBeta(2, -1))}

    def test_yaml_says_the_same(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "base: epsilon-plus\nrules:\n"
            "  - {depth: 0, rule: box, low: [-2.1, -2.0, -1.8], high: 2.6}\n"
            '  - {layer: "classifier.*", rule: epsilon, epsilon: 0.25}\n'
            "  - {kind: convolution, depth: [1, 2], rule: gamma, gamma: 0.5}\n"
        )
        same = COMPOSITES["epsilon-plus"].extended(
            "mine",
            Choice(Box((-2.1, -2.0, -1.8), 2.6), depth=0),
            Choice(Epsilon(0.25), layer="classifier.*"),
            Choice(Gamma(0.5), kind="convolution", depth=(1, 2)),
        )
        assert find_composite(str(path)) == same
        model, x = make("vgg"), images()
        explainer = LRP(composite=str(path))
        assert torch.equal(explainer(model, x, 1), LRP(composite=same)(model, x, 1))
        assert f"composite={path}" in str(explainer)

    def test_contents_decide_what_a_composite_is(self, tmp_path):
        texts = {
            "a.yaml": "base: epsilon-plus\nrules: [{rule: gamma, gamma: 0.5, kind: linear}]",
            "b.yaml": "rules: [{kind: linear, gamma: 5.0e-1, rule: gamma}]\nbase: epsilon-plus",
            "c.yaml": "base: epsilon-plus\nrules: [{rule: gamma, gamma: 0.25, kind: linear}]",
            "d.yaml": "base: epsilon\nrules: [{rule: gamma, gamma: 0.5, kind: linear}]",
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        a, b, c, d = (LRP(composite=str(tmp_path / name)) for name in texts)
        assert a == b
        assert a.rules == b.rules
        assert len({a, b, c, d}) == 3
        assert a == LRP(composite=a.rules)
        assert LRP(composite="epsilon") == LRP(composite=find_composite("epsilon"))
        (tmp_path / "a.yaml").write_text(texts["c.yaml"])
        assert LRP(composite=tmp_path / "a.yaml") == c
        assert Box([-2.1, -2.0, -1.8]) == Box([-2.1, -2.0, -1.8])
        assert len({Box([-2.1, -2.0, -1.8]), Box([-2.1, -2.0, -1.7]), Box()}) == 3

    def test_numbers_in_yaml_may_be_written_as_people_do(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("rules: [{rule: epsilon, epsilon: 1e-3}]")
        assert find_composite(path).choices[0].rule == Epsilon(1e-3)

    OWN = """
from dataclasses import dataclass
from typing import ClassVar

from trompe.explainers.relevance import Choice, Epsilon, find_composite


@dataclass(frozen=True)
class Rough(Epsilon):
    name: ClassVar[str] = "rough"
    epsilon: float = 0.5


def mine(epsilon=0.5):
    return find_composite("epsilon-plus").extended("mine", Choice(Rough(epsilon), "linear"))


ready = mine(0.25)
number = 3
"""

    def test_of_ones_own_by_file_module_and_yaml(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my_lrp.py").write_text(self.OWN)
        (tmp_path / "mine.yaml").write_text(
            'base: "my_lrp.py:ready"\nrules: [{rule: "my_lrp.py:Rough", epsilon: 0.1, kind: sum}]'
        )
        by_file, by_module = find_composite("my_lrp.py:mine"), find_composite("my_lrp:mine")
        (rough, *_) = by_file.choices
        assert (rough.rule.name, rough.rule.epsilon) == ("rough", 0.5)
        assert [c.rule.epsilon for c in by_module.choices[:1]] == [0.5]
        assert find_composite("my_lrp.py:mine:epsilon=0.25") == find_composite("my_lrp.py:ready")
        in_yaml = find_composite("mine.yaml")
        assert [str(c.rule) for c in in_yaml.choices[:2]] == [
            "rough:epsilon=0.1",
            "rough:epsilon=0.25",
        ]
        spec = parse_explainer("lrp:composite=my_lrp.py:ready")
        assert spec == LRP(composite="my_lrp.py:ready")
        assert spec(make("vgg"), images(), 0).isfinite().all()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("base: my_lrp.py:number\nrules: []", "not the LRP composite that is asked for"),
            ("rules: [{rule: 'my_lrp.py:number'}]", "is no LRP rule"),
            (
                "rules: [{rule: 'my_lrp.py:Rogh'}]",
                "names no class or function .*did you mean Rough",
            ),
            ("rules: [{rule: 'my_lrp.py:Rough', eps: 1}]", "no option of the rule .* 'eps'"),
            ("rules: [{rule: 'nowhere.py:Rough'}]", "cannot be imported"),
        ],
    )
    def test_mistakes_in_what_is_of_ones_own(self, tmp_path, monkeypatch, text, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my_lrp.py").write_text(self.OWN)
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(TrompeError, match=message):
            find_composite("mine.yaml")

    def test_code_that_others_name_is_not_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my_lrp.py").write_text("raise SystemExit")
        (tmp_path / "mine.yaml").write_text("rules: [{rule: 'my_lrp.py:Rough'}]")
        for composite in ("my_lrp.py:mine", "mine.yaml"):
            with written_by_others("A run"), pytest.raises(TrompeError, match="A run names"):
                find_composite(composite)

    def test_registered_by_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr(COMPOSITES, "_entries", dict(COMPOSITES._entries))
        monkeypatch.setattr(RULE_NAMES, "_entries", dict(RULE_NAMES._entries))
        COMPOSITES.register(
            "mine", find_composite("epsilon").extended("mine", Choice(Flat(), depth=0))
        )
        RULE_NAMES.register("tenth", partial(Epsilon, 0.1))
        (tmp_path / "own.yaml").write_text("base: mine\nrules: [{rule: tenth, kind: sum}]")
        first, second, *_ = find_composite(tmp_path / "own.yaml").choices
        assert (first.rule, second.rule) == (Epsilon(0.1), Flat())

    def test_installed_by_another_package(self, monkeypatch):
        points = {
            "trompe.LRP_composites": EntryPoint("theirs", "tests.own_lrp:composite", ""),
            "trompe.LRP_rules": EntryPoint("their-rule", "tests.own_lrp:Rough", ""),
        }
        module = ModuleType("tests.own_lrp")
        exec(self.OWN.replace("ready", "composite"), vars(module))
        monkeypatch.setitem(sys.modules, "tests.own_lrp", module)
        for registry in (COMPOSITES, RULE_NAMES):
            group = f"trompe.{registry.kind.replace(' ', '_')}s"
            installed = {p.name: p for g, p in points.items() if g == group}
            monkeypatch.setitem(vars(registry), "_installed", installed)
        assert find_composite("theirs").choices[0].rule.epsilon == 0.25
        assert RULE_NAMES.build("their-rule:epsilon=0.3").epsilon == 0.3

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("rules: 3", "must hold 'rules', a list"),
            ("rules: [{kind: linear}]", "must hold 'rules', a list"),
            ("base: epsilon\nrules: []\nname: x", "must hold 'rules', a list"),
            ("rules: [{rule: epsilom}]", "no LRP rule 'epsilom'; did you mean 'epsilon'"),
            ("rules: [{rule: gamma, gama: 1}]", "no option of the rule 'gamma' 'gama'; did you"),
            ("rules: [{rule: gamma, kind: sums}]", "no kind of operation 'sums'; did you mean"),
            ("rules: [{rule: gamma, kind: sum}]", "'gamma' is no rule for the kind 'sum'"),
            ("rules: [{rule: alpha-beta, alpha: 2}]", "needs α"),
            ("base: none\nrules: []", "no LRP composite 'none'"),
            ("{", "can't be read as YAML"),
        ],
    )
    def test_mistakes_in_yaml(self, tmp_path, text, message):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(TrompeError, match=message):
            LRP(composite=str(path))

    def test_other_mistakes(self, tmp_path):
        with pytest.raises(TrompeError, match="can't be read as YAML"):
            LRP(composite=str(tmp_path / "missing.yaml"))
        with pytest.raises(TrompeError, match="did you mean 'epsilon-plus'"):
            LRP(composite="epsilon-plvs")
        with pytest.raises(TrompeError, match="batch_norm is 'pass' or 'fold'"):
            LRP(batch_norm="merge")
        little = Composite("little", (Choice(Epsilon(), "linear"),))
        with pytest.raises(TrompeError, match="'little' has no rule for .*'average-pool'; add one"):
            LRP(composite=little)(make("vgg"), images(), 0)


class TestConservation:
    def test_leaves_a_model_in_training_mode_as_it_was(self):
        model, x = make("densenet").train(), images(2)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        table = conservation(LRP(), model, x, 1)
        assert all(module.training for module in model.modules())
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key
        pd.testing.assert_frame_equal(table, conservation(LRP(), model.eval(), x, 1))

    def test_accounts_for_every_part_of_the_logit(self):
        for name in SMALL:
            model, x = make(name, torch.float64), images(2, dtype=torch.float64)
            for composite in ("heo2019", "epsilon", "epsilon-gamma-box"):
                for batch_norm in ("pass", "fold"):
                    explainer = LRP(composite=composite, batch_norm=batch_norm)
                    table = conservation(explainer, model, x, 2)
                    lost = table[["bias", "stabiliser", "other"]].to_numpy().sum()
                    arrived = table["received"].iloc[-1]
                    np.testing.assert_allclose(arrived + lost, 1, rtol=1e-6)
                    with torch.no_grad():
                        share = (explainer(model, x, 2).sum((1, 2)) / model(x)[:, 2]).mean()
                    np.testing.assert_allclose(arrived, share, rtol=1e-9)

    def test_names_the_cause(self):
        model, x = make("resnet", torch.float64), images(2, dtype=torch.float64)
        pure = conservation(LRP(composite=PURE[0]), model, x, 2)
        assert pure["stabiliser"].abs().max() < 1e-9
        assert pure.query("operation == 'linear'")["bias"].abs().min() > 1e-3
        nn.init.zeros_(model.fc.bias)
        rough = COMPOSITES["epsilon"].extended("rough", Choice(Epsilon(0.5), "linear"))
        table = conservation(LRP(composite=rough), model, x, 2).query("operation == 'linear'")
        assert table["bias"].abs().max() == 0
        assert table["stabiliser"].abs().min() > 1e-2
        assert table["layer"].tolist() == ["fc"]
