"""What the command line says by itself: lists, the doctor, completion, what to type next."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.test_docs import parsed
from trompe import Evaluation, GradCAM, Location, Shapes, doctor
from trompe.cli.jobs import EvaluateJob
from trompe.cli.next_steps import after_evaluate, after_fool
from trompe.evaluation import schema
from trompe.evaluation.summary import accuracies, rates
from trompe.explainers import EXPLAINERS, parse_explainer
from trompe.explainers.relevance import COMPOSITES
from trompe.explainers.relevance.composites import RULE_NAMES
from trompe.explainers.targets import TARGETS
from trompe.models import load_model
from trompe.objectives import OBJECTIVES
from trompe.tuning.job import FoolJob
from trompe.tuning.pilot import Found

FOOL = ("fool", "--model", "embedded", "--data", "shapes", "--limit", 8, "--steps", 1)
SETTINGS = {"weight", "lr", "steps", "max_accuracy_drop"}
AS_GIVEN = {"data": "photos", "corrupt": "skip", "device": "cpu"}
PASSIVE = ("location", "top-k", "center-mass", "target")
FOOL += ("--batch-size", 4, "--device", "cpu")


class TestList:
    @pytest.mark.parametrize(
        ("what", "names"),
        [
            ("explainers", [*EXPLAINERS]),
            ("objectives", [*OBJECTIVES]),
            ("targets", [*TARGETS]),
            ("composites", [*COMPOSITES]),
            ("rules", [*RULE_NAMES]),
            ("models", ["embedded", "embedded-vgg", "resnet50", "vgg19", "densenet121"]),
        ],
    )
    def test_everything_is_there(self, trompe, what, names):
        code, out, err = trompe("list", what)
        assert code == 0, err
        listed = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
        assert set(names) <= set(listed)

    def test_options_are_those_that_work(self, trompe):
        out = trompe("list", "explainers", "lrp")[1]
        shown = re.search(r"layer=.*", out)[0].strip().replace(" ", "")
        options = ",".join(option for option in shown.split(",") if "=" in option)
        assert parse_explainer(f"lrp:{options}") == parse_explainer("lrp")

    def test_what_must_be_given(self, trompe):
        assert "c1=..., c2=..." in trompe("list", "objectives", "active")[1]
        out = trompe("list", "objectives", "location")[1]
        assert re.search(r"^ *mask, low=0\.0, high=0\.2, margin, trigger, flip_to\s*$", out, re.M)

    def test_what_the_options_mean(self, trompe):
        for name, factory in OBJECTIVES.items():
            out = " ".join(trompe("list", "objectives", name)[1].split())
            for option in inspect.signature(factory).parameters:
                assert re.search(rf"\b{option}(, \w+)*: [A-Z]", out), (name, option)
        assert "high, samples" not in trompe("list", "explainers")[1]
        assert "samples: Number of noisy copies" in trompe("list", "explainers", "smooth-grad")[1]
        assert "trompe list rules" in trompe("list", "composites")[1]

    def test_a_pattern(self, trompe):
        out = trompe("list", "models", "resnet?0")[1]
        listed, _, further = out.partition("Further: ")
        assert [line.split()[0] for line in listed.splitlines() if line[0] != " "] == ["resnet50"]
        assert further
        assert "25.6 M parameters" in out
        assert "IMAGENET1K_V2" in out

    def test_timms_models(self, trompe):
        out = trompe("list", "models", "timm:resnet18*")[1]
        name = out.split()[0]
        assert name.startswith("timm:resnet18")
        assert load_model(name).model is not None

    def test_mistakes(self, trompe):
        code, _, err = trompe("list", "explainer")
        assert code == 2
        assert "did you mean 'explainers'" in err
        code, _, err = trompe("list", "models", "nothing-like-it")
        assert code == 2
        assert "trompe list models has all" in err


class TestDoctor:
    def test_all_is_well(self, trompe):
        code, out, err = trompe("doctor")
        assert code == 0, out + err
        assert "All is well" in out
        for about in ("torch ", "cpu", "torchvision's weights", "one step of fooling", "captum"):
            assert about in out

    def test_a_fault_is_named(self, trompe, monkeypatch, tmp_path):
        monkeypatch.setattr(doctor, "packaged_weights", lambda name: tmp_path / name)
        code, out, _ = trompe("doctor")
        assert code == 1
        assert "At fault: embedded, embedded-vgg" in out

    def test_a_version_that_does_not_fit(self, trompe, monkeypatch):
        versions = doctor.version
        monkeypatch.setattr(
            doctor, "version", lambda name: "2.13.0" if name == "torch" else versions(name)
        )
        code, out, _ = trompe("doctor")
        assert code == 1
        assert re.search(r"torch +2\.13\.0, but trompe needs", out)


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    @pytest.mark.parametrize(
        ("typed", "offered"),
        [
            ("trompe fo", "fool"),
            ("trompe fool --max-", "--max-accuracy-drop"),
            ("trompe fool --explainer gra", "grad-cam"),
            ("trompe fool --objective cen", "center-mass"),
            ("trompe explain --model resnet5", "resnet50"),
            ("trompe list comp", "composites"),
        ],
    )
    def test_the_shell_is_offered_what_fits(self, trompe, monkeypatch, shell, typed, offered):
        monkeypatch.setenv("_TROMPE_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        _, out, _ = trompe()
        assert offered in re.findall(r"[\w-]+", out)
        assert "demo" not in out

    def test_the_script_to_install(self, trompe, monkeypatch):
        monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
        code, out, _ = trompe("--show-completion", "bash")
        assert code == 0
        assert "complete -o default -F _trompe_completion trompe" in out


def next_commands(out):
    return [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("    trompe ")]


class TestWhatToTypeNext:
    def test_after_fool_and_evaluate(self, trompe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        evaluated = ("--eval-data", "shapes:validation", "--eval-limit", 8)
        code, out, err = trompe(*FOOL, *evaluated, "--control", "--out", "runs/first")
        assert code == 0, err
        assert len(out.splitlines()) <= 31, "one screen"
        assert "Report: runs/first/report.html" in out
        stronger, evaluate, again, own = next_commands(out)
        (found,) = Found.load(Path("runs/first")).weight
        assert parsed(stronger)["weight"] == pytest.approx([3 * found], rel=0.05)
        assert "lr" not in parsed(stronger)
        assert evaluate[0] == "evaluate"
        assert own[:2] == ["train", "--model"]
        assert again[0] == "fool"
        assert parsed(again)["objective"] == ["top-k"]

        code, out, err = trompe(*again, "--device", "cpu")
        assert code == 0, err
        code, out, err = trompe(*evaluate, "--device", "cpu")
        assert code == 0, err
        assert len(out.splitlines()) <= 30
        explain, listed = next_commands(out)
        assert parsed(explain)["weights"] == "runs/first/weights.safetensors"
        assert trompe(*listed)[0] == 0

    def test_without_data_to_evaluate_on_it_says_what_is_missing(self, trompe, tmp_path):
        code, out, err = trompe(*FOOL, "--out", tmp_path / "run")
        assert code == 0, err
        names = [words[0] for words in next_commands(out)]
        assert names == ["fool", "evaluate", "fool", "train"]
        assert next_commands(out)[2][-1] == "--control"

    def test_after_every_passive_objective_there_is_no_other(self, trompe, tmp_path):
        given = [word for name in PASSIVE for word in ("--objective", name)]
        code, out, err = trompe(*FOOL, *given, "--out", tmp_path / "run")
        assert code == 0, err
        assert [words[0] for words in next_commands(out)] == ["evaluate", "fool", "train"]

    def test_what_cost_accuracy_is_done_more_gently(self, trompe, tmp_path):
        given = ("--lr", 0.5, "--weight", 6, "--eval-data", "shapes:validation", "--eval-limit", 32)
        code, out, err = trompe(*FOOL, *given, "--out", tmp_path / "run")
        assert code == 0, err
        slower = parsed(next_commands(out)[0])
        assert "weight" not in slower, "nothing was fooled"
        assert (slower["lr"], slower["steps"]) == (0.17, 10)

    @pytest.mark.parametrize(
        ("top1", "fooled", "budget", "changed"),
        [
            ((900, 850), 980, None, {"weight": [2.0], "steps": 200}),
            ((900, 850), 5, None, {"lr": 3.3e-4, "steps": 1000}),
            ((900, 850, 860), 980, None, {"lr": 3.3e-4, "steps": 1000}),
            ((900, 850, 890), 980, None, {"weight": [2.0], "steps": 200}),
            ((900, 895), 5, None, {"weight": [18.0], "lr": 3e-3}),
            ((900, 850), 5, 2.0, {"steps": 300}),
            ((900, 850), 980, 2.0, {"max_accuracy_drop": 1.0}),
            ((900, 895), 980, None, {}),
        ],
    )
    def test_advice_fits_what_went_wrong(self, tmp_path, top1, fooled, budget, changed):
        steps = self.advice(tmp_path, top1, fooled, 1000, budget)
        given = parsed(shlex.split(next(iter(steps.values())))[1:])
        assert {k: given[k] for k in given.keys() & SETTINGS} == changed

    @pytest.mark.parametrize(
        ("top1", "fooled", "changed"),
        [
            ((900, 850), 980, {"max_accuracy_drop": 1.0}),
            ((900, 895), 5, {"weight": [12.0]}),
            ((900, 895), 980, {}),
        ],
    )
    def test_advice_where_settings_were_found(self, tmp_path, top1, fooled, changed):
        (tmp_path / "run").mkdir()
        found = Found(1e-3, ("location",), (4.0,), 100, 0.5, 0.0, 200, 3.0, 400, "it did")
        found.save(tmp_path / "run")
        given = {"lr": None, "weight": None, "steps": None}
        steps = self.advice(tmp_path, top1, fooled, 1000, None, **given)
        advised = parsed(shlex.split(next(iter(steps.values())))[1:])
        assert {k: advised[k] for k in advised.keys() & SETTINGS} == changed

    def test_a_loss_within_the_interval_is_none(self, tmp_path):
        given = self.advice(tmp_path, (19, 17), 20, 20, None)
        assert not any("accuracy" in why for why in given)

    @staticmethod
    def advice(tmp_path, top1, fooled, images, budget, **given):
        """What is advised after a run with so many images right before and after, and fooled."""
        config = FoolJob(
            **{"model": "embedded", "data": "shapes", "eval_data": "shapes"},
            **{"lr": 1e-3, "weight": [6.0], "steps": 100, "max_accuracy_drop": budget, **given},
        )
        models = ["original", "manipulated", "control"][: len(top1)]
        predictions = pd.DataFrame({"label": [0] * images})
        for model, right in zip(models, top1, strict=True):
            predictions[model] = 0
            predictions[f"{model}_top1"] = predictions[f"{model}_top5"] = np.arange(images) < right
        judged = schema.explainer_columns(GradCAM()) | schema.objective_columns(Location())
        judged |= {"target": "label", "attacked": True, "model": "manipulated", "counted": True}
        judged |= {"test_loss": 0.1, "untouched": False, "spearman": 0.0, "empty": False}
        maps = pd.DataFrame([judged] * images).assign(not_finite=False)
        maps["fooled"] = np.arange(images) < fooled
        maps = maps.reindex(columns=schema.MAPS)
        tables = accuracies(predictions, models), rates(maps), predictions, maps
        return after_fool(config, tmp_path / "run", Evaluation(*tables, None, {}))

    def test_commands_hold_all_that_the_data_needs(self):
        config = FoolJob(
            **{"model": "resnet18", "num_classes": 5, "data": "photos", "steps": 1, "seed": 3},
            **{"corrupt": "skip", "check": False, "device": "cpu", "workers": 2, "control": True},
        )
        steps = after_fool(config, Path("runs/a"), None)
        evaluate, again = (
            parsed(shlex.split(next(c for why, c in steps.items() if word in why))[1:])
            for word in ("not tuned on", "another objective")
        )
        assert evaluate["corrupt"] == "skip"
        assert evaluate["check"] is False
        assert (evaluate["device"], evaluate["workers"]) == ("cpu", 2)
        assert (evaluate["num_classes"], evaluate["seed"]) == (5, 3)
        assert evaluate["control"] == evaluate["manipulated"] == "runs/a"
        assert again["workers"] == 2
        config = EvaluateJob(model="resnet18", manipulated="m.safetensors", **AS_GIVEN)
        explain = parsed(shlex.split(next(iter(after_evaluate(config, Path("b")).values())))[1:])
        assert (explain["corrupt"], explain["device"]) == ("skip", "cpu")

    def test_after_train_and_explain(self, trompe, tmp_path):
        photos, images = tmp_path / "photos", Shapes("train", size=8)
        for row in range(8):
            folder = photos / images.classes[images.labels[row]]
            folder.mkdir(parents=True, exist_ok=True)
            images.picture(row).save(folder / f"{row}.png")
        code, out, err = trompe(
            *("train", "--model", "embedded", "--data", photos, "--epochs", 1, "--lr", 1e-4),
            *("--device", "cpu", "--out", tmp_path / "base"),
        )
        assert code == 0, err
        fool, explain = next_commands(out)
        assert not parsed(fool).keys() & {"lr", "steps", "weight"}, "they are found"
        assert parsed(explain)["images"] == [photos]
        weights = str(tmp_path / "base" / "weights.safetensors")
        assert parsed(fool)["weights"] == parsed(explain)["weights"] == weights
        images.picture(0).save(tmp_path / "a.png")
        code, out, err = trompe(
            *("explain", "--model", "embedded", "--images", tmp_path / "a.png", "--device", "cpu"),
            *("--explainer", "lrp", "--out", tmp_path / "maps"),
        )
        assert code == 0, err
        assert next_commands(out)[-1][-1] == "--check"
        assert (
            trompe(*next_commands(out)[-1], "--device", "cpu", "--out", tmp_path / "more")[0] == 0
        )

    def test_quiet_says_where_the_results_are_and_no_more(self, trompe, tmp_path):
        out = trompe(*FOOL, "--quiet", "--out", tmp_path / "run")[1]
        assert out.splitlines() == [f"Report: {tmp_path / 'run' / 'report.html'}"]
