"""Adapters against the libraries themselves: values, gradients, and the model's state."""

import copy
import inspect
import sys

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
from captum.metrics import sensitivity_max
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from torch import nn

from tests.models.small import images, make
from tests.oracles import assert_gradient_is_finite_difference
from trompe import (
    LRP,
    GradCAM,
    IntegratedGradients,
    Location,
    Recording,
    Shapes,
    SimpleGrad,
    TrompeError,
    evaluate,
    fool,
    load_model,
)
from trompe.explainers import parse_explainer
from trompe.explainers.foreign.captum import CaptumExplainer, ExplainerAttribution
from trompe.explainers.foreign.grad_cam import CAMExplainer, ExplainerCAM
from trompe.explainers.foreign.quantus import explain_func
from trompe.maps import resize

CLASSES = torch.tensor([1, 4, 0])
# They want a ReLU for every place that has one; the last two are slips of its own.
CAPTUM_CAN_NOT = ("DeepLift", "DeepLiftShap", "LayerFeaturePermutation", "LayerLRP")
LAYER = "layer4"


@pytest.fixture
def model():
    return make("resnet")


def equal(ours, theirs, tolerance=1e-5):
    scale = theirs.abs().max()
    assert scale > 0
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


def state(model):
    """What an explainer must leave as it is."""
    return {
        "tensors": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [
            [len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)]
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }


class TestOursBehindCaptum:
    def test_grad_cam_is_captums_own(self, model):
        x = images()
        ours = ExplainerAttribution(model, GradCAM(layer=LAYER)).attribute(x, target=CLASSES)
        theirs = captum.attr.LayerGradCam(model, model.layer4).attribute(x, target=CLASSES)
        assert ours.shape == theirs.shape
        equal(ours, theirs)

    @pytest.mark.parametrize(
        "target",
        [2, [2, 2, 2], torch.tensor(2), torch.tensor([2]), torch.tensor([2, 2, 2])],
        ids=str,
    )
    def test_every_form_of_a_target(self, model, target):
        x = images()
        attribution = ExplainerAttribution(model, LRP())
        (ours,) = attribution.attribute((x,), target=target)
        torch.testing.assert_close(ours[:, 0], LRP()(model, x, 2))

    @pytest.mark.parametrize("explainer", [GradCAM(), LRP(layer=None), SimpleGrad()], ids=str)
    def test_parameter_gradients(self, explainer):
        class Through:
            def resolve(self, model, image):
                return self

            def __call__(self, model, x, classes):
                return ExplainerAttribution(model, explainer).attribute(x, target=classes)

        model = make("resnet", torch.float64)
        x = images(2, dtype=torch.float64)
        assert_gradient_is_finite_difference(Through(), model, x, torch.tensor([1, 4]))

    def test_captums_metrics_take_it(self, model):
        attribution = ExplainerAttribution(model, GradCAM())
        changes = sensitivity_max(
            attribution.attribute, images(), n_perturb_samples=2, target=CLASSES
        )
        assert changes.shape == (3,)
        assert bool((changes > 0).all())

    def test_refuses(self, model):
        x = images()
        with pytest.raises(TrompeError, match="give the model, not its forward"):
            ExplainerAttribution(model.forward, GradCAM())
        attribution = ExplainerAttribution(model, GradCAM())
        with pytest.raises(TrompeError, match="one input"):
            attribution.attribute((x, x), target=0)
        with pytest.raises(TrompeError, match="out of range"):
            attribution.attribute(x, target=5)
        with pytest.raises(TrompeError, match="one class per image"):
            attribution.attribute(x, target=[(0, 1)] * 3)
        with pytest.raises(TrompeError, match="target is a class"):
            attribution.attribute(x, target=["cat"] * 3)


