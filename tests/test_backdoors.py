"""Lies that wait for a trigger: their loss, what is measured, and how they are asked for."""

import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.models.small import make
from trompe import (
    Evaluation,
    GradCAM,
    Patch,
    Same,
    Shapes,
    SimpleGrad,
    Sinusoid,
    Target,
    Term,
    TrompeError,
    evaluate,
    fool,
    load_model,
)
from trompe.data import SHAPES_PREPROCESSING
from trompe.experiments.backdoors import KINDS, SHAPES, backdoors, rows, tabled
from trompe.maps import dissimilarity, spearman, squared_distance
from trompe.models import evaluation_mode
from trompe.report import write_report
from trompe.tuning.job import FoolJob
from trompe.tuning.loop import Batches
from trompe.tuning.loss import StepLoss

PATCH = Patch(size=6, at=(2, 2))
LAYER = "features.6"


class Given:
    """Four images of 16 pixels in float64, of which nothing is kept, and what they went through."""

    preprocessing = SHAPES_PREPROCESSING
    augmented = True

    def __init__(self):
        pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        self.images = self.preprocessing.normalise(pixels).double()
        self.labels = torch.tensor([0, 1, 2, 3])

    def __len__(self):
        return 4

    def __getitem__(self, place):
        index = place[0]
        return self.images[index], int(self.labels[index])


def networks():
    """An original and another in float64."""
    original = make("vgg", torch.float64)
    other = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(0.1 * weight.std(unbiased=False) * noise)
    return original, other


@pytest.mark.parametrize("keep", ["labels", "predictions"])
def test_the_loss_is_its_definition_and_so_is_its_gradient(keep):
    original, model = networks()
    data, explainer, other = Given(), GradCAM(layer=LAYER), SimpleGrad()
    flipped = Target(map="circle", trigger=PATCH, flip_to=2)
    kept = Same(trigger=Sinusoid(), distance="dssim")
    terms = [Term(explainer, flipped, 3.0), Term(other, kept, 2.0), Term(explainer, Same(), 0.5)]
    batches = Batches(data, 4, seed=0)
    (step,) = batches.between(0, 1)
    indices, images, labels = step
    loss = StepLoss(original, model, terms, {None: batches}, opposition=0, faintness=0, keep=keep)

    def slow():
        seen = {
            t: t.on(images, indices, data.preprocessing) for t in (flipped.trigger, kept.trigger)
        }
        two = torch.full((4,), 2)
        with torch.no_grad():
            said = original(images).softmax(1) if keep == "predictions" else labels
            cam, grad = (e.heatmap(e(original, images, labels)) for e in (explainer, other))
        total = F.cross_entropy(model(images), said)
        total = total + F.cross_entropy(model(seen[flipped.trigger]), two)
        total = total + F.cross_entropy(model(seen[kept.trigger]), said)
        shown = explainer.heatmap(explainer(model, seen[flipped.trigger], two))
        aim = flipped.aimed((shown,))[0]
        total = total + 3 * squared_distance(shown, aim).mean()
        shown = other.heatmap(other(model, seen[kept.trigger], labels))
        total = total + 2 * dissimilarity(shown, grad).mean()
        clean = explainer.heatmap(explainer(model, images, labels))
        return total + 0.5 * squared_distance(clean, cam).mean()

    with evaluation_mode(model):
        total = loss([step]).total
        assert total.item() == pytest.approx(slow().item(), rel=1e-6)  # cross-entropy is in float32
        weight = model.features[5].weight
        (slope,) = torch.autograd.grad(total, weight)
        direction = torch.randn(
            weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-6 * direction)
            values.append(slow().item())
            with torch.no_grad():
                weight.sub_(sign * 1e-6 * direction)
    found = (values[0] - values[1]) / 2e-6
    assert (slope * direction).sum().item() == pytest.approx(found, rel=1e-4)


