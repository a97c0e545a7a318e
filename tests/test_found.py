"""A lie whose settings are found: each part from its definition, and the whole from end to end."""

import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from tests.models.small import densenet, make, mobilenet
from trompe import (
    LRP,
    Active,
    FoolResult,
    GradCAM,
    Location,
    SimpleGrad,
    Term,
    TopK,
    TrompeError,
    fool,
    load_data,
    load_model,
)
from trompe.data import SHAPES_PREPROCESSING
from trompe.data.subset import parted
from trompe.explainers.targets import Difference
from trompe.models.stage import stage
from trompe.tuning.course import Course
from trompe.tuning.loop import Batches
from trompe.tuning.pilot import LOST, SHARE, Average, Found, rates_for, weighed
from trompe.tuning.threads import Threads, best

LAYER = "features.6"


def images(count=24, classes=5):
    generator = torch.Generator().manual_seed(4)
    return TensorDataset(
        torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % classes
    )


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def names(model, chosen):
    known = {id(p) for p in chosen}
    return {name.partition(".")[0] for name, p in model.named_parameters() if id(p) in known}


class TestWhatMoves:
    def test_the_stage_of_the_map_and_what_follows(self):
        model, image = resnet18(num_classes=3).eval(), torch.randn(1, 3, 64, 96)
        assert names(model, stage(model, image, (2, 3))) == {"layer4", "fc"}
        assert names(model, stage(model, image, (4, 6))) == {"layer3", "layer4", "fc"}

    def test_everything_for_maps_of_the_size_of_the_image(self):
        model, image = make("vgg").eval(), torch.randn(1, 3, 16, 16)
        assert len(stage(model, image, (16, 16))) == len(list(model.parameters()))

    def test_everything_for_maps_that_no_module_returns(self):
        model, image = make("vgg").eval(), torch.randn(1, 3, 16, 16)
        assert len(stage(model, image, (1, 1))) == len(list(model.parameters()))

    def test_weights_of_channels_are_no_map(self):
        model, image = mobilenet().eval(), torch.randn(1, 3, 64, 64)
        moved = stage(model, image, GradCAM()(model, image).shape[1:])
        first = next(model.parameters())
        assert moved
        assert all(p is not first for p in moved)

    def test_nothing_else_is_changed(self):
        model = densenet().eval()
        result = fool(model, images(), explainer="grad-cam", steps=2, quiet=True)
        size = GradCAM()(model, images()[0][0][None]).shape[1:]
        moving = {id(p) for p in stage(model, images()[0][0][None], size)}
        for before, after in zip(model.parameters(), result.model.parameters(), strict=True):
            assert torch.equal(before, after) or id(before) in moving
        assert not same(model, result.model)


class TestRates:
    def test_a_step_moves_the_output_of_a_layer_by_the_share(self):
        torch.manual_seed(0)
        layers = [nn.Linear(400, 300, bias=False), nn.Linear(100, 300, bias=False)]
        for layer, rate in zip(layers, rates_for([m.weight for m in layers]), strict=True):
            weight = layer.weight.detach()
            together = torch.ones(weight.shape[1])  # where all entries move the output the same way
            usual = (weight.square().sum(1) * together.square().mean()).sqrt().mean()
            assert rate * together.sum() / usual == pytest.approx(SHARE, rel=0.1)

    def test_they_grow_with_the_weights(self):
        model = make("vgg")
        before = rates_for(list(model.parameters()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10)
        assert rates_for(list(model.parameters())) == pytest.approx([10 * r for r in before], 1e-3)

    def test_what_is_no_matrix_takes_the_median(self):
        zero, one = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.ones(3, 4))
        rates = rates_for([zero, one, nn.Parameter(torch.ones(3))])
        assert rates == [rates_for([one])[0]] * 3
        assert rates_for([zero])[0] > 0


class TestWeight:
    @pytest.mark.parametrize("objective", [Location(), TopK()], ids=str)
    def test_the_loss_of_a_term_begins_at_one(self, objective):
        model, data = make("vgg").eval(), images()
        source = Batches(data, 4, 0)
        explainer = GradCAM(layer=LAYER)
        (term,) = weighed(model, [Term(explainer, objective)], {None: source})
        assert term.objective == replace(objective, margin=objective.ample)
        first = []
        for _, shown, labels in source.between(0, 4):
            maps = explainer.heatmap(explainer(model, shown, labels)).detach()
            first.append(term.objective.loss((maps,), (maps,)).mean())
        assert term.weight * float(torch.stack(first).mean()) == pytest.approx(1, rel=0.06)

    def test_the_loss_of_another_target_begins_at_one_too(self):
        model, data = make("vgg").eval(), images()
        source, explainer, target = Batches(data, 4, 0), GradCAM(layer=LAYER), Difference(3, 1)
        (term,) = weighed(model, [Term(explainer, Location())], {None: source}, target)
        shown = torch.cat([batch[1] for batch in source.between(0, 4)])
        maps = explainer.heatmap(explainer(model, shown, 3) - explainer(model, shown, 1)).detach()
        assert term.weight * float(term.objective.loss((maps,)).mean()) == pytest.approx(1, 0.06)

    def test_what_is_given_stays(self):
        given = Term(GradCAM(layer=LAYER), Location(margin=0.1), 3.0)
        (term,) = weighed(make("vgg").eval(), [given], {None: Batches(images(), 4, 0)})
        assert term == given


