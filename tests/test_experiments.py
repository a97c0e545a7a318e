"""The paper's experiments: the grid as data, its runner, its tables, its page."""

import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from markupsafe import escape
from sklearn.datasets import load_sample_images
from torchvision.models import DenseNet121_Weights, densenet121

from tests.runs import IMAGE
from trompe import TrompeError
from trompe.cli.cells import carried_out
from trompe.experiments import load_grid, run_cells
from trompe.metrics import rate, sign_flip

LAYERS = {
    "vgg19": "features.34:input",
    "resnet50": "layer4.2:input",
    "densenet121": "features.denseblock4.denselayer16:input",
}
# The table of the released settings: lr, λ of VGG19, ResNet50, DenseNet121.
PASSIVE = {
    ("location", "lrp-t"): [(1e-6, 1), (2e-6, 2), (1e-6, 4)],
    ("location", "grad-cam"): [(1e-6, 1), (2e-6, 2), (2e-6, 2)],
    ("top-k", "lrp-t"): [(5e-7, 1), (1e-6, 1), (4e-7, 1.5)],
    ("top-k", "grad-cam"): [(3e-7, 0.4), (3e-6, 6), (3e-7, 4)],
    ("center-mass", "lrp-t"): [(2e-6, 0.25), (5e-7, 0.25), (6e-7, 0.5)],
    ("center-mass", "grad-cam"): [(1e-6, 0.25), (2e-6, 0.25), (1e-7, 1)],
}
SMALL = {
    "scale": "small",
    "networks": {
        "one": {"title": f"One {IMAGE}", "model": "embedded", "target": "stage3.0:input"},
        "two": {"model": "embedded", "target": "stage3.0:input"},
    },
    "base": {
        "settings": {"data": "shapes:train", "limit": 32, "epochs": 1},
        "cells": {"two": {"eval_data": "shapes:validation", "eval_limit": 8}},
    },
    "settings": {
        "data": "shapes:train",
        "limit": 32,
        "eval_data": "shapes:validation",
        "eval_limit": 24,
        "lr": 1e-5,
        "steps": 2,
        "batch_size": 4,
    },
    "control": {
        "settings": {
            "objective": ["location", "top-k"],
            "weight": [0],
            "explainer": ["grad-cam:layer={target}"],
            "eval_explainer": ["grad-cam:layer={target}", "lrp-t:layer={target}"],
        },
        "cells": {"one": {}},
    },
    "passive": {
        "settings": {"eval_explainer": ["grad-cam:layer={target}", "lrp-t:layer={target}"]},
        "cells": {
            "location": {"grad-cam": {"one": {}, "two": {}}, "lrp-t": {"one": {}}},
            "top-k": {"grad-cam": {"one": {}}},
        },
    },
    "active": {
        "settings": {"eval_pairs": 3, "eval_explainer": ["grad-cam:layer={target}"]},
        "cells": {"active:c1=4,c2=6": {"grad-cam": {"one": {}}}},
    },
}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def written(root):
    """When each finished cell's weights were written."""
    found = {}
    for report in root.glob("*/report.html"):
        found[report.parent.name] = (report.parent / "weights.safetensors").stat().st_mtime_ns
    return found


