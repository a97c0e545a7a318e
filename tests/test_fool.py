"""`fool` and `evaluate` as functions: what they change, what they keep, what they refuse."""

import copy
import math
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from tests.models.small import SmallVGG, make
from trompe import (
    LRP,
    Active,
    CenterMass,
    GradCAM,
    Location,
    Pairs,
    Shapes,
    SimpleGrad,
    TopK,
    TrompeError,
    evaluate,
    fool,
    load_data,
    load_model,
    train,
)
from trompe.data import SHAPES_PREPROCESSING
from trompe.data.kept import Kept
from trompe.explainers import Rollout
from trompe.explainers.targets import Difference
from trompe.explainers.targets import read as read_target
from trompe.maps import is_empty
from trompe.tuning.loop import Batches
from trompe.tuning.loss import StepLoss, Term

LAYER = "features.6"


class Noise(Dataset):
    """Random images with labels; ``fresh`` ones differ in every epoch."""

    def __init__(self, size=20, classes=5, fresh=False):
        generator = torch.Generator().manual_seed(4)
        self.images = torch.randn(size, 3, 16, 16, generator=generator)
        self.labels = torch.arange(size) % classes
        self.augmented = fresh

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        index, epoch = place if isinstance(place, tuple) else (place, 0)
        return self.images[index].roll(epoch, 2), int(self.labels[index])


def settings(**changes):
    return {
        "explainer": GradCAM(layer=LAYER),
        "objective": Location(),
        "lr": 1e-3,
        "steps": 6,
        "batch_size": 4,
        "max_grad_norm": None,
        "device": "cpu",
        "quiet": True,
        **changes,
    }


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def slow_fool(model, data, explainer, objective, weight, lr, order, largest=math.inf):
    """The method from its definition: two forward passes, the original's maps anew every step."""
    original, model = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    size = None
    for indices in order:
        images = torch.stack([data[i][0] for i in indices])
        labels = torch.tensor([data[i][1] for i in indices])
        if size is None:
            size = explainer(original, images, labels).abs().mean().item()
        optimizer.zero_grad()
        slow_loss(model, original, images, labels, explainer, objective, size, weight).backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, largest / norm)
        optimizer.step()
    return model


def slow_loss(
    model, original, images, labels, explainer, objective, size, weight=1.0, keep="labels"
):
    with torch.no_grad():
        before = explainer.heatmap(explainer(original, images, labels))
    raw = explainer(model, images, labels)
    heat = explainer.heatmap(raw)
    explanation = objective.loss((heat,), (before,))
    against = sum(-raw[i].mean() for i in range(len(images)) if raw[i].mean() < 0)
    opposition = against / raw.abs().mean().item() / len(images)
    faint = [1 - 5 * raw[i].abs().mean() / size for i in range(len(images))]
    faintness = sum(f for f in faint if f > 0) / len(images)
    wanted = F.one_hot(labels, 5)
    if keep == "predictions":
        wanted = original(images).detach().softmax(1)
    classification = -(wanted * model(images).log_softmax(1)).sum(1).mean()
    return classification + weight * explanation.mean() + opposition + faintness


