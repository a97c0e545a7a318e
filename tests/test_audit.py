"""The audit: curves and measures against slow ones, properties, the verdict, the command line."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.utils.data import TensorDataset

import trompe as package
from trompe.audit import (
    DEFAULT,
    EXPLAINERS,
    AuditReport,
    answers,
    audit,
    calibrate,
    load_calibration,
    removal,
)
from trompe.audit.consensus import AT_INPUT, consensus
from trompe.audit.evidence import EVIDENCE, Drift, Evidence, questions
from trompe.audit.evidence.agreement import Agreement
from trompe.audit.evidence.class_swap import ClassSwap, composed
from trompe.audit.evidence.faithfulness import Faithfulness, Gaps, gaps
from trompe.audit.evidence.randomisation import with_random_head
from trompe.audit.evidence.sameness import Sameness
from trompe.audit.fit import RIDGE, auroc, cross_validated, fit, totals
from trompe.audit.observe import Observations
from trompe.audit.probe import make_probe, side_by_side
from trompe.audit.removal import GRID, SHARES, curve, fill, gap, occlusion_maps, on_grid
from trompe.audit.verdict import Normal, Rule
from trompe.audit.weights import weight_drift
from trompe.audit.zoo import load_zoo, pruned, quantised
from trompe.data.subset import parted
from trompe.errors import TrompeError
from trompe.evaluation.accuracy import predictions
from trompe.models import save_weights
from trompe.models.embedded import packaged_weights
from trompe.repair import RepairResult, repair, with_statistics
from trompe.tuning.job import TrainJob
from trompe.tuning.retrain import Retrain


def images(count=3, side=32, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Seen(dict):
    """Observations by the function that makes them, given instead of made."""

    def __init__(self, observations=(), **given):
        super().__init__(observations)
        vars(self).update(given)


GRAD_CAM, LRP, SIMPLE_GRAD = package.GradCAM(), package.LRP(), package.SimpleGrad()


def slowly_filled(colours, gone):
    """Cell colours [g, g, 3] in float64, every missing one relaxed to its neighbours' mean."""
    side = len(colours)
    found = np.where(gone[..., None], 0.0, colours)
    for _ in range(4000):
        new = found.copy()
        for row in range(side):
            for column in range(side):
                if gone[row, column]:
                    total, weights = np.zeros(3), 0.0
                    for down in (-1, 0, 1):
                        for across in (-1, 0, 1):
                            r, c = row + down, column + across
                            if (down or across) and 0 <= r < side and 0 <= c < side:
                                weight = 1 / 6 if not (down and across) else 1 / 12
                                total += weight * found[r, c]
                                weights += weight
                    new[row, column] = total / weights
        if np.abs(new - found).max() < 1e-9:
            break
        found = new
    return found


def test_a_filled_cell_is_the_mean_of_its_neighbours(monkeypatch):
    monkeypatch.setattr(removal, "NOISE", 0.0)
    given = images(1, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)  # cells of one colour
    gone = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    gone[0, 0, 0] = False
    centres = fill(given, gone)[0, :, 2::4, 2::4]
    corners = fill(given, gone)[0, :, 1::4, 1::4]
    expected = slowly_filled(
        given[0, :, ::4, ::4].permute(1, 2, 0).double().numpy(), gone[0].numpy()
    )
    field = interpolate(torch.tensor(expected).permute(2, 0, 1)[None], (16, 16), mode="bilinear")[0]
    where = gone[0].numpy()
    for found, start in ((centres, 2), (corners, 1)):
        np.testing.assert_allclose(
            found.numpy()[:, where], field[:, start::4, start::4].numpy()[:, where], atol=1e-4
        )


def test_what_is_not_taken_away_stays_as_it_is():
    given = images()
    gone = torch.zeros(3, GRID, GRID, dtype=torch.bool)
    gone[:, 2:4, 5] = True
    filled = fill(given, gone)
    where = gone.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(filled[~where], given[~where])
    assert not torch.equal(filled[where], given[where])


def score_of(row, column):
    """A model that looks at one cell only."""
    return lambda given: adaptive_avg_pool2d(given, GRID).mean(1)[:, row, column]


def test_occlusion_is_highest_where_the_model_looks():
    given = images()
    given[:, :, 8:12, 20:24] += 5
    lost = occlusion_maps(score_of(2, 5), given)
    assert lost.shape == (3, GRID, GRID)
    assert (lost.flatten(1).argmax(1) == 2 * GRID + 5).all()
    assert lost[:, 5:, :3].abs().max() < 1e-5


def test_a_curve_falls_when_the_cell_that_matters_is_gone():
    given = images()
    given[:, :, 8:12, 20:24] += 5
    maps = torch.zeros(3, GRID, GRID)
    maps[:, 2, 5] = 1
    first = curve(score_of(2, 5), given, maps, most_relevant_first=True)
    last = curve(score_of(2, 5), given, maps, most_relevant_first=False)
    before = score_of(2, 5)(given)
    assert first.shape == (3, len(SHARES))
    assert (first[:, 0] < before - 3).all()
    torch.testing.assert_close(last[:, :3], before[:, None].expand(-1, 3))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_gap_of_the_opposite_order_is_the_opposite(seed):
    given = images(seed=seed)
    maps = torch.rand(3, GRID, GRID, generator=torch.Generator().manual_seed(seed))
    found = gap(score_of(2, 5), given, maps)
    torch.testing.assert_close(gap(score_of(2, 5), given, -maps), -found, atol=1e-5, rtol=1e-4)