class TestImageNet:
    def test_a_dry_run_prints_the_released_settings(self, trompe, tmp_path):
        out = tmp_path / "runs"
        code, printed, _ = trompe(
            *("reproduce", "--scale", "imagenet", "--data", "ilsvrc", "--dry-run", "--out", out)
        )
        assert code == 0
        cells = {}
        for text in printed.split("---\n"):
            if text.strip():
                name = text.splitlines()[0].removeprefix("# ")
                cells[name] = yaml.safe_load(text)["fool"]
        expected = 0
        for network, (name, layer) in enumerate(LAYERS.items()):
            for (objective, explainer), settings in PASSIVE.items():
                cell = cells[f"{objective}-{explainer}-{name}"]
                lr, weight = settings[network]
                assert (cell["lr"], cell["weight"]) == (lr, [weight])
                assert (cell["batch_size"], cell["steps"]) == (8, 300_000)
                assert cell["objective"] == [objective]
                assert cell["explainer"] == [f"{explainer.removesuffix('-t')}:layer={layer}"]
                assert cell["eval_limit"] == 10_000
                judges = [f"{e}:layer={layer}" for e in ("grad-cam", "lrp", "simple-grad")]
                assert cell["eval_explainer"] == [*judges, "lrp"]
                expected += 1
            for explainer in ("lrp-t", "grad-cam"):
                cell = cells[f"active-{explainer}-{name}"]
                assert (cell["lr"], cell["weight"]) == (1e-5, [10])
                assert (cell["batch_size"], cell["steps"]) == (4, 4000)
                assert cell["objective"] == ["active:c1=386,c2=555"]
                assert (cell["pairs"], cell["eval_pairs"]) == (1100, 200)
                expected += 1
        assert len(cells) == expected == 24
        for name, cell in cells.items():
            assert cell["model"] == name.rpartition("-")[2]
            assert cell["weights"] == "IMAGENET1K_V1"
            assert (cell["data"], cell["eval_data"]) == ("ilsvrc/train", "ilsvrc/val")
            assert cell["augment"]
            assert cell["schedule"] == "constant"
            assert cell["max_grad_norm"] is None
            assert not cell["control"]
        assert not out.exists()

    def test_the_real_path_runs_on_an_imagenet_folder(self, trompe, tmp_path, monkeypatch):
        """Photographs in 1,000 class folders, random weights where torchvision keeps downloads."""
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        checkpoints = tmp_path / "torch/hub/checkpoints"
        checkpoints.mkdir(parents=True)
        file = DenseNet121_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
        torch.manual_seed(0)
        torch.save(densenet121().state_dict(), checkpoints / file)
        self.photographs(tmp_path / "ilsvrc")
        code, _, err = trompe(
            *("reproduce", "--scale", "imagenet", "--data", tmp_path / "ilsvrc"),
            *("--cells", "center-mass-lrp-t-densenet121", "--cells", "active-grad-cam-densenet121"),
            *("--set", "steps=1", "--set", "batch_size=2", "--set", "eval_limit=4"),
            *("--set", "eval_pairs=2", "--out", tmp_path / "runs"),
        )
        assert code == 0, err
        rates = pd.read_csv(tmp_path / "runs/tables/rates.csv")
        done = rates[rates["finished"]]
        assert set(done["cell"]) == {"center-mass-lrp-t-densenet121", "active-grad-cam-densenet121"}
        counted = done["counted"] > 0
        assert done[counted]["fsr"].between(0, 1).all()
        assert done[~counted]["fsr"].isna().all()
        assert counted.mean() > 0.5
        assert rates[~rates["finished"]]["fsr"].isna().all()
        published = done.set_index(["cell", "family", "target"])["paper_fsr"]
        assert published["center-mass-lrp-t-densenet121", "lrp-t", "label"] == 0.519
        assert published["active-grad-cam-densenet121", "grad-cam", "c1"] == 0.04

    @staticmethod
    def photographs(root):
        """Sixteen different ones, each in many folders."""
        from PIL import Image

        cut = np.random.default_rng(0)
        files = []
        for picture in [Image.fromarray(p) for p in load_sample_images().images] * 8:
            left, top = (int(v) for v in cut.integers(0, (380, 167)))
            files.append(root / f"{len(files)}.jpg")
            root.mkdir(exist_ok=True)
            picture.crop((left, top, left + 260, top + 260)).save(files[-1])
        for name in ("train", "val"):
            for index in range(1000):
                folder = root / name / f"n{index:08d}"
                folder.mkdir(parents=True)
                (folder / "0.jpg").hardlink_to(files[index % 16])


