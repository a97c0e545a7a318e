"""Several seeds of one lie: their rates together, their interval, the test against the control."""

import itertools
import math
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.utils.data import TensorDataset

from trompe import (
    Active,
    Evaluation,
    Fool,
    GradCAM,
    Location,
    Shapes,
    SimpleGrad,
    TopK,
    TrompeError,
    evaluate,
    fool,
    over_seeds,
)
from trompe.evaluation import schema
from trompe.metrics import rate, sign_flip
from trompe.tuning.job import FoolJob
from trompe.tuning.loop import last_row

Z = 1.959964


def table(most_seeds=5, most_images=30):
    shapes = st.tuples(st.integers(1, most_seeds), st.integers(1, most_images))
    return shapes.flatmap(lambda shape: arrays(bool, shape))


def slow_count(hits):
    """The effective number of images from its definition, number by number."""
    seeds, images = len(hits), len(hits[0])
    every = [float(hit) for row in hits for hit in row]
    p = sum(every) / len(every)
    means = [sum(map(float, row)) / images for row in hits]
    between = sum((mean - p) ** 2 for mean in means) / (seeds - 1) if seeds > 1 else 0.0
    columns = [sum(float(row[n]) for row in hits) / seeds for n in range(images)]
    among = sum((mean - p) ** 2 for mean in columns) / images
    error = between / seeds + among / images
    return p, (min(images, p * (1 - p) / error) if 0 < p < 1 and error > 1e-12 else images)


class TestInterval:
    @given(table())
    def test_as_it_is_defined(self, hits):
        """The ends are as far from the share as 1.96 of their own standard deviations."""
        p, count = slow_count(hits.tolist())
        share, low, high = rate(hits)
        assert share == pytest.approx(p)
        assert 0 <= low <= share <= high <= 1
        for end in (low, high):
            expected = Z * math.sqrt(end * (1 - end) / count)
            assert abs(share - end) == pytest.approx(expected, rel=1e-4, abs=1e-9)

    @given(table(), st.randoms())
    def test_neither_the_order_of_seeds_nor_that_of_images_matters(self, hits, random):
        seeds, images = (random.sample(range(n), n) for n in hits.shape)
        assert rate(hits[seeds][:, images]) == pytest.approx(rate(hits))

    @given(arrays(bool, st.integers(1, 40)), st.integers(2, 5))
    def test_seeds_that_do_the_same_say_no_more_than_one(self, hits, seeds):
        assert rate(np.stack([hits] * seeds)) == pytest.approx(rate(hits))
        assert rate(hits[None]) == rate(hits)

    @given(table())
    def test_it_is_no_narrower_than_that_of_so_many_images(self, hits):
        share, low, high = rate(hits)
        root = math.sqrt(share * (1 - share) / hits.shape[1] + (Z / 2 / hits.shape[1]) ** 2)
        reach = 2 * Z * root / (1 + Z**2 / hits.shape[1])
        assert high - low >= reach - 1e-6

    def test_seeds_that_differ_make_it_wide(self):
        half = np.arange(1000) < 500
        agreed = rate([half, half])
        apart = rate([half, np.arange(1000) < 100])
        assert apart[2] - apart[1] > 3 * (agreed[2] - agreed[1])

    def test_all_or_nothing_is_as_uncertain_as_of_one_seed(self):
        assert rate([[True] * 50] * 3) == rate([True] * 50)
        assert rate([[False] * 50] * 3) == rate([False] * 50)
        assert math.isnan(rate(np.zeros((3, 0)))[0])

    def test_it_holds_the_truth_as_often_as_it_says(self):
        """Of many seeds that differ, on images that differ; of one with more images it does not."""
        random = np.random.default_rng(0)
        held = naive = 0
        for _ in range(300):
            seeds, images = random.normal(0, 0.5, (20, 1)), random.normal(0, 1, (1, 60))
            hits = seeds + images + random.normal(0, 1, (20, 60)) > 0  # of which half are hits
            _, low, high = rate(hits)
            held += low <= 0.5 <= high
            _, low, high = rate(hits.ravel())
            naive += low <= 0.5 <= high
        assert held / 300 >= 0.93
        assert naive / 300 <= 0.6


class TestSignFlip:
    @settings(deadline=None)
    @example([-1, 2, -3, 1, 1])  # thirds, whose sum is 0 but for rounding
    @given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
    def test_all_flips_one_by_one(self, differences):
        total = sum(differences)
        signs = itertools.product((1, -1), repeat=len(differences))
        sums = [sum(s * d for s, d in zip(sign, differences, strict=True)) for sign in signs]
        above = sum(one >= total for one in sums) / len(sums)
        below = sum(one <= total for one in sums) / len(sums)
        expected = min(1.0, 2 * min(above, below))
        assert sign_flip(np.array(differences) / 3) == pytest.approx(expected)

    def test_many_by_chance(self):
        random = np.random.default_rng(1)
        differences = random.integers(-3, 5, 200) / 3
        flips = random.choice([-1, 1], (20_000, 200))
        expected = 2 * (flips @ differences >= differences.sum()).mean()
        found = sign_flip(differences)
        assert found == pytest.approx(expected, abs=0.02)
        assert found == sign_flip(differences)
        assert sign_flip(-differences) == pytest.approx(found, abs=0.02)

    def test_of_nothing_there_is_none(self):
        assert math.isnan(sign_flip([]))
        assert sign_flip([0.0, 0.0, 0.0]) == 1