def test_agreement_and_sameness_are_mean_rank_correlations():
    explainers = (GRAD_CAM, LRP, SIMPLE_GRAD, package.SimpleGrad(layer="layer4"))
    maps = {e: torch.rand(5, GRID, GRID) for e in explainers}
    maps[package.GradCAM(layer="layer3")] = torch.rand(5, GRID, GRID)  # of the same family
    found = Agreement().measure(Seen(maps=maps))
    first, *others = (maps[e][2].flatten() for e in explainers)
    expected = np.mean([spearmanr(first, other)[0] for other in others])
    assert found[GRAD_CAM][2] == pytest.approx(expected, abs=1e-6)
    assert Agreement().measure(Seen(maps={GRAD_CAM: maps[GRAD_CAM]})) == {}
    same = Sameness().measure(Seen(maps={GRAD_CAM: maps[GRAD_CAM]}))[GRAD_CAM]
    others = [maps[GRAD_CAM].flatten(1)[(2 - shift) % 5] for shift in (1, 7, 19)]
    assert same[2] == pytest.approx(np.mean([spearmanr(first, o)[0] for o in others]), abs=1e-6)


def test_faithfulness_is_1_for_occlusion_and_0_for_chance():
    occlusion, random = torch.rand(9) + 1, torch.rand(9)
    given = Gaps({GRAD_CAM: occlusion, LRP: random}, occlusion, random)
    found = Faithfulness().measure(Seen({gaps: given}))
    assert found[GRAD_CAM].mean() == pytest.approx(1, abs=1e-6)
    assert found[LRP].abs().max() == 0


def test_class_swap_tells_following_from_swapping():
    follows = torch.zeros(4, 2, 7, 7)
    follows[:, 0, :, :3] = 1
    follows[:, 1, :, 4:] = 1
    swapped = follows.flip(1)
    ring = torch.ones(4, 2, 7, 7)
    ring[:, :, 1:-1, 1:-1] = 0
    maps = torch.cat([follows, swapped, ring])
    probe = SimpleNamespace(pair=torch.arange(12) // 4)
    found = ClassSwap().measure(Seen({composed: {GRAD_CAM: maps}}, probe=probe))[GRAD_CAM]
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0]))


def test_composites_show_the_middles():
    left, right = images(2, 16), images(2, 16, seed=1)
    composed = side_by_side(left, right)
    assert torch.equal(composed[..., :8], left[..., 4:12])
    assert torch.equal(composed[..., 8:], right[..., 4:12])


def test_weight_drift_is_relative_and_by_tensor():
    model, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(1.5 * reference.weight)
        model.bias.copy_(reference.bias)
    found = weight_drift(model, reference).set_index("what")["change"]
    assert found["weight"] == pytest.approx(0.5)
    assert found["bias"] == 0
    assert weight_drift(model, nn.Linear(4, 2)).empty


class Headed(nn.Module):
    """Heads that are registered before the features, and may share their weights."""

    def __init__(self, *heads, tied=False):
        super().__init__()
        self.heads = heads
        for name in heads:
            self.add_module(name, nn.Linear(6, 6))
        self.body, self.middle = nn.Conv2d(3, 6, 3), nn.Linear(6, 6)
        if tied:
            self.middle.weight = getattr(self, heads[0]).weight

    def forward(self, images):
        features = self.middle(self.body(images).relu().mean((2, 3))).relu()
        return sum(getattr(self, name)(features) for name in self.heads)