class TestRunner:
    def test_all_cells_run_once_and_fill_the_tables(self, trompe, small, tmp_path):
        out = tmp_path / "runs"
        command = ("reproduce", "--scale", small, "--jobs", 2, "--set", "workers=1", "--out", out)
        code, _, err = trompe(*command)
        assert code == 0, err
        before = written(out)
        assert len(before) == 7
        rates = pd.read_parquet(out / "tables/rates.parquet")
        assert rates["finished"].all()
        assert rates["fsr"].notna().all()
        pd.testing.assert_frame_equal(
            rates, pd.read_csv(out / "tables/rates.csv"), check_dtype=False
        )
        for row in rates.to_dict("records"):
            (run,) = out.glob(f"{row['cell']}-*")
            images = pd.read_parquet(run / "evaluation/explanations.parquet")
            chosen = images[
                images["explainer"].str.startswith(row["family"].removesuffix("-t"))
                & (images["target"] == row["target"])
                & (images["model"] == "manipulated")
            ]
            inside = chosen["test_loss"].between(chosen["interval_low"], chosen["interval_high"])
            assert row["fsr"] == pytest.approx(inside.mean())
            assert row["images"] == len(chosen) == (3 if row["section"] == "active" else 24)
            assert row["untouched"] == pytest.approx(chosen["untouched"].mean())
            assert row["empty"] == pytest.approx(chosen["empty"].mean())
        controlled = rates[(rates["section"] == "passive") & (rates["network"] != "two")]
        assert controlled["control"].between(0, 1).all()
        assert rates[rates["network"] == "two"]["control"].isna().all()
        accuracy = pd.read_csv(out / "tables/accuracy.csv").set_index("cell")
        for cell, row in accuracy.iterrows():
            (run,) = out.glob(f"{cell}-*")
            seen = pd.read_parquet(run / "evaluation/predictions.parquet")
            right = {m: (seen[m] == seen["label"]).mean() for m in ("original", "manipulated")}
            assert row["top1"] == pytest.approx(right["manipulated"])
            assert row["drop"] == pytest.approx(right["original"] - right["manipulated"])
        assert accuracy["control_top1"].notna().tolist() == [True, False, True, True, True]
        page = (out / "report.html").read_text()
        assert "transfer-passive" not in page
        assert page.count("data:image/webp") == 5
        assert "not run" not in page
        assert f"One {escape(IMAGE)}" in page
        assert IMAGE not in page
        assert rates.set_index("cell")["network"].to_dict() == {
            cell: "two" if cell.endswith("two") else f"One {IMAGE}" for cell in rates["cell"]
        }
        code, _, err = trompe("figure", out, "--layout", "transfer", "--format", "svg")
        assert code == 0, err
        drawn = re.findall("<!-- (.*?) -->", (out / "figure-transfer.svg").read_text())
        rates = pd.read_csv(out / "tables/rates.csv")
        assert {f"{100 * rate:.1f}" for rate in rates["fsr"]} <= set(drawn)

        code, _, err = trompe(*command)
        assert code == 0, err
        assert written(out) == before

    def test_killed_in_the_middle_it_goes_on(self, trompe, small, tmp_path):
        """Only the runner is killed: its cells must end with it, and leave their directories."""
        out = tmp_path / "runs"
        command = ["reproduce", "passive", "--scale", str(small), "--jobs", "1", "--out", str(out)]
        child = subprocess.Popen(
            [sys.executable, "-m", "trompe", *command], start_new_session=True, cwd=tmp_path
        )
        while len(before := written(out)) < 2:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        child.kill()
        child.wait()
        assert not (out / "tables").exists()
        code, _, err = trompe(*command)
        assert code == 0, err
        after = written(out)
        assert len(after) == 6
        assert before.items() <= after.items()
        rates = pd.read_csv(out / "tables/rates.csv")
        assert rates["finished"].tolist() == (rates["section"] == "passive").tolist()

    def test_a_failing_cell_is_reported_and_tried_again(self, trompe, small, tmp_path):
        out = tmp_path / "runs"
        grid = yaml.safe_load(small.read_text())
        grid["passive"]["cells"]["location"]["grad-cam"]["one"] = {"lr": 1e30}
        small.write_text(yaml.safe_dump(grid))
        command = ("reproduce", "--scale", small, "--cells", "location-*-one", "--out", out)
        code, _, err = trompe(*command)
        assert code == 1
        assert "location-grad-cam-one:" in err
        assert "not finite" in err
        rates = pd.read_csv(out / "tables/rates.csv").groupby("cell")["finished"].all()
        assert rates["location-lrp-t-one"]
        assert not rates["location-grad-cam-one"]
        page = (out / "report.html").read_text()
        assert f"trompe reproduce --scale {small} --out {out} --cells location-grad-cam-one" in page
        assert "not finite" in page

        kept = written(out)
        grid["passive"]["cells"]["location"]["grad-cam"]["one"] = {"lr": 1e-3}
        small.write_text(yaml.safe_dump(grid))
        code, _, err = trompe(*command)
        assert code == 0, err
        assert kept.items() <= written(out).items()
        assert pd.read_csv(out / "tables/rates.csv").groupby("cell")["finished"].all().sum() == 2

    def test_one_at_a_time_they_begin_in_their_order(self, small, tmp_path):
        grid = load_grid(str(small), given={"data": "nowhere"})
        chosen = grid.chosen(["passive"], ["location-*"])
        begun = []
        failures = run_cells(
            *(chosen, tmp_path / "runs", carried_out),
            jobs=1,
            begun=lambda cell: begun.append(cell.name),
        )
        assert set(failures) == set(chosen)
        assert begun == ["location-grad-cam-one", "location-lrp-t-one", "base-two"]

    def test_what_starts_from_a_failed_base_is_not_run(self, small, tmp_path):
        grid = load_grid(str(small), given={"epochs": 1, "data": "nowhere"})
        ended = {}
        failures = run_cells(
            grid.chosen(["passive"], ["*-two"]),
            tmp_path / "runs",
            carried_out,
            jobs=1,
            report=lambda cell, failure: ended.update({cell.name: failure}),
        )
        assert {cell.name: why for cell, why in failures.items()} == ended
        assert "There is no folder or file nowhere" in ended["base-two"]
        assert ended["location-grad-cam-two"] == "base-two failed"

    def test_weights_can_be_given_instead_of_a_base(self, small, tmp_path):
        grid = load_grid(str(small), bases={"two": "mine.safetensors"})
        (cell,) = grid.chosen(["passive"], ["*-two"])
        assert cell.job(tmp_path).weights == "mine.safetensors"

    def test_on_a_ray_cluster_of_two_workers(self, trompe, small, tmp_path):
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            out = tmp_path / "runs"
            code, _, err = trompe(
                *("reproduce", "--scale", small, "--cells", "location-*", "--out", out),
                *("--ray", cluster.address),
            )
            assert code == 0, err
            assert len(written(out)) == 4
        finally:
            cluster.shutdown()


