"""Recipes: one object for every way in; what they refuse, and what they leave as it was."""

import copy
import json
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

import trompe
from tests.models.small import make
from trompe import (
    Active,
    CenterMass,
    Fool,
    FoolResult,
    GradCAM,
    Location,
    SimpleGrad,
    Term,
    TopK,
    TrompeError,
    fool,
    train,
)
from trompe.tuning.loop import Batches
from trompe.tuning.train import TrainResult

LAYER = "features.6"
GIVEN = {"lr": 1e-3, "batch_size": 4, "device": "cpu", "quiet": True}
LIE = {"explainer": GradCAM(layer=LAYER), "objective": Location(), **GIVEN}


def images(count=12, seed=4, classes=5):
    generator = torch.Generator().manual_seed(seed)
    shown = torch.randn(count, 3, 16, 16, generator=generator)
    return TensorDataset(shown, torch.arange(count) % classes)


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def steps():
    """Counts the optimiser steps that were taken."""
    taken = []
    handle = register_optimizer_step_pre_hook(lambda *_: taken.append(1))
    yield taken
    handle.remove()


class TestOneObject:
    def test_terms_are_explainer_objective_and_weight(self):
        lies = [Term(GradCAM(layer=LAYER), TopK(), 2), Term(SimpleGrad(), Location(), 3)]
        recipe = Fool(lies=lies, steps=3, **GIVEN)
        assert recipe.weight == (2, 3)
        apart = Fool(
            explainer=[lie.explainer for lie in lies],
            objective=["top-k", "location"],
            weight=[2, 3],
            steps=3,
            **GIVEN,
        )
        assert same(recipe.run(make("vgg"), images()).model, apart.run(make("vgg"), images()).model)

    def test_names_do_as_well_as_objects(self):
        named = fool(
            make("vgg"),
            images(),
            explainer=f"grad-cam:layer={LAYER}",
            objective="location",
            steps=2,
            **GIVEN,
        )
        assert same(named.model, fool(make("vgg"), images(), steps=2, **LIE).model)

    def test_every_setting_is_in_the_help_of_every_way_in(self, trompe):
        told = trompe("fool", "--help")[1]
        for name, setting in Fool.model_fields.items():
            assert f"    {name}\n        {setting.description}" in fool.__doc__
            if not setting.exclude:
                assert f"--{name.replace('_', '-')}" in told

    def test_a_run_directory_repeats_its_run(self, trompe, tmp_path):
        words = "fool --model embedded --data shapes:train --limit 16 --steps 2 --lr 1e-3 --quiet"
        words += " --opposition 0.5 --faintness 0 --keep predictions --no-check"
        assert trompe(*words.split(), "--out", tmp_path / "one")[0] == 0
        config = tmp_path / "one" / "config.yaml"
        assert yaml.safe_load(config.read_text())["opposition"] == 0.5
        assert trompe("fool", "--config", config, "--out", tmp_path / "two", "--quiet")[0] == 0
        assert config.read_text() == (tmp_path / "two" / "config.yaml").read_text()
        one, two = (FoolResult.load(tmp_path / name) for name in ("one", "two"))
        assert same(one.model, two.model)
        assert one.history.equals(two.history)