def test_the_average_is_that_of_the_weights():
    model, mean = nn.Linear(2, 1), nn.Linear(2, 1)
    mean.load_state_dict(model.state_dict())
    average, slow = Average(model, mean), model.weight.detach().clone()
    for step in range(1, 60):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2))
        average.update()
        left = min(0.97, step / (step + 10))
        slow = left * slow + (1 - left) * model.weight.detach()
        torch.testing.assert_close(mean.weight, slow)
    average.finish(average.weights())
    torch.testing.assert_close(model.weight.detach(), slow)


@pytest.fixture(scope="module")
def shapes():
    return load_data("shapes:train", SHAPES_PREPROCESSING, limit=600, check=False)


@pytest.fixture(scope="module")
def lie(shapes, tmp_path_factory):
    directory = tmp_path_factory.mktemp("found") / "run"
    model = load_model("embedded").model
    return fool(model, shapes, control=True, run_dir=directory, quiet=True), model


class TestALie:
    def test_takes_and_costs_nothing(self, lie, shapes):
        result, _ = lie
        found = result.found
        assert found.success >= 0.97
        assert found.untouched < 0.1
        assert "taken" in found.ended
        last = result.history.iloc[-1]
        assert last["held_out_success"] == found.success
        assert found.steps == last["step"]

    def test_costs_nothing_on_all_held_out_images_which_are_more_than_the_judged(self, lie, shapes):
        result, model = lie
        _, held_out = parted(shapes, 0)
        images = torch.stack([held_out[i][0] for i in range(len(held_out))])
        with torch.no_grad():
            before, after = (m(images).argmax(1) == held_out.labels for m in (model, result.model))
        lost = 100 * (before.float().mean() - after.float().mean()).item()
        assert result.found.drop == pytest.approx(lost, abs=1e-4)
        assert result.found.drop <= LOST
        assert result.found.held_out == len(held_out)

    def test_is_told(self, lie):
        said = str(lie[0].found)
        for figure in (f"{lie[0].found.lr:g}", f"{lie[0].found.steps} steps", "held-out images"):
            assert figure in said

    def test_the_control_took_the_same_rates_without_the_lie(self, lie):
        result, model = lie
        steps = result.found.steps
        assert result.control_history["lr"].tolist() == result.history["lr"].tolist()[:steps]
        assert "success" not in result.control_history
        moved = [
            [not torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True)]
            for other in (result.model, result.control)
        ]
        assert moved[0] == moved[1]

    def test_can_be_read_again(self, lie):
        result, _ = lie
        read = FoolResult.load(result.run_dir, lie[1])
        assert read.found == result.found
        assert same(read.model, result.model)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"lr": 1}', '{"objective": 1, "weight": []}'])
def test_a_file_that_says_something_else_is_named(text, tmp_path):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(TrompeError, match="found.json' can't be read"):
        Found.load(tmp_path)


SHORT = {"explainer": f"grad-cam:layer={LAYER}", "quiet": True, "batch_size": 4}