def noise(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 4
    )


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ).eval()


def judged(seed, data=None, **options):
    """Models of other seeds in the place of lies and controls."""
    options = {
        "explainers": [GradCAM(layer="3"), SimpleGrad()],
        "objective": [TopK(), Active(0, 1)],
        "fool_data": noise(9, seed=5),
        "control": make(100 + seed),
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(make(), make(seed), data or noise(), **options)


@pytest.fixture(scope="module")
def three():
    return [judged(seed) for seed in (1, 2, 3)]


class TestTogether:
    def test_rates_and_the_test_from_the_rows_per_image(self, three):
        found = over_seeds(three).explanations
        assert tuple(found) == schema.SEEDS
        assert len(found) == 2 + 2 * 2
        assert len(set(found["fsr"])) > 1
        for row in found.to_dict("records"):
            lied, kept = [], []
            for evaluation in three:
                maps = evaluation.maps
                for key in ("explainer_id", "objective_id", "target"):
                    maps = maps[maps[key] == row[key]]
                maps = maps[maps["counted"]].set_index("index")
                lied.append(maps[maps["model"] == "manipulated"]["fooled"])
                kept.append(maps[maps["model"] == "control"]["fooled"])
            assert (row["seeds"], row["counted"]) == (3, len(lied[0]))
            assert row["images"] == (12 if row["target"] == "label" else 9)
            assert row["fsr"] == pytest.approx(np.mean([one.mean() for one in lied]))
            assert row["control"] == pytest.approx(np.mean([one.mean() for one in kept]))
            expected = rate([one.tolist() for one in lied])
            assert (row["fsr"], row["fsr_low"], row["fsr_high"]) == expected
            differences = pd.DataFrame(
                [a.astype(int) - b.astype(int) for a, b in zip(lied, kept, strict=True)]
            ).mean()
            assert row["p_control"] == pytest.approx(sign_flip(differences), abs=0.02)

    def test_accuracy(self, three):
        found = over_seeds(three).accuracy.set_index("model")
        assert found.loc["original", "top1"] == three[0].accuracy["top1"].iloc[0]
        for model in ("original", "manipulated", "control"):
            hits = [e.predictions[model] == e.predictions["label"] for e in three]
            row = found.loc[model]
            assert (row["top1"], row["top1_low"], row["top1_high"]) == rate(hits)
            assert (row["seeds"], row["images"]) == (3, 12)

    def test_the_order_does_not_matter(self, three):
        first, second = over_seeds(three), over_seeds(three[::-1])
        pd.testing.assert_frame_equal(first.accuracy, second.accuracy)
        pd.testing.assert_frame_equal(first.explanations, second.explanations)

    def test_one_alone_is_itself(self, three):
        found = over_seeds(three[:1])
        own = three[0].explanations
        own = own[own["model"] == "manipulated"].reset_index(drop=True)
        shared = [name for name in schema.SEEDS if name in own]
        pd.testing.assert_frame_equal(found.explanations[shared], own[shared])
        shared = list(schema.ACCURACY)
        pd.testing.assert_frame_equal(found.accuracy[shared], three[0].accuracy[shared])

    def test_without_a_control_there_is_no_test(self):
        found = over_seeds([judged(seed, control=None) for seed in (1, 2)]).explanations
        assert found["p_control"].isna().all()
        assert found["control"].isna().all()

    def test_read_from_directories(self, three, tmp_path):
        for seed, evaluation in enumerate(three):
            evaluation.save(tmp_path / str(seed))
        read = [Evaluation.load(tmp_path / str(seed)) for seed in range(3)]
        over_seeds(three).save(tmp_path)
        again = over_seeds([three[0], *read[1:]])
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "seeds.csv"), again.explanations, check_dtype=False
        )
        with pytest.raises(TrompeError, match="not of the same images"):
            over_seeds([read[0], judged(1, noise(seed=3))])

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ({"data": noise(11)}, "not of the same images"),
            ({"data": noise(seed=3)}, "not of the same images"),
            ({"fool_data": noise(8, seed=5)}, "not of the same images"),
            ({"fool_data": noise(9, seed=6)}, "not of the same images"),
            ({"objective": [TopK(fraction=0.2), Active(0, 1)]}, "other explainers or objectives"),
            ({"explainers": [GradCAM(layer="3")]}, "other explainers or objectives"),
            ({"control": None}, "some have a control"),
        ],
        ids=["fewer", "others", "composites", "more composites", "objective", "layer", "control"],
    )
    def test_what_does_not_belong_together_is_refused(self, three, other, said):
        with pytest.raises(TrompeError, match=said):
            over_seeds([three[0], judged(2, **other)])

    def test_nothing_is_refused(self):
        with pytest.raises(TrompeError, match="no evaluation"):
            over_seeds([])


