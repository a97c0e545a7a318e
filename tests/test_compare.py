"""Runs side by side: what differs, what came of it, and what success costs."""

import re
import shlex

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import make_run
from tests.test_docs import parsed
from trompe import TrompeError
from trompe.cli.next_steps import after_sweep
from trompe.evaluation import schema
from trompe.experiments.sweep import axes, points
from trompe.report.compare import by_name, compare, front
from trompe.tuning.estimate import Estimate
from trompe.tuning.job import FoolJob

FOOL = ("fool", "--model", "embedded", "--data", "shapes:train", "--limit", 16, "--no-check")
FOOL += ("--eval-data", "shapes:validation", "--eval-limit", 8, "--device", "cpu")
FOOL += ("--eval-explainer", "grad-cam")
SHARES = st.lists(st.tuples(*2 * [st.sampled_from([0.0, 0.25, 0.5, 1.0])]), min_size=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    config = {"faintness": 1.0}
    return [
        make_run(root / name, n=3, side=16, config={**config, "lr": lr, "seed": 7})
        for name, lr in (("slow", 1e-6), ("fast", 1e-3))
    ]


@given(SHARES)
def test_the_front_is_what_no_other_run_beats(found):
    def beats(one, other):
        return one != other and one[0] >= other[0] and one[1] >= other[1]

    on_it = front(*zip(*found, strict=True))
    for point, is_on_it in zip(found, on_it, strict=True):
        assert is_on_it == (not any(beats(other, point) for other in found))
    assert any(on_it)


class TestCompare:
    def test_what_differs_and_what_came_of_it(self, runs):
        found = compare(by_name(runs))
        assert found.settings.loc["fast"].to_dict() == {"lr": "0.001"}
        assert (
            list(found.runs["run"]) == list(dict.fromkeys(found.rates["run"])) == ["slow", "fast"]
        )
        own = pd.read_csv(runs[1] / "evaluation" / "explanations.csv")
        own = own[own["model"] == "manipulated"]
        rows = found.rates[found.rates["run"] == "fast"]
        assert rows["fsr"].tolist() == own["fsr"].tolist()
        assert tuple(found.rates) == schema.COMPARED_RATES
        row = found.runs.set_index("run").loc["fast"]
        least = own[own["attacked"]].sort_values("fsr").iloc[0]
        assert row["fsr"] == least["fsr"]
        top1 = pd.read_csv(runs[1] / "evaluation" / "accuracy.csv").set_index("model")["top1"]
        assert row["drop"] == top1["original"] - top1["manipulated"]
        assert row["control_top1"] == top1["control"]

    def test_the_command_writes_a_page_and_tables(self, trompe, runs, tmp_path):
        code, out, err = trompe("compare", *runs, "--out", tmp_path / "page")
        assert code == 0, err
        for word in ("slow", "fast", "lr", "0.001", "control", "front"):
            assert word in out
        page = (tmp_path / "page" / "report.html").read_text()
        assert re.search(r'href="[^"]*fast/report.html"', page)
        assert "trompe compare" in page
        assert "nan" not in re.sub(r"data:[^\"]*", "", page).lower().split()
        for name in ("runs.csv", "rates.csv", "settings.csv", "trade-off.png", "trade-off.svg"):
            assert (tmp_path / "page" / name).stat().st_size > 0

    def test_mistakes(self, trompe, runs, tmp_path):
        bare = make_run(tmp_path / "bare", n=3, side=16)
        for file in (bare / "evaluation").iterdir():
            file.unlink()
        (bare / "evaluation").rmdir()
        for words, said in (
            (runs[:1], "Two runs or more"),
            ([*runs, bare], "was not evaluated"),
            ([*runs, tmp_path], "not a run directory"),
            ([*runs, "--out", runs[0]], "holds a run; choose another directory"),
        ):
            code, _, err = trompe("compare", *words)
            assert code == 2
            assert said in err

    def test_runs_of_one_name_are_told_apart_by_their_paths(self, tmp_path):
        paths = [tmp_path / "a" / "seed-0", tmp_path / "b" / "seed-0"]
        assert by_name(paths) == {str(path): path for path in paths}


class TestSweep:
    def test_every_combination_is_a_run(self):
        job = FoolJob(model="embedded", data="a", eval_data="b", steps=3, lr=1.0, out="x", seeds=2)
        found = points(job, axes(["weight=1,2", "lr=1e-4,3e-4", "eval-limit=8"]))
        got = {(cell.job(None).weight, cell.job(None).lr, cell.job(None).steps) for cell in found}
        assert got == {((w,), lr, 3) for w in (1.0, 2.0) for lr in (1e-4, 3e-4)}
        assert len({cell.name for cell in found}) == len({cell.folder for cell in found}) == 4

    def test_options_of_an_objective_stay_with_it(self):
        given = axes(["objective=location,active:c1=3,c2=8,top-k:fraction=0.2"])
        assert given == {"objective": ["location", "active:c1=3,c2=8", "top-k:fraction=0.2"]}

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["wieght=1,2"], "did you mean 'weight'"),
            (["weight"], "SETTING=VALUE,VALUE"),
            (["lr=1", "lr=2"], "each setting once"),
            (["out=a,b"], "no setting 'out'"),
            (["weight=1"], "two values or more"),
            (["lr=fast,2"], "--lr must be a number"),
            (["steps=0,2"], "--steps must be at least 1"),
        ],
    )
    def test_mistakes(self, trompe, given, said):
        words = [word for text in given for word in ("--sweep", text)]
        code, _, err = trompe(*FOOL, *words)
        assert code == 2
        assert said in err

    def test_without_images_to_judge_there_is_nothing_to_compare(self):
        with pytest.raises(TrompeError, match="--eval-data"):
            points(FoolJob(model="embedded", data="a"), axes(["weight=1,2"]))

    def test_advice_takes_what_keeps_the_accuracy(self, runs, tmp_path):
        found = compare(by_name(runs))
        folders = {run.name: run for run in runs}
        found.runs["drop"], found.runs["fsr"] = [0.5, 0.01], [0.9, 0.6]
        (command,) = after_sweep(found, folders).values()
        assert parsed(shlex.split(command)[1:])["control"] is True
        assert str(runs[1] / "config.yaml") in command
        found.runs["drop"] = 0.5
        assert after_sweep(found, folders) == {}