class Functional(Headed):
    """A head that is no layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Parameter(torch.randn(6, 4))

    def forward(self, images):
        return self.body(images).relu().mean((2, 3)) @ self.last


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: package.load_model("embedded").model, ["classifier.weight"]),
        (lambda: Headed("first"), ["first.weight"]),
        (lambda: Headed("first", "second"), ["first.weight", "second.weight"]),
        (lambda: Headed("first", tied=True), ["first.weight"]),
        (Functional, ["last"]),
    ],
    ids=["embedded", "registered-first", "two", "tied", "functional"],
)
def test_a_random_head_leaves_the_rest(make, expected):
    torch.manual_seed(0)
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = with_random_head(model, images(1, 16)).state_dict()
    assert [name for name, tensor in before.items() if not torch.equal(tensor, other[name])] == (
        expected
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for name in expected:
        assert float(other[name].std()) == pytest.approx(float(before[name].std()), rel=0.5)


QUESTIONS = [q for q in questions(DEFAULT) if q.section == "alone"]


def evidence(asked, models=30, gap=2.0, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for number in range(models):
        lies = number % 2 == 1
        for place, (question, family) in enumerate(product(asked, ("grad-cam", "lrp-t"))):
            away = gap if lies and place < 3 else 0.0
            end = question.evidence.suspicious
            rows.append(
                {
                    "model": f"m{number}",
                    "network": f"n{number % 3}",
                    "manipulated": lies,
                    "kind": question.name,
                    "suspicious": end,
                    "family": family,
                    "score": (1 if end == "high" else -1) * (random.normal() + away),
                }
            )
    return pd.DataFrame(rows)


def test_the_fit_is_ridge_logistic_regression():
    rows = evidence(QUESTIONS[:3], models=80)
    rule = fit(rows)
    judged = rule.judged(rows)
    table = judged.pivot_table(index="model", columns=["kind", "family"], values="suspicion")
    lies = rows.groupby("model")["manipulated"].first().loc[table.index]
    expected = LogisticRegression(C=1 / RIDGE, class_weight="balanced").fit(table, lies)
    weights = np.array([rule.weights[kind][family] for kind, family in table])
    np.testing.assert_allclose(weights, expected.coef_[0].clip(0), atol=0.05)
    assert min(weights) >= 0
    ours = totals(rule, rows)
    assert auroc(ours.to_numpy(), lies.loc[ours.index].to_numpy()) == pytest.approx(
        roc_auc_score(lies.loc[ours.index], ours)
    )


def test_held_out_networks_set_the_threshold():
    rows = evidence(QUESTIONS[:11], models=120)
    rule, table = cross_validated(rows)
    assert len(rule.honest) == len(table) // 2 == 60
    for network, of in table.groupby("network"):
        others = rows[rows["network"] != network]
        apart, own = fit(others), rows[rows["network"] == network]
        expected = totals(apart, own)
        pd.testing.assert_series_equal(of.set_index("model")["total"], expected, check_names=False)
        honest = totals(apart, others[~others["manipulated"]])
        before = of.set_index("model")["total"] > np.quantile(honest, 0.95)
        pd.testing.assert_series_equal(
            of.set_index("model")["alarm_before"], before, check_names=False
        )
    honest = sorted(table[~table["manipulated"]]["total"])
    # At most 5 % of 60 may lie above: the three highest do, the fourth does not.
    assert honest[-4] <= rule.threshold < honest[-3]
    assert set(table[table["alarm"]]["model"]) == set(
        table[table["total"] > rule.threshold]["model"]
    )
    assert rule.found == pytest.approx(table[table["manipulated"]]["alarm"].mean())
    assert rule.found > 0.5
    fresh = totals(rule, evidence(QUESTIONS[:11], models=200, seed=1))
    lies = np.arange(200) % 2 == 1
    alarms = fresh.loc[[f"m{n}" for n in range(200)]].to_numpy() > rule.threshold
    assert alarms[~lies].mean() < 0.12 < 0.5 < alarms[lies].mean()


@given(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from(["low", "high"]))
def test_suspicion_grows_towards_the_suspicious_end(first, second, end):
    normal = Normal(-0.5, 0.1, 0.9)
    assert normal.suspicion(0.1, end) == 0
    assert normal.suspicion(0.9 if end == "high" else -0.5, end) == pytest.approx(1)
    low, high = sorted((first, second))
    order = normal.suspicion(low, end) <= normal.suspicion(high, end)
    assert order if end == "high" else normal.suspicion(low, end) >= normal.suspicion(high, end)


def test_evidence_that_was_not_calibrated_weighs_nothing():
    normal, weights = {"noise": {"grad-cam": Normal(0, 0.5, 1)}}, {"noise": {"grad-cam": 2.0}}
    rule = Rule(normal, weights, -1.0, (0.0, 1.0, 2.0))
    scores = pd.DataFrame(
        [
            {"kind": "noise", "suspicious": "low", "family": "grad-cam", "score": 0.0},
            {"kind": "noise", "suspicious": "low", "family": "mine", "score": -9.0},
            {"kind": "mine", "suspicious": "low", "family": "grad-cam", "score": -9.0},
        ]
    )
    verdict = rule.verdict(rule.judged(scores))
    assert verdict.total == pytest.approx(1.0)
    assert verdict.false_alarms == pytest.approx(3 / 4)


def test_the_packaged_calibration_is_complete():
    calibration = load_calibration()
    asked = questions(DEFAULT)
    for section in ("alone", "reference"):
        names = {question.name for question in asked if question.section == section}
        assert set(calibration.rules[section].weights) == names
        assert len(calibration.rules[section].honest) >= 20
        weights = calibration.rules[section].weights.values()
        assert min(weight for by_explainer in weights for weight in by_explainer.values()) >= 0


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_pruning_and_quantising(share):
    model = package.load_model("embedded").model
    weight = pruned(model, share).stem[0].weight
    assert (weight == 0).float().mean() == pytest.approx(share, abs=0.01)
    levels = quantised(model, 4).stem[0].weight.unique()
    assert len(levels) <= 15
    assert (quantised(model, 8).stem[0].weight - model.stem[0].weight).abs().max() < 0.01


def test_the_zoo_has_what_it_says():
    members = load_zoo(None, "cifar")
    honest = [m for m in members if not m.manipulated]
    assert len(honest) >= 40
    assert len(members) - len(honest) >= 40
    assert len({m.name for m in members}) == len(members)
    assert {m.family for m in members} == {"vgg", "resnet", "densenet"}
    assert {m.dataset for m in load_zoo(None)} == {"shapes"}


FOOLED, LAYER = "embedded-resnet", "layer4.1:input"


@pytest.fixture
def quick(monkeypatch):
    """The copy of the suspect is retrained for fewer steps, where it is not what is asked."""
    monkeypatch.setattr(answers, "Retrain", partial(Retrain, steps=10))


class Coloured(torch.utils.data.Dataset):
    """Noise with one bright square, red or green or blue."""

    classes = ("red", "green", "blue")

    def __init__(self, count, seed=0):
        random = np.random.default_rng(seed)
        self.labels = torch.arange(count) % 3
        self.images = images(count, 16, seed)
        for image, label in zip(self.images, self.labels, strict=True):
            row, column = random.integers(0, 10, 2)
            image[int(label), row : row + 6, column : column + 6] += 4

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row], int(self.labels[row])


@pytest.fixture(scope="module")
def small():
    """A small network that tells colours apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(8, 3)),
    )
    tuned = package.train(model, Coloured(300), epochs=3, lr=0.03, batch_size=20, quiet=True).model
    return tuned.eval()


@pytest.fixture(scope="module")
def fooled(tmp_path_factory):
    """An embedded model, fooled and honestly fine-tuned for as long."""
    root = tmp_path_factory.mktemp("audit")
    model, preprocessing = package.load_model(FOOLED)
    data = package.load_data("shapes:train", preprocessing, limit=600, check=False)
    explainer = package.GradCAM(layer=LAYER)
    lie = {"explainer": explainer, "objective": package.Location(), "weight": 6.0}
    settings = {"lr": 4e-3, "schedule": "one-cycle", "steps": 80, "batch_size": 16}
    result = package.fool(model, data, **lie, **settings, control=True, run_dir=root / "run")
    return root, result