class TestWhatASeedChanges:
    def test_the_composites_to_fine_tune_on_but_not_those_to_evaluate_on(self):
        data, objective = Shapes("train", 32), Active(3, 5)
        recipes = [
            Fool(objective=objective, lr=1.0, steps=1, seed=seed, pairs=6) for seed in (0, 1)
        ]
        judged_on = [recipe.composites(data, 6)[objective].fingerprint for recipe in recipes]
        assert judged_on[0] == judged_on[1]
        model, sample = make(), data[0][0][None]
        tuned_on = [
            recipe.terms(model, sample, data, None)[0].data.fingerprint for recipe in recipes
        ]
        assert tuned_on[0] != tuned_on[1]

    def test_the_images_to_fine_tune_on_but_not_those_to_evaluate_on(self):
        given = {"model": "embedded", "data": "shapes:train", "limit": 16, "eval_limit": 16}
        given |= {"eval_data": "shapes:validation", "check": False}
        opened = [FoolJob(**given, seed=seed).opened() for seed in (0, 1)]
        (_, first, kept), (_, second, same) = opened
        assert first.fingerprint != second.fingerprint
        assert kept.fingerprint == same.fingerprint


FEW = ["fool", "--model", "embedded", "--data", "shapes:train", "--limit", "24", "--no-check"]
FEW += ["--eval-data", "shapes:validation", "--eval-limit", "16", "--lr", "1e-3", "--steps", "2"]
FEW += ["--batch-size", "4", "--device", "cpu", "--eval-explainer", "grad-cam", "--seed", "3"]


class TestCommandLine:
    def test_killed_in_the_middle_it_goes_on(self, trompe, tmp_path):
        out = tmp_path / "runs"
        command = [*FEW, "--control", "--seeds", "2", "--out", str(out)]
        child = subprocess.Popen([sys.executable, "-m", "trompe", *command], cwd=tmp_path)
        while not (out / "seed-4").exists():
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        child.kill()
        child.wait()
        assert not (out / "seeds.csv").exists()
        before = (out / "seed-3/weights.safetensors").stat().st_mtime_ns
        code, printed, err = trompe(*command)
        assert code == 0, err
        assert (out / "seed-3/weights.safetensors").stat().st_mtime_ns == before
        assert sorted(path.name for path in out.iterdir()) == [
            *("seed-3", "seed-4", "seeds-accuracy.csv", "seeds.csv")
        ]
        assert "the mean of 2 seeds" in printed
        runs = [out / f"seed-{seed}" for seed in (3, 4)]
        configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
        assert configs[1] == {**configs[0], "seed": 4}
        together = over_seeds([Evaluation.load(run / "evaluation") for run in runs])
        written = pd.read_csv(out / "seeds.csv")
        pd.testing.assert_frame_equal(written, together.explanations, check_dtype=False)
        assert written["p_control"].between(0, 1).all()
        histories = [pd.read_csv(run / "history.csv")["loss"].tolist() for run in runs]
        assert histories[0] != histories[1]

    def test_without_images_to_evaluate_on_nothing_starts(self, trompe, tmp_path):
        out = tmp_path / "runs"
        code, _, err = trompe(
            *("fool", "--model", "embedded", "--data", "shapes:train", "--seeds", 2, "--out", out)
        )
        assert code == 2
        assert "give images to evaluate on with --eval-data" in err
        assert not out.exists()


class TestLastRow:
    def test_of_a_checkpoint_and_of_the_end(self, tmp_path):
        given = {"explainer": GradCAM(layer="3"), "steps": 5, "batch_size": 4, "quiet": True}
        given |= {"run_dir": tmp_path / "run", "checkpoint_every": 2, "device": "cpu"}
        assert last_row(tmp_path / "run", "fool") == {}
        rows = []

        def stop(_, row):
            rows.append(row)
            if len(rows) == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fool(make(), noise(), **given, on_step=stop)
        assert last_row(tmp_path / "run", "fool") == rows[1]
        result = fool(make(), noise(), **given)
        last = last_row(tmp_path / "run", "fool")
        assert last == pytest.approx(dict(result.history.iloc[-1]))
        assert 0 <= last["held_out_success"] <= 1


def test_evaluations_that_do_not_say_their_images_are_told_apart_by_names(three):
    silent = [replace(one, images={}) for one in three]
    expected = over_seeds(three).explanations
    pd.testing.assert_frame_equal(over_seeds(silent).explanations, expected)


def test_location_alone_needs_no_composites():
    found = over_seeds([judged(s, objective=Location(), fool_data=None) for s in (1, 2)])
    assert set(found.explanations["target"]) == {"label"}