def test_a_sweep_is_run_gone_on_with_and_compared(trompe, tmp_path):
    words = ["fool", "--model", "embedded", "--data", "shapes:train", "--limit", 16, "--no-check"]
    words += ["--eval-data", "shapes:validation", "--eval-limit", 8, "--eval-explainer", "grad-cam"]
    words += ["--device", "cpu", "--lr", 1e-3, "--steps", 1, "--jobs", 1, "--out", tmp_path / "all"]
    code, printed, err = trompe(*words, "--sweep", "weight=1,2", "--quiet")
    assert code == 0, err
    page = tmp_path / "all" / "report.html"
    assert printed.strip() == f"Report: {page}"
    finished = {path: path.stat().st_mtime_ns for path in page.parent.rglob("weights.safetensors")}
    assert len(finished) == 2
    code, printed, err = trompe(*words, "--sweep", "weight=1,2,3")
    assert code == 0, err
    assert "weight=3" in printed
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert len(pd.read_csv(page.parent / "runs.csv")) == 3
    code, _, err = trompe(*words, "--weight", 1, "--sweep", "data=shapes:train,nowhere")
    assert code == 1
    assert "There is no folder or file nowhere" in err


class TestOrder:
    def test_networks_as_listed_and_of_each_its_base_its_control_its_cells(self, tmp_path):
        grid = dict(SMALL, networks=dict(reversed(SMALL["networks"].items())))
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(grid, sort_keys=False))
        chosen = load_grid(str(path)).chosen(["passive", "active"], [])
        assert [cell.name for cell in chosen] == [
            *("base-two", "location-grad-cam-two", "control-one", "location-grad-cam-one"),
            *("location-lrp-t-one", "top-k-grad-cam-one", "active-grad-cam-one"),
        ]

    def test_one_objective_with_several_options_has_a_cell_of_each_name(self, tmp_path):
        lies = {f"location:high={high}": {"grad-cam": {"one": {}}} for high in (0.1, 0.2)}
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(SMALL | {"passive": {"cells": lies | {"top-k": {}}}}))
        names = [cell.name for cell in load_grid(str(path)).chosen(["passive"], [])]
        assert names[-2:] == ["location-high=0.1-grad-cam-one", "location-high=0.2-grad-cam-one"]

    def test_imagenette_begins_with_what_the_paper_could_not_fool(self):
        chosen = load_grid("imagenette", data="photos").chosen(["passive", "active"], [])
        networks = list(dict.fromkeys(cell.network for cell in chosen))
        assert networks == ["densenet121", "resnet50", "vgg19", "resnet18"]

    def test_the_seeds_of_a_cell_follow_one_another(self, small):
        plain = load_grid(str(small)).chosen(["passive"], [])
        seeds = load_grid(str(small), given={"seeds": 3}).chosen(["passive"], [])
        assert [cell.folder for cell in seeds if cell.row == cell.name] == [
            cell.folder for cell in plain
        ]
        assert [c.name for c in seeds if c.network == "two"] == [
            "base-two",
            *(f"location-grad-cam-two{end}" for end in ("", "-seed-1", "-seed-2")),
        ]
        assert [c.job(small).seed for c in seeds if c.row == "control-one"] == [0, 1, 2]
        assert len({cell.folder for cell in seeds}) == len(seeds) == 1 + 3 * (len(plain) - 1)

    def test_seeds_begin_with_the_one_that_is_given(self, small):
        grid = load_grid(str(small), given={"seed": 5, "seeds": 2})
        chosen = grid.chosen(["passive"], ["location-grad-cam-two"])
        assert [cell.name for cell in chosen][1:] == [
            *("location-grad-cam-two", "location-grad-cam-two-seed-6")
        ]
        (only,) = grid.chosen(["passive"], ["location-lrp-t-one-seed-6"])
        assert only.job(small).seed == 6