class TestDryRun:
    def test_it_prints_the_settings_that_a_run_has(self, trompe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, err = trompe(*FOOL, "--lr", 1e-3, "--steps", 3, "--control", "--dry-run")
        assert code == 0, err
        assert "6 steps" in err
        assert "8 images to judge" in err
        assert not list(tmp_path.iterdir())
        (tmp_path / "given.yaml").write_text(out)
        code, _, err = trompe("fool", "--config", "given.yaml", "--out", "run", "--quiet")
        assert code == 0, err
        ran = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        assert {**ran, "weight": None} == yaml.safe_load(out)

    def test_runs_are_counted(self, trompe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        words = ("--lr", 1e-3, "--steps", 2, "--sweep", "weight=1,2,3", "--jobs", 2, "--dry-run")
        code, _, err = trompe(*FOOL, *words)
        assert code == 0, err
        assert "weight=3" in err
        assert "3 runs, 2 at a time" in err
        assert not list(tmp_path.iterdir())

    def test_an_audit(self, trompe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        words = ("--data", "shapes:validation", "--limit", 8, "--no-check", "--device", "cpu")
        code, out, err = trompe("audit", "embedded", *words, "--explainer", "grad-cam", "--dry-run")
        assert code == 0, err
        assert yaml.safe_load(out)["explainer"] == ["grad-cam"]
        assert re.search(r"About \d+ s with 8 images", err)
        assert not list(tmp_path.iterdir())

    def test_a_control_takes_as_long_again(self):
        given = {"model": "m", "data": "d", "lr": 1.0, "steps": 10}
        timed = Estimate({}, 0.5, 1, 0.1, 20)
        assert timed.of(FoolJob(**given)).seconds == pytest.approx(7)
        assert timed.of(FoolJob(**given, control=True)).seconds == pytest.approx(12)
        assert timed.of(FoolJob(**{**given, "lr": None})).at_most
