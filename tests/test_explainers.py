"""Explainers against Captum, pytorch-grad-cam, finite differences, and the model's state."""

import copy

import pytest
import timm.models
import torch
from captum.attr import (
    IntegratedGradients as CaptumIntegratedGradients,
)
from captum.attr import (
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Saliency,
)
from pytorch_grad_cam import GradCAM as OtherGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.func import functional_call

from tests.models.small import SMALL, images, make
from tests.oracles import assert_gradient_is_finite_difference
from trompe import (
    LRP,
    GradCAM,
    IntegratedGradients,
    Recording,
    SimpleGrad,
    SmoothGrad,
    TrompeError,
)
from trompe.explainers import (
    EXPLAINERS,
    FOREIGN,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RelevanceCAM,
    XGradCAM,
    parse_explainer,
    read,
)

LAYER = {
    "vgg": "features.6",
    "resnet": "layer4",
    "densenet": "features.denseblock2",
    "mobilenet": "features.3",
    "convnext": "features.3",
    "unseen": None,
}
CLASSES = torch.tensor([1, 4, 0])

EVERY = [
    GradCAM(),
    GradCAMPlusPlus(),
    XGradCAM(),
    LayerCAM(),
    HiResCAM(),
    RelevanceCAM(),
    SimpleGrad(),
    SimpleGrad(layer=None),
    SmoothGrad(samples=2),
    SmoothGrad(layer=None, samples=2),
    IntegratedGradients(steps=2),
    IntegratedGradients(layer=None, steps=2),
    LRP(),
    LRP(layer=None),
    LRP(composite="epsilon"),
]


BY_ATTENTION = ("rollout", "attention-relevance")  # they have tests of their own
WITHOUT_GRADIENT = (*FOREIGN, "score-cam", "eigen-cam")


def explained_by(name):
    """A model that the explainer can explain."""
    if name in BY_ATTENTION:
        return timm.models.VisionTransformer(
            32, 8, num_classes=5, embed_dim=8, depth=1, num_heads=2
        )
    return make("resnet")


def close(ours, theirs, tolerance=1e-5):
    scale = theirs.abs().max()
    assert scale > 0
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@pytest.fixture(params=["vgg", "resnet", "densenet"])
def case(request):
    model = make(request.param)
    return model, model.get_submodule(LAYER[request.param]), images()


