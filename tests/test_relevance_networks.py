"""LRP on whole networks: Zennit's values, conservation, gradients, composites, reports."""

import copy
import gc
from itertools import pairwise
from pathlib import Path

import numpy as np
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
from trompe.data import load_data
from trompe.explainers.relevance import (
    COMPOSITES,
    AlphaBeta,
    Box,
    Choice,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Pass,
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
    "epsilon-plus-flat": lambda c: EpsilonPlusFlat(canonizers=c),
    "epsilon-alpha2-beta1": lambda c: EpsilonAlpha2Beta1(canonizers=c),
    "epsilon-alpha2-beta1-flat": lambda c: EpsilonAlpha2Beta1Flat(canonizers=c),
    "epsilon-gamma-box": lambda c: EpsilonGammaBox(low=-2.2, high=2.7, canonizers=c),
}
SUMS = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
NETWORKS = {
    "vgg11": ([], [VGGCanonizer()]),
    "vgg13_bn": ([], [VGGCanonizer()]),
    "resnet18": (SUMS, [ResNetCanonizer()]),
    "resnet50": (SUMS, [ResNetCanonizer()]),
}


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.get_model(name, num_classes=10)
        randomise_batch_norms(model)
    return model.double().eval()


def trained_resnet18():
    """The shared base weights; where they are not, the network after a few steps of training."""
    weights = SHARED / "models/resnet18-imagenette.safetensors"
    if weights.exists():
        return load_model("resnet18", weights=str(weights), num_classes=10).model.double().eval()
    model, x = network("resnet18").train(), images(4, 64, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()
    return model.eval()


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

    def test_values_at_trained_weights(self):
        model, x, classes = (
            without_eps(trained_resnet18()),
            images(2, 96, torch.float64),
            torch.tensor([3, 7]),
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
            model = models.get_model(name, num_classes=10, **options)
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


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"])
def test_transformers_get_a_clear_error(name):
    model = models.get_model(name, num_classes=10).eval()
    with torch.no_grad(), pytest.raises(TrompeError, match="has no relevance rule; write one"):
        LRP()(model, images(1, 224), 0)


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