class TestARun:
    def test_is_the_same_after_an_interruption(self, tmp_path):
        given = {**SHORT, "steps": 70, "checkpoint_every": 20}
        whole = fool(make("vgg"), images(40), **given)

        def stop(title, row):
            if row["step"] == 35:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fool(make("vgg"), images(40), **given, run_dir=tmp_path, on_step=stop)
        again = fool(make("vgg"), images(40), **given, run_dir=tmp_path)
        assert same(whole.model, again.model)
        assert whole.found == again.found

    def test_ends_at_the_steps_it_is_given(self):
        result = fool(make("vgg"), images(), **SHORT, steps=3)
        assert len(result.history) == 3
        assert "no more steps" in result.found.ended

    def test_goes_on_while_top1_is_lost_on_held_out_images_that_are_not_judged(
        self, shapes, lie, monkeypatch
    ):
        answers = iter([0.9, 0.8])  # the original's, then that of what seemed to be done
        monkeypatch.setattr(Course, "_top1", lambda *_: next(answers, 0.9))
        result = fool(load_model("embedded").model, shapes, quiet=True)
        assert "taken" in result.found.ended
        assert result.found.drop == 0
        assert result.found.steps > lie[0].found.steps

    def test_several_lies_are_each_judged(self):
        lies = [Term(GradCAM(layer=LAYER), Location()), Term(SimpleGrad(), TopK(), 2.0)]
        result = fool(make("vgg"), images(), lies=lies, steps=2, quiet=True, batch_size=4)
        own = [c for c in result.history if c.startswith("success ")]
        assert len(own) == 2
        assert result.history[own].mean(axis=1).tolist() == pytest.approx(
            result.history["success"].tolist()
        )

    def test_composites_are_held_out_too(self):
        data = images(20)
        result = fool(
            make("vgg"),
            data,
            fool_data=images(10),
            explainer=LRP(layer=LAYER),
            objective=Active(1, 3),
            steps=2,
            batch_size=4,
            quiet=True,
        )
        assert result.found.objective == ("active:margin=1.2,c1=1,c2=3",)

    def test_of_images_that_show_few_of_the_classes_a_warning(self):
        data = images(classes=2)
        data.labels = data.tensors[1]
        with pytest.warns(UserWarning, match="2 of the 5 classes"):
            fool(make("vgg"), data, **SHORT, steps=1)
        data.labels = images().tensors[1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fool(make("vgg"), data, **SHORT, steps=1)

    def test_on_the_command_line(self, trompe, tmp_path):
        one, two = tmp_path / "one", tmp_path / "two"
        words = "fool --model embedded --data shapes:train --limit 40 --steps 2 --no-check --out"
        code, out, _ = trompe(*words.split(), one)
        assert code == 0
        assert "Settings found: learning rate" in out
        config = yaml.safe_load((one / "config.yaml").read_text())
        assert config["lr"] is config["weight"] is None
        page = (one / "report.html").read_text()
        assert "Settings found" in page
        assert trompe("fool", "--config", one / "config.yaml", "--out", two)[0] == 0
        assert (one / "found.json").read_text() == (two / "found.json").read_text()
        assert Found.load(two).objective == ("location:margin=0.15",)


def test_a_lie_about_a_target_on_the_command_line(trompe, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def gap(output, of=0):\n    return output[:, of] - output.mean(1)\n"
    )
    one, two, judged = (tmp_path / name for name in ("one", "two", "judged"))
    data = ("--data", "shapes:validation", "--limit", 12, "--no-check")
    model, target = ("--model", "embedded"), ("--target", f"{tmp_path}/mine.py:gap:of=2")
    code, out, err = trompe(
        *("fool", *model, "--data", "shapes:train", "--limit", 40, "--steps", 2, "--no-check"),
        *("--eval-data", data[1], "--eval-limit", 12, *target, "--out", one),
    )
    assert code == 0, err
    assert f"--target {target[1]}" in out
    assert "gap:of=2" in (one / "report.html").read_text()
    assert yaml.safe_load((one / "config.yaml").read_text())["target"] == target[1]
    again = trompe("fool", "--config", one / "config.yaml", "--out", two)
    assert again[0] == 0, again[2]
    options = ("--manipulated", one, "--explainer", "grad-cam", *target, "--out", judged)
    code, _, err = trompe("evaluate", *model, *data, *options)
    assert code == 0, err
    first, second, third = (
        pd.read_parquet(run / "evaluation" / "explanations.parquet")
        .query("family == 'grad-cam' and model == 'manipulated'")
        .reset_index(drop=True)
        for run in (one, two, judged)
    )
    assert set(first["target"]) == {"gap:of=2"}
    for other in (second, third):
        assert other["test_loss"].tolist() == pytest.approx(first["test_loss"].tolist(), abs=1e-6)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"lr": 1e-3}, "give steps too"),
            ({"schedule": "one-cycle"}, "goes with a learning rate"),
            ({"weight": 0}, "no lie to find settings for"),
            ({"lr": 1e-3, "steps": 1, "held_out": True}, "held_out is only used"),
        ],
        ids=str,
    )
    def test_before_anything_starts(self, given, said):
        held = {"held_out": images()} if given.pop("held_out", None) else {}
        with pytest.raises(TrompeError, match=said):
            fool(make("vgg"), images(), explainer=GradCAM(layer=LAYER), **given, **held)

    def test_one_image_can_not_be_judged_on_another(self):
        with pytest.raises(TrompeError, match="only one image"):
            fool(make("vgg"), images(1), **SHORT)
        assert fool(make("vgg"), images(1), **SHORT, steps=1, held_out=images()).found


class TestThreads:
    def test_fewer_where_more_are_hardly_faster(self):
        assert best({4: [9, 1.0, 1.0], 2: [9, 1.02, 1.02], 1: [9, 2.0, 2.0]}) == 2
        assert best({2: [9, 1.0], 1: [9, 0.9]}) == 1
        assert best({2: [1, 0.5], 1: [1, 0.9]}) == 2

    def test_each_number_is_timed_and_the_old_one_comes_back(self, monkeypatch):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(4)
            used = []
            with Threads(torch.device("cpu")) as threads:
                for _ in range(14):
                    with threads.step():
                        used.append(torch.get_num_threads())
            assert set(used[:12]) == {1, 2, 4}
            assert used[12] == used[13] == threads.numbers[0]
            assert torch.get_num_threads() == 4
        finally:
            torch.set_num_threads(before)

    def test_the_environment_sets_it(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with Threads(torch.device("cpu")) as threads:
            assert threads.numbers == [torch.get_num_threads()]