class TestValues:
    def test_simple_grad_is_captums_saliency(self, case):
        model, _, x = case
        theirs = Saliency(model).attribute(x.clone(), target=CLASSES, abs=True).sum(1)
        close(SimpleGrad()(model, x, CLASSES), theirs)

    def test_simple_grad_at_a_layer_is_captums_layer_gradient(self, case):
        model, layer, x = case
        captum = LayerGradientXActivation(model, layer, multiply_by_inputs=False)
        close(
            SimpleGrad(layer=layer)(model, x, CLASSES),
            captum.attribute(x, target=CLASSES).abs().sum(1),
        )

    def test_grad_cam_is_captums(self, case):
        model, layer, x = case
        theirs = LayerGradCam(model, layer).attribute(x, target=CLASSES).squeeze(1)
        close(GradCAM(layer=layer)(model, x, CLASSES), theirs)

    def test_grad_cam_heatmap_is_that_of_pytorch_grad_cam(self, case):
        model, layer, x = case
        side = x.shape[-1]
        with OtherGradCAM(model=model, target_layers=[layer]) as other:
            theirs = other(x.clone(), [ClassifierOutputTarget(int(c)) for c in CLASSES])
        explainer = GradCAM(layer=layer)
        raw = explainer(model, x, CLASSES).detach().relu()
        resized = nn.functional.interpolate(raw[:, None], (side, side), mode="bilinear")[:, 0]
        ours = explainer.heatmap(resized)
        # It scales by minimum and maximum before and after resizing, with an epsilon of 1e-7.
        theirs = torch.from_numpy(theirs)
        shown = ours.amax((1, 2)) > 0
        assert shown.any()
        for mine, other_map in zip(ours[shown], theirs[shown], strict=True):
            correlation = torch.corrcoef(torch.stack([mine.ravel(), other_map.ravel()]))[0, 1]
            assert correlation > 0.97

    def test_integrated_gradients_is_captums(self, case):
        model, _, x = case
        theirs = CaptumIntegratedGradients(model).attribute(x, target=CLASSES, n_steps=16).sum(1)
        close(IntegratedGradients()(model, x, CLASSES), theirs)

    def test_integrated_gradients_at_a_layer_is_captums(self, case):
        model, layer, x = case
        captum = LayerIntegratedGradients(model, layer)
        theirs = captum.attribute(x, target=CLASSES, n_steps=16).sum(1)
        close(IntegratedGradients(layer=layer)(model, x, CLASSES), theirs)

    def test_integrated_gradients_is_complete(self, case):
        model, _, x = case
        raw = IntegratedGradients(steps=200)(model, x, CLASSES)
        change = (model(x) - model(torch.zeros_like(x))).gather(1, CLASSES[:, None]).squeeze(1)
        torch.testing.assert_close(raw.sum((1, 2)), change, rtol=2e-2, atol=2e-3)

    @pytest.mark.parametrize("at_layer", [False, True])
    def test_smooth_grad_averages_captums_gradients_of_the_same_noise(self, case, at_layer):
        model, layer, x = case
        ours = SmoothGrad(layer=layer if at_layer else "input", samples=4, sigma=0.2, seed=5)
        spread = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
        generator = torch.Generator().manual_seed(5)
        total = 0
        for _ in range(4):
            noisy = x + 0.2 * spread * torch.randn(x.shape[1:], generator=generator)
            total += (
                LayerGradientXActivation(model, layer, multiply_by_inputs=False).attribute(
                    noisy, target=CLASSES
                )
                if at_layer
                else Saliency(model).attribute(noisy, target=CLASSES, abs=False)
            )
        close(ours(model, x, CLASSES), (total / 4).abs().sum(1))

    def test_input_side_of_a_layer(self):
        model, x = make("resnet"), images()
        inner = GradCAM(layer="layer4:input")(model, x, CLASSES)
        outer = GradCAM(layer="layer3")(model, x, CLASSES)
        torch.testing.assert_close(inner, outer)


@pytest.mark.parametrize("explainer", EVERY, ids=str)
@pytest.mark.parametrize("name", SMALL)
class TestEveryExplainerOnEveryModel:
    def test_parameter_gradients_are_finite_differences(self, name, explainer):
        assert_gradient_is_finite_difference(
            explainer, make(name, torch.float64), images(2, dtype=torch.float64), CLASSES[:2]
        )

    def test_leaves_the_model_as_it_was(self, name, explainer):
        model, x = make(name), images()
        model.train()
        next(m for m in model.modules() if isinstance(m, nn.Conv2d)).eval()
        frozen = list(model.parameters())[::2]
        for p in frozen:
            p.requires_grad_(False)
        list(model.parameters())[1].grad = torch.ones_like(list(model.parameters())[1])
        before = snapshot(model)
        kept = x.clone()
        explainer(model, x, CLASSES)
        with pytest.raises(TrompeError, match="out of range"):
            explainer(model, x, 99)
        with torch.no_grad():
            explainer(model, x, CLASSES)
        assert same(snapshot(model), before)
        assert torch.equal(x, kept)

    def test_frozen_training_and_shared_forward_agree(self, name, explainer):
        model, x = make(name), images()
        expected = explainer(model, x, CLASSES).detach()
        with torch.no_grad():
            plain = explainer(model, x, CLASSES)
        assert not plain.requires_grad
        frozen = copy.deepcopy(model).requires_grad_(False)
        training = copy.deepcopy(model).train()
        with torch.inference_mode():
            inferred = explainer(model, x, CLASSES)
        with Recording(model, [explainer, GradCAM(), LRP(layer=None)]) as forward:
            logits = forward(x)
            shared = forward.maps(CLASSES)[0]
        torch.testing.assert_close(logits, model(x))
        for other in (plain, explainer(frozen, x, CLASSES), inferred, shared):
            close(other, expected)
        close(explainer(training, x, CLASSES), expected)


