"""Experiment trackers: what TensorBoard's own reader finds in the files."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trompe import TrompeError
from trompe.report.trackers import check

FOOL = ("fool", "--model", "embedded", "--data", "shapes", "--limit", 8, "--steps", 3, "--control")
FOOL += ("--batch-size", 4, "--device", "cpu", "--eval-data", "shapes:validation")
FOOL += ("--eval-limit", 8, "--quiet", "--tracker", "tensorboard")


def events(folder):
    """Everything in the event files of a folder."""
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_gets_every_step_and_the_heatmaps(trompe, tmp_path):
    run = tmp_path / "run"
    code, _, err = trompe(*FOOL, "--out", run)
    assert code == 0, err
    found = events(run / "tensorboard")
    for name, file in (("fool", "history.csv"), ("control", "history-control.csv")):
        history = pd.read_csv(run / file)
        logged = found.Scalars(f"{name}/loss")
        assert [event.step for event in logged] == [1, 2, 3]
        np.testing.assert_allclose([e.value for e in logged], history["loss"], rtol=1e-5)
    assert len(found.Scalars("fool/success")) == 3
    rates = pd.read_csv(run / "evaluation" / "explanations.csv")
    rates = rates[rates["model"] == "manipulated"].set_index("explainer")["fsr"]
    key = "grad-cam:layer_stage3"
    (logged,) = found.Scalars(f"fooled/location/label/{key}")
    assert logged.value == pytest.approx(rates["grad-cam:layer=stage3"])
    (tag,) = (tag for tag in found.Tags()["images"] if tag.startswith(key))
    picture = Image.open(io.BytesIO(found.Images(tag)[0].encoded_image_string))
    assert picture.size[0] >= 2 * 64
    left, right = np.hsplit(np.asarray(picture)[:64, :128], 2)
    assert left.std() > 0
    assert not np.array_equal(left, right)
    (hparams,) = (run / "tensorboard").rglob("hparams.yml")
    assert yaml.safe_load(hparams.read_text())["objective"] == "['location']"


def test_a_tracker_is_no_setting_of_the_run(trompe, tmp_path):
    run = tmp_path / "run"
    assert trompe(*FOOL, "--out", run)[0] == 0
    assert "tracker" not in yaml.safe_load((run / "config.yaml").read_text())
    code, _, err = trompe(*FOOL[:-2], "--out", run)
    assert code == 0, err
    before = sorted((run / "tensorboard").rglob("*"))
    assert trompe(*FOOL, "--out", run)[0] == 0
    assert sorted((run / "tensorboard").rglob("*")) == before


def test_training_is_tracked(trompe, tmp_path):
    code, _, err = trompe(
        *("train", "--model", "embedded", "--data", "shapes", "--limit", 8, "--epochs", 2),
        *("--batch-size", 4, "--device", "cpu", "--tracker", "tensorboard", "--quiet"),
        *("--out", tmp_path / "base"),
    )
    assert code == 0, err
    logged = events(tmp_path / "base" / "tensorboard").Scalars("train/accuracy")
    assert [event.step for event in logged] == [1, 2, 3, 4]


def test_mistakes_cost_nothing(trompe, tmp_path, monkeypatch):
    code, _, err = trompe(*FOOL[:-1], "tensorbord", "--out", tmp_path / "run")
    assert code == 2
    assert "did you mean 'tensorboard'" in err
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrompeError, match=r"pip install 'trompe\[wandb\]'"):
        check(["wandb"])
