"""What is explained: any form of classes, of outputs, and of heads."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles import assert_gradient_is_finite_difference
from trompe import LRP, GradCAM, IntegratedGradients, Recording, SimpleGrad, SmoothGrad, TrompeError
from trompe.explainers.foreign.captum import CaptumExplainer
from trompe.explainers.targets import check_classes
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