class TestCaptumBehindOurs:
    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ("captum:method=Saliency", SimpleGrad()),
            (f"captum:method=LayerGradCam,layer={LAYER}", GradCAM(layer=LAYER)),
            ("captum:method=LayerGradCam", GradCAM()),
            (f"captum:method=LayerGradCam,layer={LAYER}:input", GradCAM(layer=f"{LAYER}:input")),
            ("captum:method=IntegratedGradients,n_steps=16", IntegratedGradients(steps=16)),
        ],
        ids=str,
    )
    def test_where_both_have_it_they_agree(self, model, theirs, ours):
        x = images()
        theirs = parse_explainer(theirs)
        found = theirs(model, x, CLASSES)
        equal(found, ours(model, x, CLASSES).detach())
        torch.testing.assert_close(
            theirs.heatmap(found), ours.heatmap(ours(model, x, CLASSES)), rtol=0, atol=1e-5
        )

    def test_options_arrive(self, model):
        x = images()
        spec = "captum:method=Occlusion,sliding_window_shapes=[3, 8, 8],strides=[3, 8, 8]"
        explainer = parse_explainer(spec)
        assert str(explainer) == spec
        assert parse_explainer(str(explainer)) == explainer
        theirs = captum.attr.Occlusion(model).attribute(
            x, target=CLASSES, sliding_window_shapes=(3, 8, 8), strides=(3, 8, 8)
        )
        equal(explainer(model, x, CLASSES), theirs.sum(1))

    @pytest.mark.parametrize(
        "method", sorted({*CaptumExplainer.methods} - {"Occlusion", "ShapleyValues", "LimeBase"})
    )
    def test_every_method_works_or_says_why_and_leaves_no_trace(self, model, method):
        """Those left out need an option, or a pass for every pixel."""
        few = {"n_samples": 4, "n_steps": 4}
        slow = ("Ablation", "Permutation", "Shapley", "Lime", "KernelShap")
        options = {k: v for k, v in few.items() if k in str(parameters_of(method))}
        x = images()
        if any(word in method for word in slow):
            name = "layer_mask" if method.startswith("Layer") else "feature_mask"
            options[name] = quarters(model, x, method.startswith("Layer"))
        if method.endswith(("DeepLiftShap", "GradientShap")):
            options["baselines"] = torch.zeros(2, 3, *x.shape[2:])
        explainer = CaptumExplainer(method=method, options=options)
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before, random = state(model), torch.get_rng_state()
        try:
            maps = explainer(model, x, CLASSES)
        except TrompeError as error:
            assert f"Captum's {method} can't explain this model" in str(error)  # noqa: PT017
            maps = None
        assert (maps is None) == (method in CAPTUM_CAN_NOT)
        after = state(model)
        assert after["hooks"] == before["hooks"]
        assert after["modes"] == before["modes"]
        assert after["attributes"] == before["attributes"]
        assert after["requires"] == before["requires"]
        for key in before["tensors"]:
            assert torch.equal(after["tensors"][key], before["tensors"][key])
        assert all(torch.equal(a, torch.ones_like(a)) for a in after["gradients"])
        assert torch.equal(torch.get_rng_state(), random)
        if maps is not None:
            assert maps.dim() == 3
            assert not maps.requires_grad
            heatmaps = explainer.heatmap(maps)
            assert 0 <= float(heatmaps.min()) <= float(heatmaps.max()) <= 1
            assert torch.equal(explainer(model, x, CLASSES), maps)

    def test_mistakes(self, model):
        with pytest.raises(TrompeError, match="did you mean 'Saliency'"):
            CaptumExplainer(method="Salience")
        with pytest.raises(TrompeError, match="did you mean 'n_steps'"):
            parse_explainer("captum:method=IntegratedGradients,nsteps=3")
        with pytest.raises(TrompeError, match="captum:method="):
            parse_explainer("captum")
        with pytest.raises(TrompeError, match="There is no option .* 'target'"):
            CaptumExplainer(method="Saliency", options={"target": 3})

    def test_without_the_library_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "captum", None)
        monkeypatch.delitem(sys.modules, "trompe.explainers.foreign.captum")
        with pytest.raises(TrompeError, match=r"pip install 'trompe\[captum\]'"):
            parse_explainer("captum:method=Saliency")


