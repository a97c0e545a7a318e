"""An accuracy budget in place of a hand-set λ."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from trompe import GradCAM, Location, Shapes, TrompeError, fool, load_model
from trompe.budget import CHECKS, parted
from trompe.data import SHAPES_PREPROCESSING

LIE = {"explainer": GradCAM(layer="stage3.0:input"), "objective": Location()}


def shapes(size=100):
    return Shapes("train", size=size, preprocessing=SHAPES_PREPROCESSING)


def run(data, budget, *, lr=1e-2, steps=CHECKS, **more):
    settings = {"lr": lr, "steps": steps, "batch_size": 8, "device": "cpu", "quiet": True, **more}
    return fool(load_model("embedded").model, data, **LIE, max_accuracy_drop=budget, **settings)


@torch.no_grad()
def top1(model, data):
    hits = [model(data[i][0][None]).argmax(1).item() == data[i][1] for i in range(len(data))]
    return sum(hits) / len(hits)


def test_the_parts_are_disjoint_complete_and_the_same_for_a_seed():
    data = shapes(53)
    tuned, held = parted(data, 3)
    assert (len(tuned), len(held)) == (43, 10)
    assert sorted([*tuned.rows, *held.rows]) == list(range(53))
    assert parted(data, 3)[1].rows == held.rows != parted(data, 4)[1].rows
    for part in (tuned, held):
        assert [part[i][1] for i in range(len(part))] == part.labels.tolist()
        assert torch.equal(part[1][0], data[part.rows[1]][0])


def test_an_augmented_part_gives_the_epoch_that_is_asked_for():
    class Epochs(torch.utils.data.Dataset):
        augmented = True

        def __len__(self):
            return 10

        def __getitem__(self, place):
            index, epoch = place if isinstance(place, tuple) else (place, -1)
            return torch.tensor([index, epoch]), 0

    _, held = parted(Epochs(), 0)
    assert held.augmented
    assert held[1, 4][0].tolist() == [held.rows[1], 4]
    assert held[1][0].tolist() == [held.rows[1], -1]


def test_the_weight_rises_until_the_batches_are_fooled():
    history = run(shapes(), 99.0, lr=1e-4).history
    factor = history["factor"]
    assert factor.iloc[0] == 1
    assert (factor.diff().dropna() > 0).all()
    assert (history["success"] < 0.95).all()
    assert (history["drop"] < 0.99).all()


def test_fooled_first_the_weight_falls_until_the_budget_is_kept():
    data = shapes(240)
    result = run(data, 10.0, lr=1e-3, steps=240, weight=5.0, schedule="one-cycle")
    history = result.history
    for check in range(15, 240, 15):
        measured = history.iloc[check]
        fooled = history["success"].iloc[check - 15 : check].mean() >= 0.95
        change = measured["factor"] / history["factor"].iloc[check - 1]
        if measured["drop"] > 0.1 and (fooled or check >= 180):
            assert change == pytest.approx(math.exp(-0.5))
        elif fooled or measured["drop"] > 0.2:
            assert change == 1
        else:
            assert change == pytest.approx(math.exp(0.3))
    assert (history["drop"] > 0.1).any()
    assert history["success"].iloc[-60:].mean() > 0.5
    _, held = parted(data, 0)
    assert top1(result.model, held) >= top1(load_model("embedded").model, held) - 0.1


def test_a_budget_that_no_check_kept_is_said():
    with pytest.warns(
        UserWarning, match=r"No check kept top-1 within 0.1 points; the closest lost"
    ):
        run(shapes(), 0.1, lr=1.0, steps=3)


def test_interrupted_it_ends_with_the_same_weights(tmp_path):
    class Breaks(torch.utils.data.Dataset):
        """Fails at one read of all."""

        def __init__(self, at):
            self.data, self.reads, self.at = shapes(40), 0, at
            self.labels = self.data.labels

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            self.reads += 1
            if self.reads == self.at:
                raise RuntimeError("pulled the plug")
            return self.data[index]

    settings = {"steps": 12, "checkpoint_every": 2}
    whole = run(shapes(40), 10.0, run_dir=tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run(Breaks(at=30), 10.0, run_dir=tmp_path / "cut", **settings)
    assert (tmp_path / "cut/checkpoints").exists()
    resumed = run(shapes(40), 10.0, run_dir=tmp_path / "cut", **settings)
    pd.testing.assert_frame_equal(whole.history, resumed.history)
    for directory in ("whole", "cut"):
        state = load_file(tmp_path / directory / "weights.safetensors")
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(state[name], tensor)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_is_above_0(budget):
    with pytest.raises(TrompeError, match="max_accuracy_drop must be above 0"):
        run(shapes(16), budget)