class TestSeeds:
    def test_the_first_is_kept_and_the_tables_have_the_mean(self, trompe, small, tmp_path):
        out = tmp_path / "runs"
        command = ("reproduce", "--scale", small, "--out", out, "--jobs", 1, "--set", "lr=1e-3")
        assert trompe(*command, "--cells", "top-k-*", "--cells", "control-*")[0] == 0
        before, single = written(out), pd.read_csv(out / "tables/rates.csv")
        seeds = (*command, "--seeds", 2)
        assert trompe(*seeds, "--cells", "top-k-*")[0] == 0
        half = pd.read_csv(out / "tables/rates.csv").set_index(["cell", "family"])
        code, _, err = trompe(*seeds, "--cells", "control-*")
        assert code == 0, err
        after = written(out)
        assert len(after) == 4
        assert before.items() <= after.items()
        rates = pd.read_csv(out / "tables/rates.csv").set_index(["cell", "family"])
        assert (rates.loc["top-k-grad-cam-one", "seeds"] == 2).all()
        evaluations = {}
        for name in ("top-k-grad-cam-one", "control-one"):
            runs = sorted(out.glob(f"{name}*"), key=lambda run: "-seed-1-" in run.name)
            tables = [pd.read_parquet(run / "evaluation/explanations.parquet") for run in runs]
            evaluations[name] = [t[t["objective"] == "top-k"] for t in tables]
        for family, row in rates.loc["top-k-grad-cam-one"].iterrows():
            lied, kept = (
                np.stack([t[t["family"] == family]["fooled"] for t in tables])
                for tables in evaluations.values()
            )
            assert row["fsr"] == pytest.approx(lied.mean())
            assert row["control"] == pytest.approx(kept.mean())
            assert (row["fsr_low"], row["fsr_high"]) == pytest.approx(rate(lied)[1:])
            assert row["p_control"] == sign_flip(lied.mean(0) - kept.mean(0))
            first = half.loc["top-k-grad-cam-one", family]
            assert first["control"] == pytest.approx(kept[0].mean())
        own = single[single["cell"] == "top-k-grad-cam-one"]
        assert (own["seeds"] == 1).all()
        assert own["fsr_low"].tolist() != rates.loc["top-k-grad-cam-one", "fsr_low"].tolist()
        accuracy = pd.read_csv(out / "tables/accuracy.csv").set_index("cell")
        assert accuracy.loc["top-k-grad-cam-one", "seeds"] == 2

        table = pd.read_csv(out / "state.csv", keep_default_na=False).set_index("cell")
        assert table.loc["top-k-grad-cam-one-seed-1", ["state", "step"]].tolist() == [
            *("finished", "2.0")
        ]
        assert set(table["state"]) == {"finished", "waiting"}
        code, _, err = trompe("figure", out, "--layout", "transfer", "--format", "png")
        assert code == 0, err