class TestForeignExplainersInTrompe:
    @pytest.fixture
    def given(self):
        model = load_model("embedded").model
        return model, Shapes("train", size=8)

    @pytest.mark.parametrize(
        "spec", ["captum:method=InputXGradient", "pytorch-grad-cam:method=GradCAMPlusPlus"]
    )
    def test_evaluated_not_attacked(self, given, spec):
        model, data = given
        foreign = parse_explainer(spec)
        assert not foreign.differentiable
        run = {"objective": Location(), "lr": 1e-3, "steps": 1, "quiet": True}
        with pytest.raises(TrompeError, match=r"can't be attacked.*no gradient.*eval_explainer"):
            fool(model, data, explainer=foreign, **run)
        result = fool(
            model, data, explainer=GradCAM(), eval_data=data, eval_explainer=[foreign], **run
        )
        rows = result.evaluation.explanations
        assert set(rows["explainer"]) == {
            "grad-cam:layer=stage3",
            str(foreign.resolve(model, data[0][0][None])),
        }

    def test_evaluate_next_to_ours_in_one_pass(self, given):
        model, data = given
        manipulated = copy.deepcopy(model)
        with torch.no_grad():
            manipulated.stage3[0].conv2.weight.mul_(-1)
        explainers = [CaptumExplainer(method="LayerGradCam"), GradCAM()]
        rows = evaluate(
            model, manipulated, data, explainers=explainers, objective=Location()
        ).explanations
        first, second = rows["test_loss_mean"]
        assert first == pytest.approx(second, abs=1e-6)

    def test_a_model_that_wraps_its_logits(self, model):
        class Wrapped(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, x):
                return type("Output", (), {"logits": self.inner(x)})()

        x = images()
        for method in ("captum:method=Saliency", "pytorch-grad-cam:method=GradCAM"):
            explainer = parse_explainer(method)
            torch.testing.assert_close(
                explainer(Wrapped(), x, CLASSES), explainer(model, x, CLASSES)
            )

    def test_on_the_command_line(self, trompe, tmp_path):
        Shapes("train", size=1).picture(0).save(tmp_path / "a.png")
        spec = "captum:method=Occlusion,sliding_window_shapes=[3,16,16],strides=[3,16,16]"
        code, _, err = trompe(
            *("explain", "--model", "embedded", "--images", tmp_path / "a.png", "--device", "cpu"),
            *("--explainer", spec, "--explainer", "pytorch-grad-cam:method=EigenCAM"),
            *("--out", tmp_path / "maps"),
        )
        assert code == 0, err
        assert (tmp_path / "maps" / "a.captum.overlay.png").exists()
        assert (tmp_path / "maps" / "a.pytorch-grad-cam.overlay.png").exists()
        code, _, err = trompe(
            *("fool", "--model", "embedded", "--data", "shapes", "--limit", 8, "--steps", 1),
            *("--explainer", "captum:method=Saliency", "--out", tmp_path / "run"),
        )
        assert code == 2
        assert "captum:method=Saliency,layer=input can't be attacked" in err or (
            "captum:method=Saliency can't be attacked" in err
        )


class TestOursBehindGradCAM:
    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("smooth", [False, True])
    def test_grad_cam_is_the_librarys_own(self, model, count, smooth):
        x = images()
        layers = [model.layer4, model.layer3][:count]
        targets = [ClassifierOutputTarget(int(c)) for c in CLASSES]
        with pytorch_grad_cam.GradCAM(model, layers) as theirs:
            expected = theirs(x, targets, aug_smooth=smooth)
        with ExplainerCAM(model, layers) as ours:
            found = ours(input_tensor=x, targets=targets, aug_smooth=smooth)
        assert found.dtype == expected.dtype == np.float32
        assert found.shape == expected.shape == (3, *x.shape[2:])
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_the_predicted_class_and_the_layer_found(self, model):
        x = images()
        with pytorch_grad_cam.GradCAM(model, [model.layer4]) as theirs:
            expected = theirs(x, None)
        np.testing.assert_allclose(ExplainerCAM(model)(x, None), expected, atol=1e-5)

    def test_any_explainer(self, model):
        x = images()
        targets = [ClassifierOutputTarget(int(c)) for c in CLASSES]
        cam = ExplainerCAM(model, [model.layer4], LRP())
        found = torch.from_numpy(cam(x, targets))
        with torch.no_grad(), Recording(model, LRP(layer=LAYER)) as forward:
            forward(x)
            expected = forward.heatmaps(CLASSES)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        size = expected.shape[1:]
        smaller = nn.functional.interpolate(found[:, None], size, mode="area")[:, 0]
        correlation = torch.corrcoef(torch.stack([smaller.flatten(), expected.flatten()]))[0, 1]
        assert correlation > 0.9

    def test_refuses(self, model):
        cam = ExplainerCAM(model)
        with pytest.raises(TrompeError, match="not ClassifierOutputSoftmaxTarget"):
            cam(images(), [ClassifierOutputSoftmaxTarget(0)] * 3)
        with pytest.raises(TrompeError, match="eigen_smooth"):
            cam(images(), None, eigen_smooth=True)


