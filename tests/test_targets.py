"""What is explained: any form of classes, of outputs, and of heads."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, GradCAM, IntegratedGradients, Recording, SimpleGrad, SmoothGrad, TrompeError
from trompe.explainers import (
    AttentionRelevance,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RelevanceCAM,
    ScoreCAM,
    XGradCAM,
)
from trompe.explainers.foreign.captum import CaptumExplainer
from trompe.explainers.foreign.grad_cam import CAMExplainer
from trompe.explainers.relevance import conservation
from trompe.explainers.targets import Class, Difference, Function, Label, check_classes, read
from trompe.models.call import class_count, logits_of

EVERY = [
    GradCAM(),
    SimpleGrad(),
    SmoothGrad(samples=2),
    IntegratedGradients(steps=2),
    LRP(composite="epsilon"),
    CaptumExplainer(method="Saliency"),
]


def network(outputs=4, *last, dtype=torch.float32):
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8, outputs), *last).eval().to(dtype)


def images(count=3, dtype=torch.float32):
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=dtype)


class TestClasses:
    @pytest.mark.parametrize(
        "given",
        [
            [1, 2, 0],
            (1, 2, 0),
            [torch.tensor(1), torch.tensor(2), torch.tensor(0)],
            np.array([1, 2, 0], np.int16),
            *(torch.tensor([1, 2, 0], dtype=d) for d in (torch.uint8, torch.int32, torch.int64)),
        ],
        ids=repr,
    )
    def test_of_every_integer_type(self, given):
        assert torch.equal(check_classes(given, torch.zeros(3, 4)), torch.tensor([1, 2, 0]))

    @pytest.mark.parametrize("given", [2, np.int32(2), np.uint8(2), torch.tensor(2)], ids=repr)
    def test_one_for_all(self, given):
        assert torch.equal(check_classes(given, torch.zeros(3, 4)), torch.tensor([2, 2, 2]))
        explainer, model = SimpleGrad(), network()
        assert torch.equal(explainer(model, images(), given), explainer(model, images(), [2] * 3))

    @pytest.mark.parametrize(
        "given",
        [
            1.0,
            1.7,
            True,
            "cat",
            ["cat", "dog", "cat"],
            [1, 2, 0.5],
            torch.tensor([1.7, 1, 0]),
            torch.tensor([1, 1, 0], dtype=torch.bfloat16),
            torch.tensor([True, False, True]),
            torch.full((3, 4), 0.25),
            np.array([1.0, 2.0, 0.0]),
            [[1], [2, 3], [0]],
        ],
        ids=repr,
    )
    def test_what_is_no_whole_number_is_refused(self, given):
        with pytest.raises(TrompeError, match="whole numbers from 0 to 3, not"):
            check_classes(given, torch.zeros(3, 4))

    @pytest.mark.parametrize("given", [[1, 2], [[1, 2, 0]], np.zeros((3, 1), int)], ids=repr)
    def test_of_another_number_than_the_images(self, given):
        with pytest.raises(TrompeError, match="3 images but .* one class per image"):
            check_classes(given, torch.zeros(3, 4))

    @pytest.mark.parametrize(("given", "wrong"), [(4, "4"), (-1, "-1"), ([0, -100, 9], "-100")])
    def test_out_of_range(self, given, wrong):
        with pytest.raises(TrompeError, match=f"Class {wrong} is out of range"):
            check_classes(given, torch.zeros(3, 4))


class TestImages:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (images()[0], r"images\[None\]"),
            (images().numpy(), "not ndarray; torch.as_tensor"),
            (images().byte(), "floating-point numbers"),
            ([images()[0]], "not list"),
            (images(0), "nothing to explain"),
            (images()[:, :, :0], "nothing to explain"),
        ],
        ids=["one", "array", "bytes", "list", "empty batch", "no rows"],
    )
    @pytest.mark.parametrize("explainer", EVERY[:3], ids=str)
    def test_what_is_no_batch_is_refused(self, explainer, given, message):
        with pytest.raises(TrompeError, match=message):
            explainer(network(), given, 1)


class Returns(nn.Module):
    def __init__(self, model, form):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x):
        return self.form(self.model(x))


FORMS = {
    "object": lambda logits: SimpleNamespace(logits=logits, hidden=None),
    "dictionary": lambda logits: {"loss": None, "logits": logits},
    "tuple": lambda logits: (logits, logits * 2),
    "list": lambda logits: [logits],
}


class TestOutputs:
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    @pytest.mark.parametrize("explainer", EVERY, ids=str)
    def test_that_hold_logits(self, explainer, form):
        model = network()
        wrapped = Returns(model, form)
        torch.testing.assert_close(explainer(wrapped, images(), 1), explainer(model, images(), 1))
        assert class_count(wrapped, images()[0]) == 4
        assert torch.equal(logits_of(wrapped(images())), model(images()))

    @pytest.mark.parametrize(
        ("form", "got"),
        [
            (lambda y: {"scores": y}, "dict"),
            (lambda y: y[:, :, None], r"\[3, 4, 1\]"),
            (lambda y: y[:, :0], r"\[3, 0\]"),
            (lambda _: None, "NoneType"),
            (lambda _: (), "tuple"),
        ],
    )
    def test_without_logits_are_refused(self, form, got):
        with pytest.raises(TrompeError, match=rf"must return logits \[N, K\], not {got}"):
            SimpleGrad()(Returns(network(), form), images(), 1)


def entropy(output):
    return -(output.softmax(1) * output.log_softmax(1)).sum(1)


def squares(output, of=0):
    return output[:, of] ** 2 - 0.3 * output[:, 1] * output[:, 2]


def differences(of, against):
    """A difference of logits by hand; each class one or one per image."""

    of, against = ([given] if isinstance(given, int) else given for given in (of, against))

    def score(output):
        rows = torch.arange(len(output))
        return output[rows, of[: len(rows)]] - output[rows, against[: len(rows)]]

    return score


class Behind(nn.Module):
    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, output):
        return torch.stack((output[:, 0], self.score(output)), 1)


# Targets, and the same scalar of the output by hand.
TARGETS = {
    "difference": (Difference(3, 1), differences(3, 1)),
    "of each image": (Difference([0, 1, 3], [2, 2, 0]), differences([0, 1, 3], [2, 2, 0])),
    "entropy": (entropy, entropy),
    "squares": (Function(squares), squares),
    "text": ("difference:of=2,against=0", differences(2, 0)),
}
CAMS = [kind(layer="0") for kind in (GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM, ScoreCAM)]
BY_GRADIENT = [*(e for e in EVERY if not isinstance(e, LRP)), *CAMS]
BY_RELEVANCE = [
    LRP(composite="epsilon"),
    LRP(layer="0", composite="epsilon"),
    RelevanceCAM(layer="0", composite="epsilon"),
]
target_and_score = pytest.mark.parametrize(("target", "score"), TARGETS.values(), ids=TARGETS)


class TestTargets:
    @target_and_score
    @pytest.mark.parametrize("explainer", BY_GRADIENT, ids=str)
    def test_are_explained_as_a_class_with_that_logit(self, explainer, target, score):
        model = network()
        scalar = nn.Sequential(*model, Behind(score))
        torch.testing.assert_close(
            explainer(model, images(), target), explainer(scalar, images(), 1), rtol=1e-5, atol=1e-7
        )

    @target_and_score
    def test_attention_is_weighed_by_their_slope(self, target, score):
        torch.manual_seed(0)
        model = VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=4).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        scalar, x = nn.Sequential(model, Behind(score)), torch.randn(3, 3, 32, 32)
        found, expected = (
            AttentionRelevance()(*given) for given in ((model, x, target), (scalar, x, 1))
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    @target_and_score
    @pytest.mark.parametrize("lrp", BY_RELEVANCE, ids=str)
    def test_relevance_is_that_of_the_classes_by_their_slopes(self, target, score, lrp):
        """A class starts with its logit, a target with slope times logit; rules are linear."""
        model = network()
        output = model(images()).detach().requires_grad_()
        (slopes,) = torch.autograd.grad(score(output).sum(), output)
        expected = sum(slopes[:, k, None, None] * lrp(model, images(), k) for k in range(4))
        torch.testing.assert_close(lrp(model, images(), target), expected, rtol=1e-4, atol=1e-6)

    @target_and_score
    @pytest.mark.parametrize("explainer", [*EVERY[:5], *CAMS[:3], *BY_RELEVANCE[1:]], ids=str)
    def test_parameter_gradients_are_finite_differences(self, explainer, target, score):
        model, x = network(dtype=torch.float64), images(3, torch.float64)
        assert_gradient_is_finite_difference(explainer, model, x, target)

    def test_a_difference_is_that_of_two_maps(self):
        model = network()
        for explainer in (GradCAM(), IntegratedGradients(steps=2), LRP(composite="epsilon")):
            three, one = (explainer(model, images(), k) for k in (3, 1))
            found = explainer(model, images(), Difference(3, 1))
            torch.testing.assert_close(found, three - one, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("explainer", EVERY, ids=str)
    def test_the_class_that_is_left_out_is_the_most_probable_other_one(self, explainer):
        model = network()
        with torch.no_grad():  # images of several classes
            model[-1].bias -= model(images()).mean(0)
        first, second = model(images()).topk(2).indices.T
        third = (first + 1 + (second == first + 1)) % 4
        for target, of, against in (
            (Difference(), first, second),
            (Difference(of=third), third, first),
            (Difference(against=first), second, first),
        ):
            expected = explainer(model, images(), Difference(of, against))
            torch.testing.assert_close(explainer(model, images(), target), expected)

    def test_the_predicted_class_is_that_of_the_images_not_of_their_noisy_copies(self):
        model, explainer = network(), SmoothGrad(samples=4, sigma=3.0)
        first, second = model(images()).topk(2).indices.T
        found = explainer(model, images(), Difference())
        torch.testing.assert_close(found, explainer(model, images(), Difference(first, second)))

    def test_classes_are_a_target_too(self):
        model, explainer = network(), SimpleGrad()
        for given, target in ((2, Class(2)), (None, "predicted"), (2, "2"), ([1, 2, 0], Class)):
            target = Class(given) if target is Class else target
            same = explainer(model, images(), given), explainer(model, images(), target)
            assert torch.equal(*same)

    def test_of_a_binary_head(self):
        model = network(1)
        for explainer in EVERY:
            for side in (0, 1):
                torch.testing.assert_close(
                    explainer(model, images(), Difference(side, 1 - side)),
                    explainer(model, images(), side),
                )
            logit = explainer(model, images(), lambda output: output[:, 0])
            torch.testing.assert_close(logit, explainer(model, images(), 1))

    def test_relevance_of_a_difference_is_conserved(self):
        model, x = network(), images()
        for layer in model[:-2]:
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(model[-1].bias)
        output = model(x)
        maps = LRP(composite="epsilon")(model, x, Difference(3, 1))
        torch.testing.assert_close(maps.sum((1, 2)), output[:, 3] - output[:, 1], rtol=1e-3, atol=0)
        table = conservation(LRP(composite="epsilon"), model, x, Difference(3, 1))
        assert table["received"].iloc[0] == pytest.approx(1)
        assert table["received"].iloc[-1] == pytest.approx(1, abs=1e-3)

    @pytest.mark.parametrize(
        "explainer",
        [
            CaptumExplainer(
                method="Occlusion",
                options={"sliding_window_shapes": (3, 5, 5), "perturbations_per_eval": 3},
            ),
            CaptumExplainer(method="DeepLift"),
            CaptumExplainer(method="LayerGradCam", layer="0"),
            CAMExplainer(method="GradCAM", layer="0"),
            CAMExplainer(method="ScoreCAM", layer="0"),
        ],
        ids=str,
    )
    @target_and_score
    def test_other_libraries_explain_them(self, explainer, target, score):
        """Those of several images at once as those of one alone."""
        model = network()
        scalar = nn.Sequential(*model, Behind(score))
        found = explainer(model, images(), target)
        if target == TARGETS["of each image"][0]:
            for n, (of, against) in enumerate(zip(target.of, target.against, strict=True)):
                alone = explainer(model, images()[n : n + 1], Difference(of, against))
                torch.testing.assert_close(found[n : n + 1], alone, rtol=1e-4, atol=1e-6)
        else:
            expected = explainer(scalar, images(), 1)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    def test_several_explainers_share_one_pass(self):
        model = network()
        calls = []
        model.register_forward_hook(lambda *_: calls.append(1))
        explainers = (GradCAM(layer="0"), SimpleGrad(), LRP(composite="epsilon"))
        with Recording(model, explainers) as forward:
            forward(images())
            found = forward.maps(entropy)
            forward.maps(Difference())
        assert len(calls) == 1
        for explainer, maps in zip(explainers, found, strict=True):
            torch.testing.assert_close(maps, explainer(model, images(), entropy))

    @pytest.mark.parametrize(
        ("target", "said"),
        [
            ("cat", "no target 'cat'; give the number of a class, predicted"),
            ("diference", "did you mean difference"),
            ("difference:from=3", "no option 'from'; it takes of, against"),
            ("mine.py:nothing", "'mine.py' cannot be imported"),
            (Difference(3, 3), "of two classes, not of class 3 and itself"),
            (Difference(4, 0), "Class 4 is out of range"),
            (Difference(0, [1, 2]), "3 images but the classes have shape"),
            (Label(), "give a class, predicted or"),
            (lambda output: output, r"one number per image, \[3\] .*, not \[3, 4\]"),
            (lambda output: output.sum(), r"one number per image, \[3\] .*, not \[\]"),
            (lambda output: 1.0, "one number per image.* not float"),
            (lambda output: output.argmax(1), "has no gradient"),
            (lambda output: output[:, 9], r"can't be computed .* \[3, 4\] \(IndexError"),
        ],
    )
    @pytest.mark.parametrize("explainer", EVERY, ids=str)
    def test_that_are_none_are_refused(self, explainer, target, said):
        with pytest.raises(TrompeError, match=said) as refused:
            explainer(network(), images(), target)
        assert str(refused.value).count(". ") == 0

    def test_by_text(self, tmp_path):
        for text, target in (
            ("3", Class(3)),
            ("predicted", Class()),
            ("difference", Difference()),
            ("difference:of=3,against=8", Difference(3, 8)),
        ):
            assert read(text) == target
            assert read(str(target)) == target
        file = tmp_path / "mine.py"
        file.write_text(
            "def gap(output, of=0):\n    return output[:, of] - output.mean(1)\n\n\n"
            "class Top:\n"
            "    def __init__(self, k=2):\n        self.k = k\n\n"
            "    def __call__(self, output):\n"
            "        return output.topk(self.k).values.sum(1)\n"
        )
        output = torch.randn(3, 4)
        for text, expected in (
            ("gap", output[:, 0] - output.mean(1)),
            ("gap:of=2", output[:, 2] - output.mean(1)),
            ("Top:k=3", output.topk(3).values.sum(1)),
        ):
            target = read(f"{file}:{text}")
            torch.testing.assert_close(target.on(output)(output), expected)
        assert str(read(f"{file}:gap:of=2")) == "gap:of=2"

    def test_are_told_apart_by_what_they_hold(self):
        assert Difference(3, 1) == Difference(3, 1) != Difference(1, 3)
        assert Class([1, 2, 0]) != Class([1, 2, 1])
        assert Function(entropy) == Function(entropy) != Function(squares)
        assert read("difference:of=1") != read("difference:against=1")


class TestProbabilities:
    def said(self, call):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return [str(w.message) for w in caught if "probabilities" in str(w.message)]

    @pytest.mark.parametrize("explainer", [SimpleGrad(), GradCAM()], ids=str)
    def test_are_noticed(self, explainer):
        model = network(4, nn.Softmax(1))
        assert len(self.said(lambda: explainer(model, images(), 1))) == 1
        assert len(self.said(lambda: class_count(model, images()[0]))) == 1

    @pytest.mark.parametrize("last", [(), (nn.Sigmoid(),), (nn.LogSoftmax(1),), (nn.ReLU(),)])
    @pytest.mark.parametrize("outputs", [1, 4])
    def test_other_outputs_are_not(self, last, outputs):
        model = network(outputs, *last)
        assert not self.said(lambda: SimpleGrad()(model, images(), 0))
        assert not self.said(lambda: class_count(model, images()[0]))


class TestBinaryHead:
    """One logit: positive for class 1."""

    @pytest.fixture
    def model(self):
        model = network(1)
        with torch.no_grad():  # images of either class
            model[-1].bias -= model(images()).mean()
        return model

    @pytest.mark.parametrize("explainer", EVERY, ids=str)
    def test_either_class_is_a_side_of_the_logit(self, explainer, model):
        """As of two logits, minus it and it."""
        both = copy.deepcopy(model)
        both[-1] = nn.Linear(8, 2)
        state = {k: torch.cat([-v, v]) for k, v in model[-1].state_dict().items()}
        both[-1].load_state_dict(state)
        for classes in (0, 1, [1, 0, 1], None):
            torch.testing.assert_close(
                explainer(model, images(), classes), explainer(both, images(), classes)
            )
        with pytest.raises(TrompeError, match="the model has 2 classes"):
            explainer(model, images(), 2)

    @pytest.mark.parametrize("explainer", EVERY[:5], ids=str)
    def test_parameter_gradients_are_finite_differences(self, explainer):
        model, x = network(1, dtype=torch.float64), images(2, torch.float64)
        assert_gradient_is_finite_difference(explainer, model, x, [0, 1])

    def test_its_logits_mean_what_it_means(self, model):
        labels = torch.tensor([0, 1, 1])
        with Recording(model, ()) as forward:
            logits = forward(images())
        z = model(images())[:, 0]
        torch.testing.assert_close(
            nn.functional.cross_entropy(logits, labels),
            nn.functional.binary_cross_entropy_with_logits(z, labels.float()),
        )
        assert torch.equal(logits.argmax(1), (z > 0).long())
        assert class_count(model, images()[0]) == 2