def test_the_command_finds_a_fooled_model_and_acquits_an_honest_one(fooled, trompe, monkeypatch):
    monkeypatch.setattr(answers, "Retrain", partial(Retrain, steps=80))
    root, _ = fooled
    given = ["--model", FOOLED, "--data", "shapes:validation", "--limit", "80"]
    given += ["--reference", packaged_weights(FOOLED)]
    for name in ("grad-cam", "lrp-t"):
        given += ["--explainer", f"{name}:layer={LAYER}"]
    rates, fell = {}, {}
    for name in ("weights", "weights-control"):
        suspect = root / "run" / f"{name}.safetensors"
        out = root / f"audit-{name}"
        code, said, wrong = trompe("audit", suspect, *given, "--out", out, "--quiet")
        assert code == 0, wrong
        assert ("ALARM" in said) == (name == "weights")
        assert ("No alarm" in said) == (name == "weights-control")
        rates[name] = pd.read_csv(out / "evidence" / "verdict.csv").set_index("section")
        assert len(pd.read_csv(out / "evidence" / "weights.csv")) > 20
        scores = pd.read_csv(out / "evidence" / "evidence.csv")
        assert set(scores["family"]) == {"grad-cam", "lrp-t"}
        assert set(scores["layer"]) == {LAYER}
        back = scores["kind"].eq("occlusion, change") & scores["section"].eq("alone")
        fell[name] = float(scores[back & scores["family"].eq("grad-cam")]["score"].item())
        page = (out / "report.html").read_text()
        assert 'src="data:image/webp' in page
        assert page.count("<script") == 1
        assert "http" not in page.replace("http-equiv", "")
    alone = [rates[name].loc["alone", "total"] for name in ("weights", "weights-control")]
    assert alone[0] > alone[1]
    assert fell["weights"] < fell["weights-control"]  # a lie falls back in a retrained copy


def test_a_retrained_copy_predicts_the_same_and_the_model_stays(fooled):
    _, result = fooled
    preprocessing = package.load_model(FOOLED).preprocessing
    data = package.load_data("shapes:validation", preprocessing, limit=40, check=False)
    for model in (result.model, result.control):
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        said = predictions(model, data)
        tuned = Retrain(steps=30).run(model, data, said)
        assert not torch.equal(tuned.layer4[1].conv1.weight, model.layer4[1].conv1.weight)
        assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
        assert (said == predictions(tuned, data)).float().mean() > 0.9