def snapshot(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    needs = [p.requires_grad for p in model.parameters()]
    return state, hooks, flags, grads, needs


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(
            same(a, b) for a, b in zip(first, second, strict=True)
        )
    return first == second


@pytest.mark.parametrize("name", EXPLAINERS)
def test_differentiable_is_declared(name):
    """What it means is held against finite differences above; the others have no graph."""
    options = {"captum": ":method=Saliency", "pytorch-grad-cam": ":method=GradCAM"}
    explainer = parse_explainer(name + options.get(name, ""))
    maps = explainer(explained_by(name), images(), CLASSES)
    assert maps.requires_grad == explainer.differentiable == (name not in WITHOUT_GRADIENT)
    if explainer.differentiable and name not in BY_ATTENTION:
        assert {type(explainer), explainer.family} & {
            key for e in EVERY for key in (type(e), e.family)
        } == {type(explainer), explainer.family}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_class_discriminative_is_declared(name):
    options = {"captum": ":method=Saliency", "pytorch-grad-cam": ":method=GradCAM"}
    explainer, model = parse_explainer(name + options.get(name, "")), explained_by(name)
    with torch.no_grad():
        torch.manual_seed(0)  # smooth-grad's noise
        first, second = (explainer(model, images(), [c] * len(images())) for c in (0, 1))
    assert torch.equal(first, second) != explainer.class_discriminative


class TestRecording:
    def test_one_forward_pass_feeds_loss_and_maps(self):
        model, x = make("resnet"), images()
        calls = []
        model.register_forward_hook(lambda *_: calls.append(1))
        explainers = [GradCAM(layer="layer4"), SimpleGrad(), LRP(layer="layer4"), LRP()]
        with Recording(model, explainers) as forward:
            logits = forward(x)
            first = forward.maps(CLASSES)
            second = forward.maps(0)
            (logits.logsumexp(1).sum() + sum(m.mean() for m in (*first, *second))).backward()
        assert len(calls) == 1
        assert all(p.grad is not None for p in model.parameters())
        for explainer, map_ in zip(explainers, second, strict=True):
            close(map_, explainer(model, x, 0).detach())

    @pytest.mark.parametrize("explainer", [SmoothGrad(samples=3), IntegratedGradients(steps=3)])
    def test_an_average_of_given_classes_takes_a_pass_per_part(self, explainer):
        model, x = make("resnet"), images()
        given = explainer(model, x, CLASSES)
        calls = []
        model.register_forward_hook(lambda *_: calls.append(1))
        close(explainer(model, x, CLASSES), given.detach())
        assert len(calls) == 3
        with explainer.record(model) as forward:
            assert torch.equal(forward(x), model(x))
            close(forward.maps(CLASSES), given.detach())
        assert len(calls) == 3 + 2 + 3

    def test_training_step_in_train_mode_updates_statistics_like_any_forward_pass(self):
        model, twin = make("densenet").train(), make("densenet").train()
        twin(images())
        with GradCAM(layer="features").record(model) as forward:
            forward(images())
            forward.maps(CLASSES)
        assert same(snapshot(model)[0], snapshot(twin)[0])

    def test_maps_are_differentiable_in_the_images_too(self):
        model, x = make("vgg").requires_grad_(False), images().requires_grad_()
        GradCAM(layer="features.6")(model, x, CLASSES).square().sum().backward()
        assert x.grad.abs().sum() > 0

    def test_maps_before_forward_are_refused(self):
        with GradCAM().record(make("vgg")) as forward, pytest.raises(TrompeError, match="call"):
            forward.maps(0)

    def test_functional_weights(self):
        """A loss over maps drives any parameters, not only those held by the module."""
        model, x = make("vgg"), images()
        doubled = {k: 2 * v.detach() for k, v in model.named_parameters()}
        changed = copy.deepcopy(model)
        changed.load_state_dict(doubled, strict=False)
        expected = GradCAM(layer="features.6")(changed, x, CLASSES)

        class Doubled(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, images):
                return functional_call(self.inner, doubled, (images,))

        close(GradCAM(layer="inner.features.6")(Doubled(), x, CLASSES), expected.detach())


class TestMistakes:
    def test_unknown_layer_suggests_close_names(self):
        with pytest.raises(TrompeError, match="layer4"):
            GradCAM(layer="layr4")(make("resnet"), images(), 0)

    def test_layer_without_positions(self):
        with pytest.raises(TrompeError, match=r"N, C, h, w"):
            GradCAM(layer="classifier.0")(make("vgg"), images(), 0)

    def test_module_of_another_model(self):
        with pytest.raises(TrompeError, match="not a module of this model"):
            GradCAM(layer=make("vgg").features)(make("vgg"), images(), 0)

    def test_class_count_must_match(self):
        with pytest.raises(TrompeError, match="one class per image"):
            SimpleGrad()(make("vgg"), images(), torch.tensor([1]))

    def test_operation_without_rule_is_named(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 3)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                return self.head(torch.erfinv(self.stem(x).tanh()).mean((2, 3)))

        with pytest.raises(TrompeError, match="'erfinv'.*register_rule"):
            LRP()(Odd(), images(), 0)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("gradcam", "did you mean 'grad-cam'"),
            ("lrp:composit=epsilon", "no option 'composit'"),
            ("lrp:composite=epsilom", "did you mean 'epsilon'"),
            ("lrp:layer4", "not an option"),
            ("smooth-grad:samples=0", "at least 1"),
        ],
    )
    def test_specs(self, spec, message):
        with pytest.raises(TrompeError, match=message):
            parse_explainer(spec)

    @pytest.mark.parametrize("explainer", EVERY, ids=str)
    def test_text_is_read_wherever_an_explainer_is_taken(self, explainer):
        model, x, text = make("resnet"), images(), str(explainer)
        expected = explainer(model, x, CLASSES).detach()
        with torch.no_grad(), Recording(model, text) as one, Recording(model, [text]) as several:
            one(x)
            several(x)
            close(one.maps(CLASSES), expected)
            close(several.maps(CLASSES)[0], expected)
        assert read(text) == read([text]) == read(explainer) == (explainer,)
        with pytest.raises(TrompeError, match="There is no explainer 'nothing'"):
            Recording(model, ["grad-cam", "nothing"])
        with pytest.raises(TrompeError, match="3 is no explainer"):
            read([3])

    @pytest.mark.parametrize(
        ("text", "family", "title"),
        [
            ("grad-cam", "grad-cam", "Grad-CAM"),
            ("grad-cam:layer=layer4", "grad-cam", "Grad-CAM"),
            ("simple-grad", "simple-grad", "SimpleGrad"),
            ("simple-grad-t", "simple-grad-t", "SimpleGrad_T"),
            ("lrp:composite=epsilon", "lrp", "LRP"),
            ("lrp:layer=layer4", "lrp-t", "LRP_T"),
            ("integrated-gradients:layer=layer4:input", "integrated-gradients-t", None),
            ("captum:method=Saliency", "captum:Saliency", "Saliency"),
        ],
    )
    def test_families_and_titles(self, text, family, title):
        explainer = parse_explainer(text)
        assert explainer.family == family
        assert title in (None, explainer.title)
        assert explainer.resolve(make("resnet"), images(1)).family == family

    def test_a_need_that_is_not_declared(self):
        class Forgetful(GradCAM):
            needs = ()

        with pytest.raises(TrompeError, match=r"Gradient\(\) is asked for but not declared"):
            Forgetful()(make("resnet"), images(), 0)

    @pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in FOREIGN])
    def test_text_round_trip(self, name):
        explainer = parse_explainer(name)
        assert parse_explainer(str(explainer)) == explainer
        assert str(explainer) == name
        named = explainer.resolve(explained_by(name), images(1))
        assert parse_explainer(str(named)) == named


@pytest.mark.parametrize("explainer", [GradCAM, SimpleGrad, LRP])
def test_the_input_of_a_densenet_layer_is_the_concatenation(explainer):
    """The paper's target layer of DenseNet121, in small."""
    model, x = make("densenet", torch.float64), images(2, dtype=torch.float64)
    block = "features.denseblock2.denselayer2"
    ours = explainer(layer=f"{block}:input")(model, x, 1)
    torch.testing.assert_close(ours, explainer(layer=f"{block}.norm1:input")(model, x, 1))