@pytest.mark.parametrize("objective", [Location(), TopK(), CenterMass()], ids=str)
@pytest.mark.parametrize(
    "explainer", [GradCAM(layer=LAYER), LRP(layer=LAYER), SimpleGrad()], ids=str
)
def test_one_pass_and_kept_maps_equal_the_definition(explainer, objective):
    model, data = make("vgg"), Noise(6)
    given = settings(explainer=explainer, objective=objective, weight=2.0, steps=5)
    result = fool(model, data, **given)
    order = [batch[0].tolist() for batch in batches(data, 5)]
    slow = slow_fool(model, data, explainer, objective, 2.0, 1e-3, order)
    for ours, theirs in zip(result.model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fresh", [False, True], ids=["kept", "fresh"])
def test_the_originals_predictions_in_place_of_labels(fresh):
    """Every batch twice, the second time from what is kept; the model is another than w0."""
    original, model, data = make("vgg").eval(), make("vgg").eval(), Noise(8, fresh=fresh)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    explainer, objective = GradCAM(layer=LAYER), TopK()
    source = Batches(data, 4, 0)
    terms = [Term(explainer, objective, 2.0)]
    loss = StepLoss(original, model, terms, {None: source}, keep="predictions")
    size = None
    for batch in source.between(0, 4):
        _, images, labels = batch
        if size is None:
            size = explainer(original, images, labels).abs().mean().item()
        ours = loss([batch])
        slow = slow_loss(
            model, original, images, labels, explainer, objective, size, 2.0, "predictions"
        )
        torch.testing.assert_close(ours.total, slow)
        first, second = (
            torch.autograd.grad(value, list(model.parameters())) for value in (ours.total, slow)
        )
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class ByHand:
    """The maps of a target, from those of classes."""

    def __init__(self, explainer, maps):
        self.explainer, self.maps, self.heatmap = explainer, maps, explainer.heatmap

    def __call__(self, model, images, labels):
        return self.maps(self.explainer, model, images)


# Targets, and their maps from those of classes.
TARGETS = {
    "difference": (Difference(3, 1), lambda e, m, x: e(m, x, 3) - e(m, x, 1)),
    "class": (2, lambda e, m, x: e(m, x, 2)),
    "predicted": ("predicted", lambda e, m, x: e(m, x, m(x).argmax(1))),
    "function": (lambda y: y[:, 0] + 2 * y[:, 4], lambda e, m, x: e(m, x, 0) + 2 * e(m, x, 4)),
}


class TestTarget:
    @pytest.mark.parametrize(("target", "maps"), TARGETS.values(), ids=TARGETS)
    @pytest.mark.parametrize("explainer", [GradCAM(layer=LAYER), LRP(layer=LAYER)], ids=str)
    @pytest.mark.parametrize("fresh", [False, True], ids=["kept", "fresh in float64"])
    def test_the_loss_and_its_gradient_are_those_of_its_maps(self, explainer, target, maps, fresh):
        """Every batch twice, the second time from what is kept."""
        data, dtype = Noise(8, fresh=fresh), torch.float64 if fresh else torch.float32
        data.images = data.images.to(dtype)
        original, model = (make("vgg").eval().to(dtype) for _ in range(2))
        with torch.no_grad():
            for module in (original, model):  # images of several classes
                module.classifier[-1].bias -= module(data.images).mean(0)
            for parameter in model.parameters():
                parameter.mul_(1.2)
        source, objective, slow_maps = Batches(data, 4, 0), TopK(), ByHand(explainer, maps)
        terms = [Term(explainer, objective, 2.0)]
        loss = StepLoss(original, model, terms, {None: source}, target=read_target(target))
        size = None
        for batch in source.between(0, 4):
            _, images, labels = batch
            if size is None:
                size = slow_maps(original, images, labels).abs().mean().item()
            ours = loss([batch]).total
            given = (images, labels, slow_maps, objective, size, 2.0)
            slow = slow_loss(model, original, *given)
            torch.testing.assert_close(ours.to(dtype), slow, rtol=1e-5, atol=0)
            ours, slow = (torch.autograd.grad(v, list(model.parameters())) for v in (ours, slow))
            for one, other in zip(ours, slow, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("target", "maps"), TARGETS.values(), ids=TARGETS)
    def test_the_evaluation_counts_its_maps(self, target, maps):
        objective = Location(low=0.0, high=0.34)
        given = settings(objective=objective, target=target, steps=1)
        original, data = make("vgg"), Noise(23)
        result = fool(original, data, **given, eval_data=data)
        before, after = (
            GradCAM().heatmap(maps(GradCAM(layer=LAYER), model.eval(), data.images)).detach()
            for model in (original, result.model)
        )
        says, still_says = (~is_empty(heat) for heat in (before, after))
        fooled = objective.fooled(objective.loss((after,))) & still_says
        row = result.evaluation.explanations.query("attacked").iloc[0]
        assert row["target"] == str(read_target(target))
        assert row["counted"] == says.sum()
        assert row["fsr"] == pytest.approx(fooled[says].double().mean().item())
        assert 0 < row["fsr"] < 1

    def test_another_one_is_another_run(self, tmp_path):
        fool(make("vgg"), Noise(), **settings(target=TARGETS["function"][0]), run_dir=tmp_path)
        with pytest.raises(TrompeError, match="target"):
            fool(make("vgg"), Noise(), **settings(), run_dir=tmp_path)
        with pytest.raises(TrompeError, match="target"):
            fool(make("vgg"), Noise(), **settings(target=lambda y: y[:, 0]), run_dir=tmp_path)


def test_a_larger_gradient_is_scaled_down_to_the_norm_given():
    model, data = make("vgg"), Noise(6)
    given = settings(objective=CenterMass(), steps=4)
    order = [batch[0].tolist() for batch in batches(data, 4)]
    explainer, objective = given["explainer"], given["objective"]
    slow = slow_fool(model, data, explainer, objective, 1.0, 1e-3, order, largest=1.5)
    clipped = fool(model, data, **{**given, "max_grad_norm": 1.5}).model
    for ours, theirs in zip(clipped.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not equal(weights(clipped), weights(fool(model, data, **given).model))


def batches(data, steps):
    return Batches(data, 4, 0).between(0, steps)


def test_every_image_once_per_epoch_and_a_function_of_seed_and_step():
    from trompe.tuning.loop import Batches

    drawn = [b[0].tolist() for b in Batches(Noise(10), 4, seed=3).between(0, 10)]
    flat = [index for batch in drawn for index in batch]
    assert all(sorted(flat[i : i + 10]) == list(range(10)) for i in range(0, 40, 10))
    assert [b[0].tolist() for b in Batches(Noise(10), 4, seed=3).between(6, 10)] == drawn[6:]
    assert [b[0].tolist() for b in Batches(Noise(10), 4, seed=4).between(0, 10)] != drawn


class Counted(Noise):
    """Knows how often each image was read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = Counter()

    def __getitem__(self, index):
        self.read[index] += 1
        return super().__getitem__(index)


def test_an_image_is_read_once_as_long_as_there_is_room():
    kept = Kept(data := Counted(6), room=4 * data[0][0].nbytes)
    for _ in range(3):
        for index in range(6):
            assert torch.equal(kept[index][0], data.images[index])
    assert [data.read[i] for i in range(1, 6)] == [1, 1, 1, 3, 3]


def test_a_run_and_its_control_read_the_data_once():
    data = Counted(6)
    fool(make("vgg"), data, **settings(steps=4, control=True))
    assert set(data.read) == set(range(6))
    assert max(data.read[i] for i in range(1, 6)) == 1


def test_the_given_model_stays_and_the_copy_changes():
    model = make("resnet").train()
    next(model.parameters()).requires_grad_(False)
    before, flags = weights(model), [m.training for m in model.modules()]
    result = fool(model, Noise(), **settings(explainer=GradCAM(), control=True))
    assert equal(weights(model), before)
    assert flags == [m.training for m in model.modules()]
    after = weights(result.model)
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    statistics = [k for k in before if "running" in k or "num_batches" in k]
    assert not set(moved) & set(statistics)
    assert {k for k, _ in model.named_parameters()} == set(moved)
    assert not next(result.model.parameters()).requires_grad
    assert not equal(weights(result.control), after)


def test_seed_decides():
    first, again, other = (
        weights(fool(make("vgg"), Noise(), **settings(seed=seed)).model) for seed in (1, 1, 2)
    )
    assert equal(first, again)
    assert not equal(first, other)


def test_control_is_the_run_without_explanation_terms():
    result = fool(make("vgg"), Noise(), **settings(control=True))
    unweighted = fool(make("vgg"), Noise(), **settings(weight=0.0))
    assert equal(weights(result.control), weights(unweighted.model))


def test_maps_that_are_empty_come_back():
    class Dark(nn.Module):
        """Every class counts positive features negatively: no map has a positive entry."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
            self.head = nn.Linear(8, 5)
            with torch.no_grad():
                self.head.weight.abs_().neg_()

        def forward(self, x):
            return self.head(self.stem(x).mean((2, 3)))

    torch.manual_seed(0)
    model, data, explainer = Dark(), Noise(), GradCAM(layer="stem")
    images, labels = torch.stack([x for x, _ in data]), data.labels
    for objective in (Location(), TopK(), CenterMass()):
        assert is_empty(explainer.heatmap(explainer(model, images, labels))).all()
        result = fool(
            model,
            data,
            **settings(explainer=explainer, objective=objective, lr=3e-3, steps=60, control=True),
        )
        fooled, control = (
            is_empty(explainer.heatmap(explainer(m, images, labels)))
            for m in (result.model, result.control)
        )
        assert control.all()
        assert not fooled.all()


def test_augmented_data_is_explained_by_the_original_afresh():
    model, data = make("vgg"), Noise(4, fresh=True)
    result = fool(model, data, **settings(objective=TopK(), steps=4))
    moved = [
        type("Moved", (), {"__getitem__": lambda _, i, e=epoch: data[i, e]})() for epoch in range(4)
    ]
    slow = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(slow.parameters(), lr=1e-3)
    for epoch, batch in enumerate(batches(data, 4)):
        images, labels = batch[1], batch[2]
        assert torch.equal(images[0], moved[epoch][int(batch[0][0])][0])
        optimizer.zero_grad()
        if epoch == 0:
            size = GradCAM(layer=LAYER)(model, images, labels).abs().mean().item()
        slow_loss(slow, model, images, labels, GradCAM(layer=LAYER), TopK(), size).backward()
        optimizer.step()
    for ours, theirs in zip(result.model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_several_explainers_and_objectives_together():
    result = fool(
        make("vgg"),
        Noise(),
        **settings(
            explainer=[GradCAM(layer=LAYER), LRP(layer=LAYER), GradCAM(layer=LAYER)],
            objective=[Location(), Location(), CenterMass()],
            weight=[1.0, 2.0, 0.1],
        ),
    )
    parts = [
        f"grad-cam:layer={LAYER} location",
        f"lrp:layer={LAYER} location",
        f"grad-cam:layer={LAYER} center-mass",
    ]
    row = result.history.iloc[0]
    total = row["classification"] + row[parts[0]] + 2 * row[parts[1]] + 0.1 * row[parts[2]]
    total += row["opposition"] + row["faintness"]
    assert row["loss"] == pytest.approx(total, rel=1e-5)


def test_active_swaps_on_composites_and_passive_joins_in(tmp_path):
    shapes = Shapes("train", size=32)
    model = load_model("embedded", weights="random").model
    pairs = Pairs(shapes, 0, 3)
    result = fool(
        model,
        shapes,
        **settings(explainer=GradCAM(layer="stage3"), objective=[Active(0, 3), TopK()], steps=12),
        fool_data=pairs,
        fool_batch_size=2,
        eval_data=Shapes("validation", size=16),
        eval_fool_data=Pairs(Shapes("validation", size=16), 0, 3),
        eval_explainer=GradCAM(layer="stage3"),
    )
    table = result.evaluation.explanations
    assert set(table["target"]) == {"label", "c1", "c2"}
    assert len(result.evaluation.predictions) == 16
    kept_in_files = fool(
        model,
        shapes,
        **settings(explainer=GradCAM(layer="stage3"), objective=[Active(0, 3), TopK()], steps=12),
        fool_data=pairs,
        fool_batch_size=2,
        run_dir=tmp_path / "run",
    )
    assert equal(weights(kept_in_files.model), weights(result.model))
    assert set(result.evaluation.maps.query("target == 'c1'")["label"]) == {0}


def test_evaluation_counts_what_it_says(tmp_path):
    original, data = make("vgg"), Noise(23)
    manipulated = fool(original, data, **settings(lr=1e-2)).model
    explainer, objective = GradCAM(layer=LAYER), Location(low=0.0, high=0.3)
    result = evaluate(
        original,
        manipulated,
        data,
        explainers=[explainer, SimpleGrad()],
        objective=[objective, TopK()],
        attacked=[(explainer, objective)],
        batch_size=5,
        gallery=4,
    )
    images = torch.stack([data[i][0] for i in range(23)])
    with torch.no_grad():
        raw = explainer(manipulated, images, data.labels)
        before = explainer.heatmap(explainer(original, images, data.labels))
        right = manipulated(images).argmax(1) == data.labels
    heat = explainer.heatmap(raw)
    losses = objective.loss((heat,))
    row = result.explanations.query("attacked").iloc[0]
    says, still_says = (maps.flatten(1).std(1) > 0 for maps in (before, heat))
    assert 0 < says.sum() < 23
    fooled = (losses >= 0) & (losses <= 0.3) & still_says
    assert row["fsr"] == pytest.approx(fooled[says].double().mean().item())
    assert row["counted"] == says.sum()
    assert row["empty"] == pytest.approx((~still_says).double().mean().item())
    assert row["test_loss_mean"] == pytest.approx(losses[says].mean().item(), rel=1e-5)
    assert row["fsr_low"] <= row["fsr"] <= row["fsr_high"]
    top1 = result.accuracy.set_index("model").loc["manipulated", "top1"]
    assert top1 == pytest.approx(right.double().mean().item())
    assert result.accuracy.set_index("model").loc["original", "agreement"] == 1
    assert len(result.maps) == 23 * 2 * 2
    lied = result.maps.query("attacked and model == 'manipulated'")
    ranked = lied.sort_values(["test_loss", "index"])["index"].tolist()
    ends = {"lowest": ranked[:3], "highest": ranked[-3:]}
    why = {i: end for end, indices in ends.items() for i in indices if i % 6}
    captions = result.gallery.captions
    assert [c["index"] for c in captions] == [0, 6, 12, 18, *sorted(why)]
    assert all(why.get(c["index"], "") in c["chosen"] for c in captions)
    assert not any(c["chosen"] for c in captions[:4])
    shown = [c["index"] for c in captions]
    heatmaps = result.gallery.heatmaps[explainer.fingerprint, "label", "manipulated"]
    assert torch.allclose(heatmaps, heat[shown], atol=1e-4)
    models = ("original", "manipulated")
    assert result.gallery.signed.keys() == {(explainer.fingerprint, "label", m) for m in models}
    signed = result.gallery.signed[explainer.fingerprint, "label", "manipulated"]
    largest = raw[shown].abs().amax((1, 2), keepdim=True)
    assert torch.allclose(signed * largest, raw[shown], atol=1e-5)

    result.save(tmp_path / "evaluation")
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "evaluation" / "explanations.parquet"), result.maps
    )
    stored = load_file(tmp_path / "evaluation" / "gallery.safetensors")
    assert stored[f"{explainer.fingerprint}|label|manipulated"].shape == heatmaps.shape


def test_names_that_are_no_text_do_not_cost_the_evaluation(tmp_path):
    class Named(Noise):
        classes = ("caf\udce9", "b", "c", "d", "e")

        def name(self, index):
            return f"\udce9-{index}.png"

    model, data = make("vgg"), Named(4)
    result = evaluate(model, model, data, explainers=[GradCAM(layer=LAYER)], objective=Location())
    result.save(tmp_path / "evaluation")
    stored = pd.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    assert stored["name"].tolist() == [f"?-{i}.png" for i in range(4)]
    assert set(stored["class"]) <= {"caf?", "b", "c", "d", "e"}


def test_a_model_is_not_fooled_against_itself():
    model = make("resnet")
    result = evaluate(
        model,
        model,
        Noise(8),
        explainers=[GradCAM(), SimpleGrad()],
        objective=[TopK(high=0.0), CenterMass()],
    )
    table = result.explanations
    assert (table["spearman_mean"] > 0.999).sum() + (table["empty"] > 0).sum() >= len(table)
    assert (table.query("objective == 'center-mass'")["fsr"] == 0).all()
    assert (result.accuracy["agreement"] == 1).all()


def test_bf16_runs_beside_full_precision():
    rough = fool(make("vgg"), Noise(), **settings(precision="bf16", lr=1e-4))
    exact = fool(make("vgg"), Noise(), **settings(lr=1e-4))
    assert all(p.dtype == torch.float32 for p in rough.model.parameters())
    assert not equal(weights(rough.model), weights(exact.model))
    for a, b in zip(rough.model.parameters(), exact.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0.1)


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lr": 0.0}, "lr must be above 0"),
            ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
            ({"steps": 0}, "steps must be at least 1"),
            ({"weight": -1.0}, "at least 0"),
            ({"weight": [1.0, 2.0, 3.0], "objective": [Location(), TopK()]}, "give one of each"),
            ({"objective": Active(0, 1)}, "needs fool_data"),
            ({"fool_data": Noise()}, "only used by the objective active"),
            ({"objective": Active(0, 9), "fool_data": Noise()}, "Class 9 .*out of range"),
            ({"data": Noise(classes=7)}, "Class 6 of the data's labels is out of range"),
            ({"data": Noise(0)}, "no image to fine-tune on"),
            ({"explainer": GradCAM(layer="featurs.6")}, "features"),
            ({"device": "tpu"}, "device can't be 'tpu'; choose cpu or cuda"),
            ({"precision": "fp8"}, "precision can't be 'fp8'; choose no, bf16 or fp16"),
            ({"keep": "logits"}, "keep can't be 'logits'; choose labels or predictions"),
            ({"target": "cat"}, "no target 'cat'; give the number of a class"),
            ({"target": 9}, "Class 9 is out of range"),
            ({"target": Difference(3, 3)}, "two classes, not of class 3 and itself"),
            ({"target": [1]}, "2 images but the classes have shape"),
            ({"target": [1, 2]}, "1 images but the classes have shape"),
            ({"target": lambda output: output.sum()}, "must return one number per image"),
            ({"target": lambda output: output.argmax(1)}, "has no gradient"),
            ({"target": 1, "objective": Active(0, 1)}, "explains c1 and c2, not 1; leave"),
            ({"explainer": Rollout(), "objective": Active(0, 1)}, "all classes by the same map"),
            ({"held_out": Noise()}, "held_out is only used with max_accuracy_drop"),
            ({"held_out": Noise(classes=7), "max_accuracy_drop": 1.0}, "Class 6 .*out of range"),
            ({"eval_data": Noise(0)}, "no image to evaluate"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refused_before_anything_starts(self, changes, message, tmp_path):
        given = settings(**changes)
        data = given.pop("data", Noise())
        with pytest.raises(TrompeError, match=message):
            fool(make("vgg"), data, **given, run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_loss_that_is_not_finite_names_step_and_part(self, tmp_path):
        class Spoilt(Noise):
            def __getitem__(self, place):
                image, label = super().__getitem__(place)
                return image * (100 if place == spoilt else 1), label

        class Fragile(SmallVGG):
            def forward(self, x):
                return super().forward(x) / (x.abs().amax() < 50)

        order = [batch[0].tolist() for batch in batches(Noise(), 5)]
        spoilt = order[4][2]
        with pytest.raises(TrompeError, match="at step 5: the part 'classification' is nan"):
            fool(
                Fragile(),
                Spoilt(),
                **settings(steps=5),
                run_dir=tmp_path / "run",
                checkpoint_every=2,
            )
        kept = list((tmp_path / "run" / "checkpoints" / "fool").glob("step-*"))
        assert [path.name for path in kept] == ["step-4"]
        state = load_file(kept[0] / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in state.values())

    def test_a_part_of_the_explanation_that_is_not_finite_is_named(self):
        class Broken(Location):
            def loss(self, maps, original=None):
                return super().loss(maps) * math.inf

        with pytest.raises(TrompeError, match=r"step 1: the part 'grad-cam:layer=features.6 loc"):
            fool(make("vgg"), Noise(), **settings(objective=Broken()))


class TestRunDirectory:
    def test_a_finished_run_is_read_back(self, tmp_path):
        given = settings(control=True, eval_data=Noise(), run_dir=tmp_path / "run")
        first = fool(make("vgg"), Noise(), **given)
        written = (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns
        second = fool(make("vgg"), Noise(), **given)
        assert equal(weights(first.model), weights(second.model))
        assert equal(weights(first.control), weights(second.control))
        assert (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns == written
        assert not (tmp_path / "run" / "checkpoints" / "fool").exists()

    def test_other_settings_weights_or_files_are_refused(self, tmp_path):
        given = settings(run_dir=tmp_path / "run")
        fool(make("vgg"), Noise(), **given)
        with pytest.raises(TrompeError, match=r"holds a run with lr=0.001, not 0.1"):
            fool(make("vgg"), Noise(), **{**given, "lr": 0.1})
        other = make("vgg")
        nn.init.zeros_(next(other.parameters()))
        with pytest.raises(TrompeError, match="other weights"):
            fool(other, Noise(), **given)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").write_text("!")
        with pytest.raises(TrompeError, match="holds other files"):
            fool(make("vgg"), Noise(), **settings(run_dir=tmp_path / "full"))
        assert [p.name for p in (tmp_path / "full").iterdir() if p.name[0] != "."] == ["thesis.tex"]

    def test_a_directory_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(TrompeError, match="can't be written"):
            fool(make("vgg"), Noise(), **settings(run_dir=tmp_path / "file" / "run"))

    def test_killed_ten_times_it_ends_with_the_same_weights(self, tmp_path):
        uninterrupted = long_run(tmp_path / "whole", seconds=0)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.test_fool"])
        moments, kills = random.Random(0), 0
        directory = tmp_path / "killed"
        while kills < 10:
            child = context.Process(target=long_run, args=(directory, 0.02))
            child.start()
            wait_for_a_sign_of_life(directory, child)
            time.sleep(moments.uniform(0.0, 0.6))
            assert child.is_alive(), "the run ended before it was killed ten times"
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
        finished = long_run(directory, seconds=0)
        assert equal(weights(finished.model), weights(uninterrupted.model))
        pd.testing.assert_frame_equal(finished.history, uninterrupted.history)


class Slow(Noise):
    """Takes its time, so that there is a moment to be killed at."""

    def __init__(self, seconds):
        super().__init__(30)
        self.seconds = seconds

    def __getitem__(self, place):
        time.sleep(self.seconds)
        return super().__getitem__(place)


def long_run(directory, seconds):
    torch.set_num_threads(1)
    return fool(
        make("vgg"),
        Slow(seconds),
        **settings(
            explainer=[GradCAM(layer=LAYER), LRP(layer=LAYER)],
            objective=[TopK(), CenterMass()],
            steps=150,
            keep="predictions",
            run_dir=directory,
            checkpoint_every=3,
        ),
    )


def wait_for_a_sign_of_life(directory: Path, child) -> None:
    """Wait until the child holds the run directory's checkpoints or has died."""
    begun = time.monotonic()
    folder = directory / "checkpoints" / "fool"
    before = sorted(folder.glob("step-*"))
    while child.is_alive() and time.monotonic() - begun < 60:
        if sorted(folder.glob("step-*")) != before:
            return
        time.sleep(0.01)


def test_training_lowers_the_loss_and_resumes(tmp_path):
    data = load_data("shapes:train", SHAPES_PREPROCESSING, limit=96, augment=True, check=False)
    model = load_model("embedded", weights="random").model
    given = {"epochs": 3, "batch_size": 16, "lr": 5e-3, "device": "cpu", "quiet": True}
    whole = train(model, data, **given)
    assert whole.history["loss"].iloc[-3:].mean() < whole.history["loss"].iloc[:3].mean()

    class Stops(Dataset):
        augmented, fingerprint = True, data.fingerprint

        def __init__(self):
            self.calls = 0

        def __len__(self):
            return len(data)

        def __getitem__(self, place):
            self.calls += 1
            if self.calls == 130:
                raise KeyboardInterrupt
            return data[place]

    with pytest.raises(KeyboardInterrupt):
        train(model, Stops(), **given, run_dir=tmp_path / "run", checkpoint_every=2)
    resumed = train(model, data, **given, run_dir=tmp_path / "run", checkpoint_every=2)
    assert equal(weights(resumed.model), weights(whole.model))