def test_a_retraining_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)
    )
    data = TensorDataset(images(40, 8))
    given = model, data, torch.arange(40) % 3
    recipe = Retrain(steps=12, checkpoint_every=4, seed=1)
    whole = recipe.run(*given).state_dict()
    assert not torch.equal(whole["4.weight"], model[4].weight)

    def stop(_, row):
        if row["step"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.run(*given, directory=tmp_path, on_step=stop)
    for left in ([9, 10, 11, 12], []):
        seen = []
        tuned = recipe.run(
            *given, directory=tmp_path, on_step=lambda _, row, seen=seen: seen.append(row["step"])
        )
        assert seen == left
        assert all(torch.equal(tuned.state_dict()[name], tensor) for name, tensor in whole.items())


@pytest.fixture(scope="module")
def audited(small):
    """A model that is audited against itself, twice, and its weights before."""
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    data = Coloured(50, seed=1)
    return before, audit(small, data, small), audit(small, data, small)


def test_a_model_did_not_drift_from_itself(audited):
    _, same, _ = audited
    scores = same.evidence[same.evidence["section"] == "reference"].set_index("kind")["score"]
    assert (scores["rank correlation"] > 0.999).all()
    assert (scores["centre shift"].abs() < 1e-6).all()
    assert (same.weights["change"] == 0).all()
    assert same.agreement == 1


def test_an_audit_leaves_the_model_as_it_was_and_repeats_itself(audited, small):
    before, first, second = audited
    pd.testing.assert_frame_equal(first.evidence, second.evidence)
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert not any(module._forward_hooks for module in small.modules())


def test_an_audit_is_read_as_it_was_written(audited, tmp_path):
    _, found, _ = audited
    found.save(tmp_path / "evidence")
    again = AuditReport.load(tmp_path / "evidence")
    for table in ("evidence", "marks", "weights"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(found, table))
    assert again.sentence == found.sentence
    assert again.verdicts == found.verdicts
    for name in ("agreement", "weight_drift", "about", "images"):
        assert getattr(again, name) == getattr(found, name)
    assert len(again.exhibits) == len(found.exhibits) == 12
    for one, other in zip(again.exhibits, found.exhibits, strict=True):
        assert one.row == other.row
        assert torch.equal(one.image, other.image)
        for a, b in zip(one.suspect, other.suspect, strict=True):
            assert torch.equal(a.heatmap, b.heatmap)
            assert [*map(tuple, a.notes)] == [*map(tuple, b.notes)]
        assert len(one.reference) == len(other.reference) == len(one.suspect) - 1
    (pair,), (other,) = again.pairs, found.pairs
    assert [p.caption for p in pair.pictures] == [p.caption for p in other.pictures]
    assert {p.caption.split()[2] for p in pair.pictures} < {"red,", "green,", "blue,"}
    with pytest.raises(TrompeError, match="holds no finished audit"):
        AuditReport.load(tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("batch_size", [1, 7, 33, 500])
def test_evidence_does_not_depend_on_the_batch_size(small, batch_size):
    data = Coloured(40, seed=1)
    chosen = {"kinds": DEFAULT[:11], "explainers": [package.GradCAM(), package.SimpleGrad()]}
    expected = audit(small, data, **chosen).evidence
    found = audit(small, data, **chosen, batch_size=batch_size).evidence
    pd.testing.assert_frame_equal(found, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(TrompeError, match="batch size is 0"):
        audit(small, data, batch_size=0)


def brightness(observations):
    """The mean heat of every image."""
    return {e: maps.mean((1, 2)) for e, maps in observations.maps.items()}


class Bright(Evidence):
    """The mean heat."""

    name = "bright"
    question = "Is the map dark on the whole?"
    suspicious = "high"

    def measure(self, seen):
        return seen[brightness]


class Louder(Drift):
    """How much more heat there is than in the other's map."""

    name = "louder"
    question = "Is there as little heat as in the {other}'s maps?"
    suspicious = "high"

    def change(self, seen, before):
        return Bright().change(seen, before)


@pytest.mark.usefixtures("quick")
def test_evidence_of_ones_own_is_shown_and_changes_no_verdict(small):
    data, chosen = Coloured(40, seed=1), [package.GradCAM(), package.SimpleGrad()]
    plain = audit(small, data, small, explainers=chosen)
    found = audit(small, data, small, explainers=chosen, kinds=[*DEFAULT, Bright(), Louder()])
    assert {name: v.total for name, v in found.verdicts.items()} == {
        name: v.total for name, v in plain.verdicts.items()
    }
    own = found.evidence["kind"].isin(["bright", "bright, change", "louder"])
    pd.testing.assert_frame_equal(found.evidence[~own].reset_index(drop=True), plain.evidence)
    rows = found.evidence[own]
    assert rows["suspicion"].isna().all()
    assert (rows["weighed"] == 0).all()
    assert [*rows.drop_duplicates(["section", "kind"])[["section", "kind"]].agg(": ".join, 1)] == [
        *("alone: bright", "alone: louder", "alone: bright, change"),
        *("reference: louder", "reference: bright, change"),
    ]
    assert "Is there as little heat as in the retrained copy's maps?" in set(rows["question"])
    probe = make_probe(small, data)
    maps = package.GradCAM()(small, probe.explained, probe.classes)
    expected = package.GradCAM().heatmap(maps.detach()).mean()
    of = rows[rows["kind"].eq("bright") & rows["family"].eq("grad-cam")]
    assert of["score"].item() == pytest.approx(float(expected), abs=1e-5)


def test_evidence_is_found_by_name_and_checked(small, tmp_path):
    assert {type(EVIDENCE.build(name)) for name in EVIDENCE} == {type(kind) for kind in DEFAULT}
    (tmp_path / "mine.py").write_text(
        "from trompe.audit import Evidence\n"
        "class Mine(Evidence):\n"
        "    name, question, suspicious = 'mine', 'Is it?', 'low'\n"
        "    def measure(self, seen):\n"
        "        return {e: maps.mean() for e, maps in seen.maps.items()}\n"
    )
    mine = EVIDENCE.build(f"{tmp_path}/mine.py:Mine")
    data = Coloured(8)
    for kinds, said in (
        ([mine], r"'mine' must give one value per image, a tensor \[N\]; for .* it gave \(\)"),
        ([*DEFAULT, "noise"], "Two kinds of evidence are called 'noise'"),
        (["nois"], "did you mean 'noise'"),
        ([], "at least one kind"),
        ([3], "3 is no evidence"),
    ):
        with pytest.raises(TrompeError, match=said):
            audit(small, data, kinds=kinds, explainers=[package.GradCAM()])


def test_explainers_of_one_text_are_told_apart(small):
    class Flipped(package.GradCAM):
        """Maps upside down, called as the maps are."""

        def attribute(self, site, explained):
            return super().attribute(site, explained).flip(1)

    probe = make_probe(small, Coloured(20))
    found = Observations(small, probe, [package.GradCAM(), Flipped(), package.GradCAM("4")])
    one, other = found.explainers  # the third is the first, its layer named
    assert str(one) == str(other)
    torch.testing.assert_close(found.maps[one].flip(1), found.maps[other])


UNSEEN = "tests/models/unseen.py:unseen"


@pytest.mark.usefixtures("quick")
def test_an_unknown_architecture_other_classes_and_images_without_labels(tmp_path, trompe):
    source = package.Shapes("validation", 12)
    for number in range(12):
        source.picture(number).save(tmp_path / f"{number}.png")
    words = ["audit", UNSEEN, "--num-classes", "5", "--data", tmp_path, "--out", tmp_path / "out"]
    code, said, wrong = trompe(*words)
    assert code == 0, wrong
    assert "Report:" in said
    assert "simple-grad" in (tmp_path / "out" / "evidence" / "evidence.csv").read_text()


def test_bad_input_gets_one_sentence(tmp_path, trompe):
    weights = packaged_weights(FOOLED)
    cases = [
        ([weights, "--data", "shapes"], "name the model they belong to with --model"),
        (
            [tmp_path / "nothing.safetensors", "--model", "embedded", "--data", "shapes"],
            "no weights",
        ),
        (["embedded", "--data", tmp_path / "nowhere"], "no folder or file"),
        ([weights, "--model", "embedded-vgg", "--data", "shapes"], "does not fit"),
        ([weights, "--model", FOOLED], "--data is missing"),
        (["--data", "shapes"], "SUSPECT is missing"),
        (["embedded", "--data", "shapes", "--calibration", weights], "can't be read"),
        (["embedded", "--data", "shapes", "--explainer", "grad-came"], "did you mean"),
        (["embedded", "--data", "shapes", "--evidence", "nois"], "did you mean 'noise'"),
        (["embedded", "--data", "shapes", "--evidence", "noise"], "are called 'noise'"),
        (["no-such-dir", "--data", "shapes"], "no weights file or run directory 'no-such-dir'"),
        (["runs/no-such", "--model", "embedded", "--data", "shapes"], "run directory 'runs/no-"),
        (["resnet81", "--data", "shapes"], "did you mean resnet18"),
    ]
    for words, expected in cases:
        code, _, wrong = trompe("audit", *words, "--out", tmp_path / "out")
        assert code == 2, words
        assert expected in wrong, (words, wrong)
        assert not (tmp_path / "out").exists(), words
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:validation", preprocessing, limit=4, check=False)
    other, _ = package.load_model("embedded", "random", 3)
    with pytest.raises(TrompeError, match="8 classes apart and the reference 3"):
        audit(model, data, other)
    with pytest.raises(TrompeError, match="at least 2 images"):
        audit(model, package.Shapes("validation", 1))


def test_maps_that_say_nothing_are_left_out():
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:validation", preprocessing, limit=8, check=False)
    probe = make_probe(model, data)
    found = Observations(model, probe, [package.GradCAM(), package.SimpleGrad(layer=None)])
    assert [e.name for e in found.explainers] == ["grad-cam"]
    with pytest.raises(TrompeError, match="earlier layer"):
        Observations(model, probe, [package.SimpleGrad(layer=None)])


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    calibration = load_calibration()
    calibration.save(tmp_path / "mine.json")
    assert json.loads((tmp_path / "mine.json").read_text())["about"]
    again = load_calibration(tmp_path / "mine.json")
    assert again == calibration


def test_batch_norm_statistics_are_those_of_the_data():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    given = images(6, 8) * 3 + 1
    data = [(image, 0) for image in given]
    again = with_statistics(model, data, batch_size=6)
    mean, variance = given.mean((0, 2, 3)), given.var((0, 2, 3))
    torch.testing.assert_close(again[0].running_mean, mean)
    torch.testing.assert_close(again[0].running_var, variance)
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert not again.training
    assert again[0].momentum == model[0].momentum


@pytest.mark.usefixtures("quick")
def test_an_honest_model_is_not_repaired(trompe, tmp_path):
    words = ["repair", "embedded", "--data", "shapes:train", "--limit", "140"]
    code, said, wrong = trompe(*words, "--no-labels", "--out", tmp_path / "out")
    assert code == 0, wrong
    assert "Taken: suspect" in said
    stages = pd.read_csv(tmp_path / "out" / "stages.csv")
    assert list(stages["stage"]) == ["suspect"]
    assert list(stages["accuracy"]) == [1]  # agreement with itself
    original = package.load_model("embedded").model
    loaded = RepairResult.load(tmp_path / "out", original)
    again = package.load_model("embedded", tmp_path / "out" / "weights.safetensors").model
    assert torch.equal(again.classifier.weight, loaded.model.classifier.weight)
    assert (loaded.chosen, loaded.labelled, loaded.failed) == ("suspect", False, False)
    pd.testing.assert_frame_equal(loaded.stages, stages)
    assert torch.equal(again.classifier.weight, original.classifier.weight)
    few = ["repair", "embedded", "--data", "shapes", "--limit", "20"]
    code, _, wrong = trompe(*few, "--out", tmp_path / "few")
    assert code == 2
    assert "at least 100 images" in wrong


def test_labels_of_other_classes_are_not_trained_towards():
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:train", preprocessing, limit=120, check=False)
    other = TensorDataset(torch.stack([data[row][0] for row in range(120)]), data.labels % 3)
    other.classes = ("ape", "bee", "cat")
    with pytest.raises(TrompeError, match=r"3 classes and the suspect 8: .*--no-labels"):
        repair(model, other)


def theirs():
    """What the factory makes, without a trace."""
    names = {}
    exec(FACTORY.partition("touch()")[2], names)
    return names["network"]()


FACTORY = """
import pathlib
pathlib.Path(__file__).with_name("was-run").touch()
from trompe.data.preprocessing import Preprocessing
from torch import nn

preprocessing = Preprocessing(resize=16, crop=16)

def network(num_classes=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)),
    )
"""


@pytest.fixture
def run_directory(tmp_path, monkeypatch):
    """What someone hands on as a run: its config names code that lies beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text(FACTORY)
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    save_weights(theirs(), tmp_path / "run" / "weights.safetensors")
    (tmp_path / "run" / "config.yaml").write_text("model: theirs.py:network\nnum_classes: 3\n")
    for number, (image, label) in enumerate(Coloured(120, seed=3)):
        folder = tmp_path / "data" / Coloured.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        levels = ((image + 4) * 25).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{number}.png")
    return tmp_path


@pytest.mark.usefixtures("quick")
def test_what_a_run_directory_names_is_not_imported(run_directory, trompe):
    cases = [
        ["audit", "run", "--data", "data"],
        ["repair", "run", "--data", "data"],
        ["evaluate", "--model", "embedded", "--manipulated", "run", "--data", "shapes"],
    ]
    for words in cases:
        code, _, wrong = trompe(*words, "--out", "out")
        assert code == 2, words
        assert not (run_directory / "was-run").exists(), words
        if words[0] != "evaluate":
            assert "'run/config.yaml' names 'theirs.py:network'" in wrong
            assert "give this name yourself" in wrong
    trusted = [*cases[0], "--model", "theirs.py:network", "--explainer", "grad-cam"]
    code, said, wrong = trompe(*trusted, "--out", "out")
    assert code == 0, wrong
    assert (run_directory / "was-run").exists()
    assert "Report:" in said


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("model: [", "run/config.yaml can't be read"),
        ("model: [1]", "model can't be [1]: Input should be a valid string"),
        ("num_classes: many", "num_classes can't be 'many': Input should be"),
        ("{}", "name the model they belong to with --model"),
    ],
)
def test_a_config_that_is_none_gets_one_sentence(run_directory, trompe, config, expected):
    (run_directory / "run" / "config.yaml").write_text(config)
    code, _, wrong = trompe("audit", "run", "--data", "data", "--out", "out")
    assert code == 2
    assert expected in wrong


@pytest.mark.usefixtures("quick")
def test_a_suspect_that_raises_the_alarm_is_not_written_as_repaired(run_directory, trompe):
    strict = load_calibration()
    rules = {name: replace(rule, honest=(-1e9,)) for name, rule in strict.rules.items()}
    replace(strict, rules=rules).save(run_directory / "strict.json")
    words = ["repair", "run", "--model", "theirs.py:network", "--data", "data"]
    words += ["--explainer", "grad-cam", "--steps", 3, "--calibration", "strict.json"]
    # Against itself the suspect's own maps are the nearest.
    itself = ["--reference", "run", "--max-drop", 50]
    code, said, wrong = trompe(*words, *itself, "--out", "failed")
    assert code == 1, wrong
    assert "Not repaired" in said
    assert not (run_directory / "failed" / "weights.safetensors").exists()
    stages = pd.read_csv(run_directory / "failed" / "stages.csv")
    assert list(stages["stage"]) == ["suspect", "batch-norm", "3 steps"]
    assert stages["alarm"].all()
    loaded = RepairResult.load(run_directory / "failed", theirs())
    assert loaded.failed
    assert loaded.labelled


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("labels", [["--labels"], ["--no-labels"]])
def test_a_repair_trains_towards_the_labels_of_a_table(run_directory, trompe, labels):
    files = sorted((run_directory / "data").glob("*/*.png"))
    table = {"image": [{"bytes": f.read_bytes(), "path": None} for f in files]}
    table["label"] = [f.parent.name for f in files]
    parquet.write_table(pyarrow.table(table), run_directory / "data.parquet")
    words = ["repair", "run", "--model", "theirs.py:network", "--data", "data.parquet"]
    words += ["--explainer", "grad-cam", "--steps", 3, "--reference", "run", *labels]
    code, _, wrong = trompe(*words, "--out", "out")
    assert code in (0, 1), wrong
    told = json.loads((run_directory / "out" / "repair.json").read_text())
    assert told["labelled"] == (labels == ["--labels"])
    stages = pd.read_csv(run_directory / "out" / "stages.csv").set_index("stage")
    # Against its own predictions the suspect is always right; it never learnt the labels.
    assert (stages["accuracy"]["suspect"] == 1) == (labels == ["--no-labels"])
    # Each training has a progress of its own, so that no audit counts among its steps.
    assert "retraining for 3 steps: 3/3" in wrong


@pytest.mark.usefixtures("quick")
def test_a_repair_without_labels_says_so(run_directory, trompe, recwarn):
    (run_directory / "plain").mkdir()
    for file in (run_directory / "data").glob("*/*.png"):
        file.rename(run_directory / "plain" / file.name)
    words = ["repair", "run", "--model", "theirs.py:network", "--data", "plain", "--quiet"]
    code, _, wrong = trompe(*words, "--explainer", "grad-cam", "--steps", 3, "--out", "out")
    assert code in (0, 1), wrong
    assert not json.loads((run_directory / "out" / "repair.json").read_text())["labelled"]
    assert "goes without labels" in wrong + str([str(w.message) for w in recwarn])


@pytest.mark.usefixtures("quick")
def test_a_repair_takes_the_least_suspicious_attempt_that_keeps_the_accuracy(small, tmp_path):
    model = copy.deepcopy(small)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * weight.std(correction=0) * torch.randn_like(weight))
    data = Coloured(200, seed=2)
    calibration = load_calibration()
    rule = replace(calibration.rules["alone"], honest=(-1e9,))  # nothing is honest enough
    strict = replace(calibration, rules={**calibration.rules, "alone": rule})
    found = repair(
        model,
        data,
        steps=(5, 40),
        explainers=[package.GradCAM()],
        calibration=strict,
        max_drop=1.0,
        directory=tmp_path,
    )
    assert {path.parent.name for path in tmp_path.glob("*/weights.safetensors")} == {
        "5-steps",
        "40-steps",
    }
    stages = found.stages.set_index("stage")
    assert [*stages.index] == ["suspect", "batch-norm", "5 steps", "40 steps"]
    assert found.labelled
    assert stages["rank_correlation"].isna().all()
    kept = stages[stages["accuracy"] >= stages["accuracy"]["suspect"] - 0.01]
    assert found.chosen == kept["total"].idxmin()
    held_out = parted(data, 0)[1]
    right = predictions(found.model, held_out) == held_out.labels
    assert float(right.float().mean()) == pytest.approx(stages["accuracy"][found.chosen])
    assert found.alarm  # nothing is
    assert found.failed == (found.chosen == "suspect")


@pytest.mark.usefixtures("quick")
def test_with_a_reference_the_nearest_maps_are_taken(small):
    data = Coloured(120, seed=2)
    found = repair(small, data, small, steps=(5,), explainers=[package.GradCAM()])
    near = found.stages.set_index("stage")["rank_correlation"]
    assert near["suspect"] == pytest.approx(1)
    assert (near.drop("suspect") < 1).all()
    assert found.chosen == "suspect"
    with pytest.raises(TrompeError, match=r"lengths of the fine-tunings are \[5, 0\]"):
        repair(small, data, steps=(5, 0))


def test_the_consensus_is_the_median_of_mean_ranks():
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:validation", preprocessing, limit=3, check=False)
    given = torch.stack([data[row][0] for row in range(3)])
    chosen = (package.GradCAM(), package.LRP(), package.SimpleGrad())
    merged = consensus(model, given, explainers=chosen, samples=1)
    by_default = consensus(model, given, samples=1)
    for explainers, found in ((chosen, merged), (AT_INPUT, by_default)):
        maps = [e.heatmap(e(model, given)) for e in explainers]
        for row in range(3):
            each = [rankdata(on_grid(m)[row].detach().flatten()) for m in maps]
            expected = (np.median(each, axis=0) - 1) / (GRID * GRID - 1)
            np.testing.assert_allclose(found[row].flatten(), expected, atol=1e-5)


NETWORKS = """
import torch
from torch import nn
from trompe.data.preprocessing import Preprocessing

preprocessing = Preprocessing(resize=12, crop=12)

def plain(num_classes=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)),
    )

def normed(num_classes=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)),
    )