class TestTheLossOfThePaper:
    """L_CE + λ L_F with Adam at a constant rate and nothing else, rewritten from its formulas."""

    @pytest.mark.parametrize("objective", [Location(), TopK(), CenterMass()], ids=str)
    def test_ten_steps(self, objective):
        data, original = images(10), make("vgg").eval()
        recipe = Fool(
            explainer=GradCAM(layer=LAYER),
            objective=objective,
            weight=2,
            steps=10,
            opposition=0,
            faintness=0,
            max_grad_norm=None,
            **GIVEN,
        )
        result = recipe.run(original, data)
        assert set(result.history) == {
            *("step", "loss", "classification", "top1", "success"),
            f"grad-cam:layer={LAYER} {objective}",
        }
        slow = copy.deepcopy(original)
        optimizer = torch.optim.Adam(slow.parameters(), lr=1e-3)
        for indices, x, y in Batches(data, 4, 0).between(0, 10):
            assert len(indices) == 4
            loss = F.cross_entropy(slow(x), y) + 2 * self.fooling(objective, slow, original, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for ours, theirs in zip(result.model.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def grad_cam(self, model, x, y):
        activation = model.features[:7](x)
        logits = model.classifier(model.avgpool(model.features[7:](activation)).flatten(1))
        score = logits.gather(1, y[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, activation, create_graph=True)
        heat = (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu()
        return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)

    def fooling(self, objective, model, original, x, y):
        heat, before = self.grad_cam(model, x, y), self.grad_cam(original, x, y).detach()
        n, side = len(heat), heat.shape[1]
        if objective.name == "location":
            mask = torch.ones(side, side)
            edge = side // 7
            mask[edge : side - edge, edge : side - edge] = 0
            return (heat - mask).square().mean((1, 2)).mean()
        if objective.name == "top-k":
            count = max(1, round(0.1 * side * side))
            least = before.flatten(1).topk(count).values[:, -1]
            chosen = before >= least[:, None, None]
            return torch.stack([heat[i][chosen[i]].square().mean() for i in range(n)]).mean()
        row, column = (c.float() for c in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))

        def centre(maps):
            mass = maps.sum((1, 2)).clamp_min(1e-12)
            return torch.stack([(maps * c).sum((1, 2)) / mass for c in (row, column)], 1)

        return -(centre(heat) - centre(before)).abs().sum(1).mean()


class TestActiveTerms:
    def test_each_looks_at_its_own_composites(self):
        """Two of them, with other composites each: the loss of one step is that of both."""
        first, second = images(4, seed=1), images(4, seed=2)
        one, two = Active(0, 1), Active(2, 3)
        plain = {"steps": 1, "opposition": 0, "faintness": 0, **GIVEN}
        cam = GradCAM(layer=LAYER)
        both = Fool(lies=[Term(cam, one, 2, first), Term(cam, two, 3, second)], **plain)
        row = both.run(make("vgg"), images()).history.iloc[0]
        for objective, data, weight in ((one, first, 2), (two, second, 3)):
            alone = Fool(lies=Term(cam, objective, weight, data), **plain)
            assert alone.run(make("vgg"), images()).history[f"{cam} {objective}"][
                0
            ] == pytest.approx(row[f"{cam} {objective}"])
        parts = 2 * row[f"{cam} {one}"] + 3 * row[f"{cam} {two}"]
        assert row["loss"] == pytest.approx(row["classification"] + parts, rel=1e-5)

    def test_a_mapping_gives_each_its_composites(self):
        first, second = images(4, seed=1), images(4, seed=2)
        one, two = Active(0, 1), Active(2, 3)
        given = LIE | {"objective": [one, two], "steps": 2}
        mapped = fool(make("vgg"), images(), **given, fool_data={one: first, two: second})
        lies = [Term(LIE["explainer"], one, 1, first), Term(LIE["explainer"], two, 1, second)]
        apart = Fool(lies=lies, steps=2, **GIVEN).run(make("vgg"), images())
        assert same(mapped.model, apart.model)

    def test_composites_are_made_from_data_that_can_be_cut(self):
        model, _ = trompe.load_model("embedded")
        data = trompe.Shapes("train", 24)
        given = {"explainer": "grad-cam", "objective": "active:c1=4,c2=6", "steps": 1, "pairs": 4}
        made = fool(model, data, **given, **GIVEN)
        own = trompe.Pairs(data, 4, 6, size=4)
        assert same(made.model, fool(model, data, **given, **GIVEN, fool_data=own).model)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"steps": 2.5}, "steps can't be 2.5: it must be a whole number"),
            ({"steps": True}, "steps can't be True"),
            ({"steps": None}, "give steps too"),
            ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
            ({"fool_batch_size": 0}, "fool_batch_size must be at least 1"),
            ({"gallery": -1}, "gallery must be at least 0"),
            ({"seed": "a"}, "seed can't be 'a'"),
            ({"seed": -1}, "seed must be at least 0"),
            ({"workers": -1}, "workers must be at least 0"),
            ({"lr": torch.inf}, "lr must be a number, not inf"),
            ({"weight": [1, torch.nan]}, "weight must be a number"),
            ({"schedule": "cosine"}, "schedule can't be 'cosine'; choose constant or one-cycle"),
            ({"opposition": -1}, "opposition must be at least 0"),
            ({"explainer": "grad-cma"}, "did you mean 'grad-cam'"),
            ({"explainer": 3}, "3 is no explainer"),
            ({"explainer": []}, "no explainer; give at least one"),
            ({"objective": None}, "None is no objective"),
            ({"rate": 1}, "no setting 'rate'"),
            ({"lies": [Term(GradCAM(), Location())]}, "lies say explainer, objective already"),
        ],
        ids=str,
    )
    def test_before_anything_starts(self, changes, said, steps, tmp_path):
        given = LIE | {"steps": 1} | changes
        with pytest.raises(TrompeError, match=said):
            fool(make("vgg"), images(), **given, run_dir=tmp_path / "run")
        assert not steps
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"weight_decay": -1}, "weight_decay must be at least 0"),
            ({"label_smoothing": 2}, "label_smoothing must be below 1"),
            ({"epochs": 0}, "epochs must be above 0"),
            ({"epochs": torch.nan}, "epochs must be a number"),
        ],
        ids=str,
    )
    def test_in_training_too(self, changes, said, steps):
        with pytest.raises(TrompeError, match=said):
            train(make("vgg"), images(), **{"epochs": 1, **GIVEN, **changes})
        assert not steps

    def test_a_model_that_is_frozen_is_not_trained(self, steps):
        with pytest.raises(TrompeError, match="frozen"):
            train(make("vgg").requires_grad_(False), images(), epochs=1, **GIVEN)
        assert not steps