class TestGradCAMBehindOurs:
    @pytest.mark.parametrize("method", ["GradCAM", "GradCAMPlusPlus", "EigenCAM", "LayerCAM"])
    def test_maps_are_the_librarys(self, model, method):
        x = images()
        targets = [ClassifierOutputTarget(int(c)) for c in CLASSES]
        with getattr(pytorch_grad_cam, method)(model, [model.layer4]) as theirs:
            expected = theirs(x.clone().requires_grad_(), targets)
        model.requires_grad_(False)
        explainer = CAMExplainer(method=method, layer=LAYER)
        before = state(model)
        found = explainer(model, x, CLASSES)
        assert str(state(model)) == str(before)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_gradients_stay(self, model):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        CAMExplainer(method="GradCAM")(model, images(), CLASSES)
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())

    def test_mistakes(self, model):
        with pytest.raises(TrompeError, match="did you mean 'EigenCAM'"):
            parse_explainer("pytorch-grad-cam:method=EigenCam")
        with pytest.raises(TrompeError, match="layer=layer4"):
            CAMExplainer(method="GradCAM", layer="layer4:input")(model, images(), CLASSES)


class TestQuantus:
    """Its metrics on the embedded set, whose masks say where the object is."""

    @pytest.fixture
    def batch(self):
        data = Shapes("validation", size=4)
        images = torch.stack([data[i][0] for i in range(4)])
        masks = np.stack([data.mask(i).numpy()[None] for i in range(4)]).astype(float)
        return load_model("embedded").model, images, data.labels, masks

    @pytest.mark.parametrize("explainer", ["grad-cam", "lrp", LRP(layer=None)], ids=str)
    def test_a_metric_gets_the_explainers_maps(self, batch, explainer):
        import quantus  # takes seconds

        model, images, labels, masks = batch
        metric = quantus.RelevanceMassAccuracy(disable_warnings=True, normalise=False, abs=False)
        found = metric(
            model=model,
            x_batch=images.numpy(),
            y_batch=labels.numpy(),
            s_batch=masks,
            explain_func=explain_func,
            explain_func_kwargs={"explainer": explainer},
            device="cpu",
        )
        explainer = parse_explainer(explainer) if isinstance(explainer, str) else explainer
        with torch.no_grad():
            maps = resize(explainer(model, images, labels), images.shape[2:]).numpy()
        share = (maps * masks[:, 0]).sum((1, 2)) / maps.sum((1, 2))
        np.testing.assert_allclose(found, share, rtol=1e-4)
        assert (share > 0.3).all()

    def test_shapes(self, batch):
        model, images, labels, _ = batch
        maps = explain_func(model, images.numpy(), labels.numpy(), explainer="lrp-t")
        assert isinstance(maps, np.ndarray)
        assert maps.shape == (4, 1, 64, 64)
        one = explain_func(model, images[0].numpy(), int(labels[0]), explainer="lrp-t")
        np.testing.assert_allclose(one[0], maps[0], rtol=1e-4, atol=1e-4 * np.abs(maps).max())

    def test_refuses_what_it_does_not_know(self, batch):
        model, images, labels, _ = batch
        with pytest.raises(TrompeError, match="not method"):
            explain_func(model, images.numpy(), labels.numpy(), method="Saliency")


def parameters_of(method):
    return inspect.signature(CaptumExplainer.methods[method].attribute).parameters


def quarters(model, x, at_layer):
    """A mask of four features, so that perturbing each takes four passes."""
    size = (4, 4) if at_layer else x.shape[2:]
    rows, columns = (torch.arange(side) * 2 // side for side in size)
    mask = rows[:, None] * 2 + columns
    return mask[None, None].expand(1, 12 if at_layer else 3, *size).contiguous()