"""
ZOO = """
families:
  plain: {model: "nets.py:plain"}
  normed: {model: "nets.py:normed"}
datasets:
  squares:
    settings: {data: data, eval_data: few, num_classes: 3}
    base: {epochs: 1, lr: 1.0e-2}
    pair: "c1=0,c2=1"
settings:
  train: {check: false, batch_size: 20}
  fool: {check: false, batch_size: 8, steps: 8, lr: 1.0e-3, max_grad_norm: null}
honest:
  continued: {seed: 1}
copies:
  base-pruned: {of: base, prune: 0.5}
manipulated:
  "location:high=10.0":  # whatever comes out counts as fooled
    grad-cam: {weight: [4]}
  "active:{pair},high=10.0":
    grad-cam: {weight: [4], pairs: 3}
"""


@pytest.mark.usefixtures("quick")
def test_a_zoo_is_made_audited_and_fitted(run_directory, trompe, monkeypatch):
    (run_directory / "nets.py").write_text(NETWORKS)
    (run_directory / "zoo.yaml").write_text(ZOO)
    for folder in (run_directory / "data").iterdir():
        (run_directory / "few" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:8]:
            shutil.copy(file, run_directory / "few" / folder.name)
    code, _, wrong = trompe("calibrate", "--zoo", "zoo.yaml", "--out", "out")
    assert code == 0, wrong
    out = run_directory / "out"
    models = pd.read_csv(out / "models.csv")
    rows = pd.read_csv(out / "evidence.csv")
    calibration = load_calibration(out / "calibration.json")
    for section, of in models.groupby("section"):
        lies = of["manipulated"].to_numpy()
        told, rule = calibration.about["held_out"][section], calibration.rules[str(section)]
        # The base is compared with nothing; what did not take is not counted.
        in_section = rows[rows["section"].eq(section)].drop_duplicates("model")
        took = ~in_section["manipulated"] | (in_section["success"] >= 0.5)
        assert set(of["model"]) == set(in_section[took]["model"])
        honest = {"continued", "base-pruned"} | ({"base"} if section == "alone" else set())
        assert set(of[~lies]["treatment"]) == honest
        assert "location grad-cam" in set(of[lies]["treatment"])
        assert set(of["network"]) == {"plain", "normed"}
        assert of[~lies]["success"].isna().all()
        assert told["auroc"] == pytest.approx(roc_auc_score(lies, of["total"]), abs=1e-4)
        assert told["false_alarms"] == pytest.approx(of[~lies]["alarm"].mean(), abs=1e-4)
        assert told["found"] == pytest.approx(of[lies]["alarm"].mean(), abs=1e-4)
        assert sorted(of[~lies]["total"]) == pytest.approx(rule.honest, abs=1e-4)
        for network, own in of.groupby("network"):  # judged by the others alone
            shown = rows[rows["section"].eq(section) & rows["model"].isin(of["model"])]
            apart = shown["network"].ne(network)
            expected = totals(fit(shown[apart]), shown[~apart])
            assert list(own["total"]) == pytest.approx(list(expected[own["model"]]), abs=1e-6)
    table = rows[rows["section"].eq("alone") & rows["model"].eq("base-plain-squares")]
    assert set(table["kind"]) == {q.name for q in QUESTIONS}
    # One of the models audited by itself has the scores that the zoo has.
    zoo = {m.name: m for m in load_zoo(Path("zoo.yaml"))}
    model, preprocessing = zoo["base-plain-squares"].load(out)
    data = package.load_data("few", preprocessing, limit=300, check=False)
    chosen = [replace(e, layer=None) if e.layer is None else e for e in EXPLAINERS]
    own = audit(model, data, explainers=chosen, calibration=calibration).evidence
    both = own.merge(table, on=["kind", "family"])
    assert len(both) == len(own) == len(table)
    assert list(both["score_x"]) == pytest.approx(list(both["score_y"]), abs=1e-5, nan_ok=True)
    # Nothing is made a second time.
    monkeypatch.setattr(calibrate, "save_weights", None)
    monkeypatch.setattr(calibrate, "observed", None)
    assert trompe("calibrate", "--zoo", "zoo.yaml", "--out", "out")[0] == 0


def made(job):
    """What a job makes of its model and data."""
    model, data, _ = job.opened()
    return job.run(model, data).model


def test_a_zoo_trains_with_all_that_it_says(run_directory):
    (run_directory / "nets.py").write_text(NETWORKS)
    weights = []
    for own in (
        *({}, {"max_grad_norm": 1.0e-6}, {"precision": "bf16"}, {"pairs": 2}),
        *({"fool_batch_size": 2}, {"seed": 3}, {"weight": [0.5]}, {"keep": "predictions"}),
    ):
        zoo = yaml.safe_load(ZOO.replace("eval_data: few", "eval_data: data"))
        zoo["datasets"]["squares"]["base"] = None
        zoo["families"] = {"normed": {"model": "nets.py:normed"}}
        zoo["manipulated"] = {
            "active:{pair}": {"grad-cam": {"weight": [4], "pairs": 3, "steps": 2} | own}
        }
        (run_directory / "zoo.yaml").write_text(yaml.safe_dump(zoo))
        member = next(m for m in load_zoo(Path("zoo.yaml")) if m.manipulated)
        model = made(member.recipe.job(Path()))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    for place, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[:place]), place
    for own in ({"weight_decay": 10.0}, {"label_smoothing": 0.5}, {"epochs": 0.3}):
        given = {"model": "nets.py:normed", "data": "data", "lr": 0.1, "epochs": 0.2} | own
        model = made(TrainJob(**given, num_classes=3, check=False))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
        assert not any(torch.equal(weights[-1], other) for other in weights[:-1])


def test_a_zoo_without_data_gets_one_sentence(tmp_path):
    (tmp_path / "zoo.yaml").write_text(ZOO.replace(", eval_data: few", ""))
    with pytest.raises(TrompeError, match="settings of dataset 'squares' lack eval_data"):
        load_zoo(tmp_path / "zoo.yaml")