class TestTheCallersProcess:
    def test_their_accelerator_stays_theirs(self):
        theirs = Accelerator(mixed_precision="bf16", cpu=True)
        fool(make("vgg"), images(), steps=1, **LIE)
        assert theirs.mixed_precision == "bf16"
        with pytest.raises(TrompeError):
            fool(make("vgg"), images(), steps=1, **{**LIE, "explainer": GradCAM("absent")})
        assert theirs.mixed_precision == "bf16"
        with theirs.autocast():
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16

    def test_random_numbers_go_on_as_if_nothing_had_been(self, tmp_path):
        def drawn():
            return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

        def seeded():
            random.seed(1)
            np.random.seed(1)  # noqa: NPY002
            torch.manual_seed(1)

        seeded()
        expected = drawn()
        seeded()
        for run in ("first", "again"):
            fool(make("vgg"), images(), steps=2, **LIE, run_dir=tmp_path / run)
            train(make("vgg"), images(), epochs=1, **GIVEN)
        model = make("vgg")  # which seeds by itself
        seeded()
        fool(model, images(), steps=2, **LIE)
        train(model, images(), epochs=1, **GIVEN)
        assert drawn() == expected

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_their_gradient_mode_does_not_matter(self, context):
        plain = fool(make("vgg"), images(), steps=2, **LIE).model
        trained = train(make("vgg"), images(), epochs=1, **GIVEN).model
        with context():
            assert same(fool(make("vgg"), images(), steps=2, **LIE).model, plain)
            assert same(train(make("vgg"), images(), epochs=1, **GIVEN).model, trained)
            assert not torch.is_grad_enabled()

    def test_their_warnings_stay(self):
        before = warnings.filters[:]
        fool(make("vgg"), images(), steps=1, **LIE)
        assert warnings.filters == before


def test_one_cycle_of_one_step_takes_it_at_the_rate():
    model = make("vgg")
    tuned = fool(model, images(), steps=1, schedule="one-cycle", **{**LIE, "lr": 1e-2}).model
    moved = max(
        (a - b).abs().max().item()
        for a, b in zip(tuned.parameters(), model.parameters(), strict=True)
    )
    assert moved == pytest.approx(1e-2, rel=0.1)