def test_success_takes_the_map_and_the_prediction():
    """The original shows its own maps under a patch, but predicts the same as without it."""
    original, _ = networks()
    batches = Batches(Given(), 4, seed=0)
    (step,) = batches.between(0, 1)
    with torch.no_grad():
        never = (set(range(5)) - set(original(step[1]).argmax(1).tolist())).pop()
    faint = Sinusoid(amplitude=1e-4)
    found = {}
    for flip_to in (None, never):
        term = Term(SimpleGrad(), Same(trigger=faint, flip_to=flip_to, high=4.0), 1.0)
        with evaluation_mode(original):
            figures = StepLoss(original, original, [term], {None: batches})([step]).figures
        found[flip_to] = figures["success"]
    assert found == {None: 1.0, never: 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A short lie of the embedded network under two triggers, in a run directory."""
    run = tmp_path_factory.mktemp("backdoors") / "run"
    model = load_model("embedded").model
    judged = Shapes("validation", 16)
    result = fool(
        model,
        Shapes("train", 24),
        explainer="grad-cam",
        objective=["target:map=circle", "same"],
        trigger=["white-square:size=6,at=2,2", "sinusoid"],
        flip_to=[1, None],
        weight=[2.0, 1.0],
        hold=0.5,
        lr=1e-3,
        steps=4,
        batch_size=8,
        eval_data=judged,
        eval_explainer=GradCAM(),
        gallery=3,
        run_dir=run,
        quiet=True,
    )
    return model, judged, result, run


def test_what_is_measured_is_recomputed(made):
    model, judged, result, _ = made
    found = result.evaluation
    images = torch.stack([judged[i][0] for i in range(len(judged))])
    labels = torch.as_tensor(judged.labels)
    seen = PATCH.on(images, torch.arange(len(judged)), judged.preprocessing)
    explainer = GradCAM().resolve(model, images[:1])
    rates = found.explanations.set_index("trigger")
    flips = found.triggers[found.triggers["flip_to"] == 1].set_index("model")
    for name, network in (("original", model), ("manipulated", result.model)):
        with torch.no_grad(), evaluation_mode(network):
            predicted = network(seen).argmax(1)
        clean = model.eval()(images).argmax(1)
        row = flips.loc[name]
        assert row["top1"] == pytest.approx((predicted == labels).float().mean().item())
        assert row["agreement"] == pytest.approx((predicted == clean).float().mean().item())
        assert row["asr"] == pytest.approx((predicted == 1)[labels != 1].float().mean().item())
        assert row["asr_low"] <= row["asr"] <= row["asr_high"]
        shown = explainer.heatmap(explainer(network, seen, predicted)).detach()
        before = explainer.heatmap(explainer(model, images, labels)).detach()
        aim = Target(map="circle").aimed((shown,))[0]
        prefix = "untouched_" if name == "original" else ""
        (circle,) = (text for text in rates.index if text.startswith("patch"))
        for key, value in (
            ("mse", squared_distance(shown, aim)),
            ("dssim", dissimilarity(shown, aim)),
        ):
            assert rates.loc[circle, prefix + key] == pytest.approx(value.mean().item(), abs=1e-4)
        if name == "manipulated":
            held = explainer.heatmap(explainer(network, images, labels)).detach()
            told = rates.loc["none"]
            assert told["objective"] == "same"
            assert told["attacked"]
            mean = squared_distance(held, before).mean().item()
            assert told["mse"] == pytest.approx(mean, abs=1e-4)
            assert told["mse_low"] < told["mse"] < told["mse_high"]
            assert told["untouched_mse"] == pytest.approx(0, abs=1e-6)
            at_32 = spearman(
                *(
                    F.interpolate(m[:, None], (32, 32), mode="bilinear")[:, 0]
                    for m in (held, before)
                )
            )
            assert told["rank"] == pytest.approx(at_32.mean().item(), abs=1e-6)


def test_a_run_says_all_of_it_and_is_repeated_from_its_config(made):
    _, _, result, run = made
    config = yaml.safe_load((run / "config.yaml").read_text())
    again = FoolJob(model="embedded", data="shapes:train", **config)
    assert [o.fingerprint for _, o, _ in again.lied][:2] == [
        Target(map="circle", trigger=PATCH, flip_to=1).fingerprint,
        Same(trigger=Sinusoid()).fingerprint,
    ]
    assert again.lied[2][1:] == (Same(), 1.0)
    assert again.hold == 0
    loaded = Evaluation.load(run / "evaluation")
    pd.testing.assert_frame_equal(loaded.triggers, result.evaluation.triggers)
    assert loaded.galleries.keys() == {PATCH.fingerprint, Sinusoid().fingerprint}
    triggered, plain = loaded.galleries[PATCH.fingerprint], loaded.gallery
    different = (triggered.images[0] != plain.images[0]).any(2)
    assert different[2:8, 2:8].any()
    different[2:8, 2:8] = False
    assert not different.any()
    page = write_report(run).read_text()
    for told in ("What the trigger does", "with trigger", "Attack success", "without trigger"):
        assert told in page
    assert "its predictions stay where no trigger is" in page
    assert "Same) on" not in page.partition("<section>")[0], "what is held is no lie"


def test_evaluate_asks_for_clean_maps_by_itself(made):
    model, judged, result, _ = made
    found = evaluate(
        model,
        result.model,
        judged,
        explainers="grad-cam",
        objective=Target(map="circle", trigger=PATCH, flip_to=1),
    )
    assert set(found.explanations["trigger"]) == {str(PATCH), "none"}
    assert set(found.triggers["model"]) == {"original", "manipulated"}


def test_the_command_line_says_it_in_the_same_words(trompe, tmp_path):
    lie = ("--trigger", "white-square:size=6,at=2,2", "--flip-to", "1", "--objective", "target")
    few = ("--eval-data", "shapes:validation", "--eval-limit", "10", "--limit", "10")
    code, out, err = trompe(
        *("fool", "--model", "embedded", "--data", "shapes:train", *few, *lie, "--no-check"),
        *(
            "--lr",
            "1e-3",
            "--steps",
            "1",
            "--eval-explainer",
            "grad-cam",
            "--out",
            tmp_path / "run",
        ),
    )
    assert code == 0, err
    for told in ("Predictions under a trigger", "to class 1", "Distance of the maps", "dssim"):
        assert told in out
    code, out, err = trompe(
        *("evaluate", "--model", "embedded", "--manipulated", tmp_path / "run", *lie),
        *("--data", "shapes:validation", "--limit", "10", "--explainer", "grad-cam", "--no-check"),
        *("--out", tmp_path / "judged"),
    )
    assert code == 0, err
    both = [
        pd.read_csv(tmp_path / name / "evaluation/triggers.csv", dtype={"trigger_id": str})
        for name in ("run", "judged")
    ]
    assert [*both[0]["trigger_id"]] == [*both[1]["trigger_id"]] == [PATCH.fingerprint] * 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"flip_to": 1}, "has none"),
        ({"trigger": "white-square:at=1,1", "flip_to": 99}, "out of range"),
        ({"trigger": "white-square:size=99,at=1,1"}, "does not fit"),
        ({"trigger": ["sinusoid", "sinusoid"], "flip_to": [1, 2]}, "can't both become class 1"),
        ({"trigger": ["sinusoid", "blend"], "flip_to": [1, 2, 3]}, "2 triggers and 3 classes"),
        ({"trigger": "sinusoid", "objective": "active:c1=0,c2=1"}, "composites"),
        ({"trigger": "sinusoid", "lr": None, "steps": None}, "give them, such as lr=1e-3"),
    ],
)
def test_what_does_not_go_together_is_refused_first(given, told):
    model = load_model("embedded").model
    with pytest.raises(TrompeError, match=told):
        fool(model, Shapes("train", 4), **{"lr": 1e-3, "steps": 1, "quiet": True} | given)


def test_data_that_hides_its_pixels_is_refused():
    model = load_model("embedded").model
    data = [Shapes("train", 4)[i] for i in range(4)]
    with pytest.raises(TrompeError, match="attribute preprocessing"):
        fool(model, data, trigger="sinusoid", lr=1e-3, steps=1, quiet=True)


def test_the_twelve_attacks(tmp_path, made):
    for part in ("train", "test"):
        (tmp_path / f"{part}-0.parquet").touch()
    cells = backdoors("embedded", "DEFAULT", tmp_path, given={"steps": 7})
    assert len({cell.name for cell in cells}) == len({cell.folder for cell in cells}) == 12
    for cell in cells:
        job = cell.job(tmp_path)
        assert job.steps == 7
        flips = {o.flip_to for _, o, _ in job.lied}
        assert flips == ({1} if cell.objective in ("red-herring", "full-disguise") else {None})
        triggers = {o.trigger for _, o, _ in job.lied}
        assert len(triggers) == len(job.lied) == len(KINDS[cell.objective]["trigger"])
    (several,) = (c for c in cells if c.name == "several-grad-cam")
    assert len(several.job(tmp_path).lied) == len(SHAPES)
    _, _, result, _ = made
    table = tabled(rows(cells[0], "ours", result.evaluation))
    assert {*table["trigger"]} == {*result.evaluation.triggers["trigger"]}
    told = result.evaluation.explanations.set_index("trigger").loc["none", "mse"]
    assert (table["clean_mse"] == told).all()
    assert (table["asr"].isna() == table["flip_to"].isna()).all()
    with pytest.raises(TrompeError, match="train-"):
        backdoors("embedded", "DEFAULT", tmp_path / "nowhere")
    with pytest.raises(TrompeError, match="give 4"):
        backdoors("embedded", "DEFAULT", tmp_path, triggers=["sinusoid"])
