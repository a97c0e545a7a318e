"""The benchmarks run; what they find is not asked here."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from benchmarks import gpu, lies

from trompe.experiments import load_grid


def test_every_section_runs(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for section in ("steps", "explanations", "evaluation"):
        found = pd.read_csv(tmp_path / f"{section}.csv")
        assert (found["ratio"] > 0).all()
        page = (tmp_path / f"{section}.md").read_text()
        assert all(f"| {row.what} |" in page for row in found.itertuples())
        assert (tmp_path / f"{section}.png").stat().st_size > 1000


def test_the_time_to_a_lie():
    given = {"model": "embedded", "data": "shapes:train", "limit": 60, "steps": 2, "check": False}
    rows = [lies.measured("found", given), lies.measured("by hand", given | {"lr": 1e-3})]
    assert [row["steps"] for row in rows] == [2, 2]
    assert all(row["core_minutes"] >= 0 and row["images"].startswith("12 ") for row in rows)
    told = lies.page(pd.DataFrame(rows))
    assert "| found | 2 |" in told
    assert "| by hand |" in told


@pytest.mark.parametrize("toy", [False, True])
def test_the_grid_of_a_gpu_is_that_of_the_papers_networks(toy, tmp_path):
    options = Namespace(toy=toy, teacher="timm:efficientnet_lite0", class_map=tmp_path / "map.yaml")
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(gpu.layout(options)))
    cells = load_grid(str(file), data="photos").cells
    assert len(cells) == 3 + 3 + 24
    assert {cell.network for cell in cells} == {"vgg19", "resnet50", "densenet121"}
    assert all((cell.settings.get("limit") is not None) == toy for cell in cells)


def test_the_steps_of_a_gpu_are_timed():
    rows = [*gpu.step_times(1, 64, ["resnet18"])]
    assert {(row["precision"], row["step"]) for row in rows} == {
        (precision, step)
        for precision in ("float32", "bf16")
        for step in ("plain", "grad-cam", "lrp-t")
    }
    assert all(row["milliseconds"] > 0 for row in rows)
    assert all(row["dearest"].count("%") == (3 if row["step"] == "lrp-t" else 0) for row in rows)