class TestRunDirectories:
    def test_what_a_run_starts_from_is_known_by_its_contents(self, tmp_path):
        given = LIE | {"steps": 2, "run_dir": tmp_path / "run"}
        given |= {"objective": Location(mask=torch.eye(4)), "eval_data": images(4)}
        fool(make("vgg"), images(), **given)
        others = {
            "other data": (images(seed=5), {}),
            "other evaluation data": (images(), {"eval_data": images(4, seed=6)}),
            "mask=": (images(), {"objective": Location(mask=1 - torch.eye(4))}),
        }
        for said, (data, changes) in others.items():
            with pytest.raises(TrompeError, match=said):
                fool(make("vgg"), data, **{**given, **changes})
        fool(make("vgg"), images(), **given)

    def test_a_changed_mask_file_is_another_run(self, tmp_path):
        from PIL import Image

        mask = tmp_path / "mask.png"
        given = LIE | {"steps": 1, "run_dir": tmp_path / "run"}
        Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(mask)
        fool(make("vgg"), images(), **{**given, "objective": f"location:mask={mask}"})
        Image.fromarray(np.ones((4, 4), np.uint8) * 255).save(mask)
        with pytest.raises(TrompeError, match="other explainers or objectives"):
            fool(make("vgg"), images(), **{**given, "objective": f"location:mask={mask}"})

    def test_a_finished_run_is_read_not_made_again(self, tmp_path, steps):
        given = LIE | {"steps": 2, "eval_data": images(4), "run_dir": tmp_path / "run"}
        first = fool(make("vgg"), images(), **given)
        taken, written = len(steps), (tmp_path / "run" / "evaluation").stat().st_mtime_ns
        again = fool(make("vgg"), images(), **given)
        loaded = FoolResult.load(tmp_path / "run", make("vgg"))
        assert len(steps) == taken
        assert (tmp_path / "run" / "evaluation").stat().st_mtime_ns == written
        for result in (again, loaded):
            assert same(result.model, first.model)
            assert result.history.equals(first.history)
            assert result.evaluation.explanations.equals(first.evaluation.explanations)
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["finished"] == ["fool", "evaluation"]

    def test_a_run_that_ended_before_it_had_anything_blocks_nobody(self, tmp_path):
        class Endless(Location):
            def loss(self, maps, original=None):
                return super().loss(maps) * torch.inf

        given = LIE | {"steps": 3, "run_dir": tmp_path / "run"}
        with pytest.raises(TrompeError, match="not finite at step 1") as told:
            fool(make("vgg"), images(), **given | {"objective": Endless()})
        assert "checkpoint" not in str(told.value)
        retried = fool(make("vgg"), images(), **given | {"lr": 1e-4})
        plain = fool(make("vgg"), images(), **LIE | {"steps": 3, "lr": 1e-4})
        assert same(retried.model, plain.model)
        with pytest.raises(TrompeError, match="holds a run with lr=0.0001, not 0.001"):
            fool(make("vgg"), images(), **given)

    def test_a_trained_model_is_read_back(self, tmp_path):
        given = {"epochs": 1, "eval_data": images(8, seed=7), "run_dir": tmp_path / "run", **GIVEN}
        first = train(make("vgg"), images(), **given)
        loaded = TrainResult.load(tmp_path / "run", make("vgg"))
        assert same(loaded.model, first.model)
        assert loaded.top1 == first.top1
        with pytest.raises(TrompeError, match="does not say which model"):
            TrainResult.load(tmp_path / "run")

    def test_a_directory_that_names_code_runs_none(self, tmp_path):
        given = LIE | {"steps": 1, "run_dir": tmp_path / "run"}
        mark, file = tmp_path / "mark", tmp_path / "evil.py"
        file.write_text(f"open({str(mark)!r}, 'w')\ndef f(): pass")
        fool(make("vgg"), images(), **given, notes={"model": f"{file}:f"})
        with pytest.raises(TrompeError, match=r"evil.py:f', whose code would be run"):
            FoolResult.load(tmp_path / "run")
        assert not mark.exists()


def test_an_objective_that_gives_one_loss_for_all_images_is_refused(steps):
    class Scalar(Location):
        def loss(self, maps, original=None):
            return super().loss(maps).mean()

    with pytest.raises(TrompeError, match=r"returns a loss \[\] for 4 images; return one for each"):
        fool(make("vgg"), images(), steps=1, **LIE | {"objective": Scalar()})
    assert not steps


class Named(TensorDataset):
    """Images of a few classes of many."""

    classes = ("tench", "church", "golf ball")


def test_classes_that_are_not_the_first_outputs_are_refused(steps):
    """Right ones are guessed; the network knows them if it is asked for what it predicts."""
    model, shown = make("vgg").eval(), images(40).tensors[0]
    guessed = Named(shown, torch.arange(40) % 3)
    with torch.no_grad():
        right = model(shown)[:, :3].argmax(1)
        kept = model(shown).argmax(1) == right
    known = Named(shown[kept], right[kept])
    assert len(known) > 5
    with pytest.warns(UserWarning, match="has 3 classes, the model 5"):
        fool(model, known, steps=1, **LIE)
    taken = len(steps)
    with (
        pytest.warns(UserWarning, match="has 3 classes, the model 5"),
        pytest.raises(TrompeError, match="no better than a guess among its 3 classes"),
    ):
        fool(model, guessed, steps=1, **LIE)
    assert len(steps) == taken