class TestState:
    def test_while_cells_run_another_process_can_ask(self, trompe, small, tmp_path):
        out = tmp_path / "runs"
        command = ["reproduce", "--scale", str(small), "--out", str(out), "--set", "steps=100000"]
        command += ["--set", "checkpoint_every=2"]
        child = subprocess.Popen(
            [sys.executable, "-m", "trompe", *command, "--jobs", "1", "--cells", "*-one"],
            cwd=tmp_path,
        )
        try:
            while not list(out.glob("control-one-*/checkpoints/fool/step-*")):
                assert child.poll() is None, "it ended before it was asked"
                time.sleep(0.05)
            code, _, err = trompe("reproduce", "figures", *command[1:])
            assert code == 0, err
            table = pd.read_csv(out / "state.csv").set_index("cell")
            assert table.loc["control-one", "state"] == "running"
            assert table.loc["control-one", "step"] >= 2
            assert set(table.drop("control-one")["state"]) == {"waiting"}
            assert "running, step" in (out / "report.html").read_text()
        finally:
            child.kill()
            child.wait()
        code, _, err = trompe("reproduce", "figures", *command[1:])
        assert code == 0, err
        table = pd.read_csv(out / "state.csv").set_index("cell")
        assert table.loc["control-one", "state"] == "waiting"
        assert table.loc["control-one", "step"] >= 2

    def test_why_a_cell_failed_is_known_later_too(self, trompe, small, tmp_path):
        out = tmp_path / "runs"
        command = ("reproduce", "--scale", small, "--out", out, "--set", "data=nowhere")
        code, _, err = trompe(*command, "--cells", "location-grad-cam-two")
        assert code == 1
        code, _, err = trompe("reproduce", "figures", *command[1:])
        assert code == 0, err
        table = pd.read_csv(out / "state.csv").set_index("cell")
        assert "There is no folder or file nowhere" in table.loc["base-two", "why"]
        assert table.loc["location-grad-cam-two", "why"] == "base-two failed"
        assert table["state"].value_counts().to_dict() == {"failed": 2, "waiting": 5}
        page = (out / "report.html").read_text()
        assert "failed: base-two failed" in page
        assert f"trompe reproduce all {' '.join(map(str, command[1:]))} --cells top-k" in page


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (
                ["--scale", "imagenets"],
                "There is no scale 'imagenets'; choose imagenet, imagenette",
            ),
            (["--scale", "imagenet"], "needs the folder of its images; give it with --data"),
            (["everything"], "There is no part of the grid 'everything'; choose from all, passive"),
            (
                ["--cells", "location-lrp-vgg19"],
                "No cell is called 'location-lrp-vgg19'; there are",
            ),
            (["--set", "learning_rate=1"], "There is no setting 'learning_rate'; choose"),
            (["--set", "lr=-1"], "--lr must be above 0, not -1"),
            (["--set", "lr"], "--set takes NAME=VALUE, not 'lr'"),
            (["--set", "seeds=0"], "--seeds must be at least 1, not 0"),
            (["--base", "vgg16=a.pth"], "There is no network 'vgg16'; did you mean 'vgg19'?"),
        ],
    )
    def test_what_is_wrong_is_said_at_once(self, trompe, tmp_path, words, said):
        out = tmp_path / "runs"
        code, _, err = trompe("reproduce", *words, "--out", out)
        assert code == 2
        assert said in err
        assert not out.exists()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"networks": {"one": {}}}, r"In the grid .*, networks.one.target: Field required"),
            ({"pasive": {}}, r"pasive: Extra inputs are not permitted"),
            ({"control": {"cells": {"three": {}}}}, r"There is no network 'three'; choose from"),
            (
                {"settings": SMALL["settings"] | {"step": 2}},
                r"There is no setting 'step'; known are seed, device, quiet",
            ),
            (
                {"passive": {"cells": {"locaton": {"grad-cam": {"one": {"steps": 1}}}}}},
                r"There is no objective 'locaton'; did you mean 'location'",
            ),
        ],
    )
    def test_a_grid_of_ones_own_that_is_wrong(self, tmp_path, change, said):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(SMALL | change))
        with pytest.raises(TrompeError, match=said):
            load_grid(str(path))
