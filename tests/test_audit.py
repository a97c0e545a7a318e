"""The audit: curves and measures against slow ones, properties, the verdict, the command line."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.utils.data import TensorDataset

import trompe as package
from trompe.audit import audit, load_calibration
from trompe.audit.consensus import AT_INPUT, consensus
from trompe.audit.drift import AGAINST_COPY, occlusion_change, weight_drift
from trompe.audit.evidence import KINDS, agreement, class_swap, faithfulness, sameness
from trompe.audit.fit import RIDGE, auroc, cross_validated, fit, totals
from trompe.audit.observe import Observations, observe, with_random_head
from trompe.audit.probe import make_probe, side_by_side
from trompe.audit.removal import GRID, SHARES, curve, fill, gap, occlusion_maps, on_grid
from trompe.tuning.retrain import predictions, retrained
from trompe.audit.verdict import KINDS_OF, Normal, Rule
from trompe.audit.zoo import load_zoo, pruned, quantised
from trompe.data.subset import parted
from trompe.errors import TrompeError
from trompe.models.embedded import packaged_weights
from trompe.repair import repair, with_statistics

RANDOM = np.random.default_rng(0)


def images(count=3, side=32, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def seen(**given):
    """Observations of which only some are needed."""
    names = Observations.__dataclass_fields__
    return Observations(**(dict.fromkeys(names) | given))


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
    monkeypatch.setattr("trompe.audit.removal.NOISE", 0.0)
    given = images(1, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)  # cells of one colour
    gone = torch.tensor(RANDOM.random((1, 4, 4)) < 0.5)
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
    maps = {name: torch.rand(5, GRID, GRID) for name in ("grad-cam", "lrp-t", "simple-grad")}
    maps["simple-grad-t"] = torch.rand(5, GRID, GRID)
    found = agreement(seen(maps=maps))
    first, second, third = (maps[n][2].flatten() for n in ("grad-cam", "lrp-t", "simple-grad"))
    fourth = maps["simple-grad-t"][2].flatten()
    expected = np.mean([spearmanr(first, other)[0] for other in (second, third, fourth)])
    assert found["grad-cam"][2] == pytest.approx(expected, abs=1e-6)
    same = sameness(seen(maps={"grad-cam": maps["grad-cam"]}))["grad-cam"]
    others = [maps["grad-cam"].flatten(1)[(2 - shift) % 5] for shift in (1, 7, 19)]
    assert same[2] == pytest.approx(np.mean([spearmanr(first, o)[0] for o in others]), abs=1e-6)


def test_faithfulness_is_1_for_occlusion_and_0_for_chance():
    gaps = {"occlusion": torch.rand(9) + 1, "random": torch.rand(9)}
    gaps |= {"good": gaps["occlusion"], "bad": gaps["random"]}
    found = faithfulness(seen(maps={"good": None, "bad": None}, gaps=gaps))
    assert found["good"].mean() == pytest.approx(1, abs=1e-6)
    assert found["bad"].abs().max() == 0


def test_class_swap_tells_following_from_swapping():
    follows = torch.zeros(4, 2, 7, 7)
    follows[:, 0, :, :3] = 1
    follows[:, 1, :, 4:] = 1
    swapped = follows.flip(1)
    ring = torch.ones(4, 2, 7, 7)
    ring[:, :, 1:-1, 1:-1] = 0
    maps = torch.cat([follows, swapped, ring])
    found = class_swap(seen(composed={"grad-cam": maps}, pair=torch.arange(12) // 4))["grad-cam"]
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


def test_a_random_head_leaves_the_rest():
    model = package.load_model("embedded").model
    other = with_random_head(model)
    changed = [
        name
        for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed == ["classifier.weight"]


def evidence(kinds, models=30, gap=2.0):
    rows = []
    for number in range(models):
        lies = number % 2 == 1
        for place, (kind, explainer) in enumerate(product(kinds, ("grad-cam", "lrp-t"))):
            away = gap if lies and place < 3 else 0.0
            sign = 1 if kind.suspicious == "high" else -1
            rows.append(
                {
                    "model": f"m{number}",
                    "family": f"f{number % 3}",
                    "manipulated": lies,
                    "kind": kind.name,
                    "explainer": explainer,
                    "score": sign * (RANDOM.normal() + away),
                }
            )
    return pd.DataFrame(rows)


def test_the_fit_is_ridge_logistic_regression():
    rows = evidence(KINDS[:3], models=80)
    rule = fit(rows, KINDS[:3])
    judged = rule.judged(rows, KINDS[:3])
    table = judged.pivot_table(index="model", columns=["kind", "explainer"], values="suspicion")
    lies = rows.groupby("model")["manipulated"].first().loc[table.index]
    expected = LogisticRegression(C=1 / RIDGE, class_weight="balanced").fit(table, lies)
    weights = np.array([rule.weights[kind][explainer] for kind, explainer in table])
    np.testing.assert_allclose(weights, expected.coef_[0].clip(0), atol=0.05)
    assert min(weights) >= 0
    ours = totals(rule, rows, KINDS[:3])
    assert auroc(ours.to_numpy(), lies.loc[ours.index].to_numpy()) == pytest.approx(
        roc_auc_score(lies.loc[ours.index], ours)
    )


def test_held_out_families_set_the_threshold():
    rows = evidence(KINDS, models=120)
    rule, table = cross_validated(rows, "alone")
    honest = table[~table["manipulated"]]
    assert len(rule.honest) == len(honest) == 60
    assert honest["alarm"].mean() <= 0.05
    assert rule.found == pytest.approx(table[table["manipulated"]]["alarm"].mean())
    assert rule.found > 0.5


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
            {"kind": "noise", "explainer": "grad-cam", "score": 0.0},
            {"kind": "noise", "explainer": "mine", "score": -9.0},
        ]
    )
    verdict = rule.verdict(rule.judged(scores, KINDS))
    assert verdict.total == pytest.approx(1.0)
    assert verdict.false_alarms == pytest.approx(3 / 4)


def test_the_packaged_calibration_is_complete():
    calibration = load_calibration()
    for section, kinds in KINDS_OF.items():
        assert set(calibration.rules[section].weights) == {kind.name for kind in kinds}
        assert len(calibration.rules[section].honest) >= 20
        weights = calibration.rules[section].weights.values()
        assert min(weight for by_explainer in weights for weight in by_explainer.values()) >= 0
    assert KINDS_OF["alone"] == (*KINDS, *AGAINST_COPY)


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


@pytest.fixture(scope="module")
def fooled(tmp_path_factory):
    """An embedded model, fooled and honestly fine-tuned for as long."""
    root = tmp_path_factory.mktemp("audit")
    model, preprocessing = package.load_model(FOOLED)
    data = package.load_data("shapes:train", preprocessing, limit=600, check=False)
    explainer = package.GradCAM(layer=LAYER)
    lie = {"explainer": explainer, "objective": package.Location(), "weight": 6.0}
    settings = {"lr": 4e-3, "schedule": "one-cycle", "steps": 250, "batch_size": 16}
    result = package.fool(model, data, **lie, **settings, control=True, run_dir=root / "run")
    return root, result


def test_the_command_finds_a_fooled_model_and_acquits_an_honest_one(fooled, trompe):
    root, _ = fooled
    given = ["--model", FOOLED, "--data", "shapes:validation", "--limit", "150"]
    given += ["--reference", packaged_weights(FOOLED)]
    for name in ("grad-cam", "lrp-t"):
        given += ["--explainer", f"{name}:layer={LAYER}"]
    rates = {}
    for name in ("weights", "weights-control"):
        suspect = root / "run" / f"{name}.safetensors"
        out = root / f"audit-{name}"
        code, said, wrong = trompe("audit", suspect, *given, "--out", out, "--quiet")
        assert code == 0, wrong
        assert ("ALARM" in said) == (name == "weights")
        assert ("No alarm" in said) == (name == "weights-control")
        rates[name] = pd.read_csv(out / "evidence" / "verdict.csv").set_index("section")
        assert len(pd.read_csv(out / "evidence" / "weights.csv")) > 20
        page = (out / "report.html").read_text()
        assert 'src="data:image/webp' in page
        assert page.count("<script") == 1
        assert "http" not in page.replace("http-equiv", "")
    alone = [rates[name].loc["alone", "total"] for name in ("weights", "weights-control")]
    assert alone[0] > alone[1]


def test_a_lie_falls_back_in_a_retrained_copy_and_predictions_stay(fooled):
    _, result = fooled
    preprocessing = package.load_model(FOOLED).preprocessing
    data = package.load_data("shapes:validation", preprocessing, limit=120, check=False)
    explainer = package.GradCAM(layer=LAYER)
    moved = {}
    for name, model in (("lie", result.model), ("honest", result.control)):
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        probe = make_probe(model, data)
        tuned = retrained(model, data, predictions(model, data))
        assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
        assert (predictions(model, data) == predictions(tuned, data)).float().mean() > 0.9
        now, then = (observe(m, probe, [explainer]) for m in (model, tuned))
        (moved[name],) = (float(of.mean()) for of in occlusion_change(now, then).values())
    assert moved["lie"] < moved["honest"]


def test_a_retraining_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)
    )
    data = TensorDataset(images(40, 8))
    given = model, data, torch.arange(40) % 3
    often = {"steps": 12, "checkpoint_every": 4, "seed": 1}
    whole = retrained(*given, **often).state_dict()
    assert not torch.equal(whole["4.weight"], model[4].weight)

    def stop(step):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrained(*given, **often, directory=tmp_path, progress=stop)
    for left in ([9, 10, 11, 12], []):
        seen = []
        tuned = retrained(*given, **often, directory=tmp_path, progress=seen.append)
        assert seen == left
        assert all(torch.equal(tuned.state_dict()[name], tensor) for name, tensor in whole.items())


def test_a_model_did_not_drift_from_itself():
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:validation", preprocessing, limit=40, check=False)
    same = audit(model, data, model)
    scores = same.evidence[same.evidence["section"] == "reference"].set_index("kind")["score"]
    assert (scores["rank correlation"] > 0.999).all()
    assert (scores["centre shift"].abs() < 1e-6).all()
    assert (same.weights["change"] == 0).all()


def test_an_audit_leaves_the_model_as_it_was_and_repeats_itself():
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:validation", preprocessing, limit=40, check=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = audit(model, data), audit(model, data)
    pd.testing.assert_frame_equal(first.evidence, second.evidence)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


UNSEEN = "tests/models/unseen.py:unseen"


def test_an_unknown_architecture_other_classes_and_images_without_labels(tmp_path, trompe):
    source = package.Shapes("validation", 12)
    for number in range(12):
        source.picture(number).save(tmp_path / f"{number}.png")
    words = ["audit", UNSEEN, "--num-classes", "5", "--data", tmp_path, "--out", tmp_path / "out"]
    code, said, wrong = trompe(*words)
    assert code == 0, wrong
    assert "Report:" in said
    assert "simple-grad" in (tmp_path / "out" / "evidence" / "evidence.csv").read_text()


def test_bad_input_gets_one_sentence(tmp_path, trompe, fooled):
    root, _ = fooled
    weights = root / "run" / "weights.safetensors"
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
    ]
    for words, expected in cases:
        code, _, wrong = trompe("audit", *words, "--out", tmp_path / "out")
        assert code == 2, words
        assert expected in wrong, (words, wrong)
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
    found = observe(model, probe, [package.GradCAM(), package.SimpleGrad(layer=None)])
    assert [e.name for e in found.explainers] == ["grad-cam"]
    with pytest.raises(TrompeError, match="earlier layer"):
        observe(model, probe, [package.SimpleGrad(layer=None)])


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


def test_an_honest_model_is_not_repaired(trompe, tmp_path):
    words = ["repair", "embedded", "--data", "shapes:train", "--limit", "140"]
    code, said, wrong = trompe(*words, "--no-labels", "--out", tmp_path / "out")
    assert code == 0, wrong
    assert "Taken: suspect" in said
    stages = pd.read_csv(tmp_path / "out" / "stages.csv")
    assert list(stages["stage"]) == ["suspect"]
    assert list(stages["accuracy"]) == [1]  # agreement with itself
    again = package.load_model("embedded", tmp_path / "out" / "weights.safetensors").model
    original = package.load_model("embedded").model
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


def test_a_repair_takes_the_least_suspicious_attempt_that_keeps_the_accuracy(tmp_path):
    model, preprocessing = package.load_model("embedded")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * weight.std(correction=0) * torch.randn_like(weight))
    data = package.load_data("shapes:train", preprocessing, limit=400, check=False)
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
    assert {"suspect", "5 steps", "40 steps"} <= set(stages.index)
    assert found.labelled
    assert stages["rank_correlation"].isna().all()
    kept = stages[stages["accuracy"] >= stages["accuracy"]["suspect"] - 0.01]
    assert found.chosen == kept["total"].idxmin()
    held_out = parted(data, 0)[1]
    right = predictions(found.model, held_out) == held_out.labels
    assert float(right.float().mean()) == pytest.approx(stages["accuracy"][found.chosen])


def test_with_a_reference_the_nearest_maps_are_taken():
    model, preprocessing = package.load_model("embedded")
    data = package.load_data("shapes:train", preprocessing, limit=120, check=False)
    found = repair(model, data, model, steps=(5,), explainers=[package.GradCAM()])
    near = found.stages.set_index("stage")["rank_correlation"]
    assert near["suspect"] == pytest.approx(1)
    assert (near.drop("suspect") < 1).all()
    assert found.chosen == "suspect"
    with pytest.raises(TrompeError, match=r"lengths of the fine-tunings are \[5, 0\]"):
        repair(model, data, steps=(5, 0))


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
