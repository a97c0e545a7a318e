"""Several processes make of a run what one makes of it."""

import os
import subprocess
import sys

import pandas as pd
from safetensors.torch import load_file

from trompe.tuning.pilot import Found

FOOL = (
    "fool --model embedded-resnet --data shapes:train --limit 48 --eval-data shapes:validation "
    "--eval-limit 37 --lr 3e-4 --batch-size 8 --steps 6 --checkpoint-every 4 --quiet "
    "--objective top-k --objective active:c1=4,c2=6 --explainer grad-cam --explainer lrp-t "
    "--fool-batch-size 4 --pairs 12 --eval-pairs 9 --max-accuracy-drop 5 --device cpu"
)


def by_two(*words):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "trompe", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_processes_make_and_measure_what_one_does(trompe, tmp_path):
    assert trompe(*FOOL.split(), "--out", tmp_path / "1")[0] == 0
    done = by_two(*FOOL.split(), "--out", tmp_path / "2")
    assert done.stdout.count("Report:") == 1, done.stderr
    one, two = (load_file(tmp_path / n / "weights.safetensors") for n in "12")
    for name, weights in one.items():
        assert (weights - two[name]).abs().max() < 1e-5, name
    one, two = (pd.read_csv(tmp_path / n / "history.csv") for n in "12")
    pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-5)

    words = "evaluate --model embedded-resnet --data shapes:validation --limit 37 --pairs 9 --quiet"
    words += " --explainer grad-cam --explainer lrp --objective location"
    words += f" --objective active:c1=4,c2=6 --batch-size 8 --manipulated {tmp_path / '1'}"
    assert trompe(*words.split(), "--out", tmp_path / "evaluated-1")[0] == 0
    done = by_two(*words.split(), "--out", tmp_path / "evaluated-2")
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / f"evaluated-{n}" / "evaluation" for n in (1, 2))
    for name in ("accuracy.csv", "explanations.csv"):
        assert (one / name).read_text() == (two / name).read_text()
    for name in ("predictions.parquet", "explanations.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(one / name), pd.read_parquet(two / name), check_exact=True
        )
    assert len(pd.read_parquet(two / "predictions.parquet")) == 37
    one, two = (load_file(path / "gallery.safetensors") for path in (one, two))
    assert all((one[name] == two[name]).all() for name in one)


def test_two_processes_find_what_one_does(trompe, tmp_path):
    words = "fool --model embedded-resnet --data shapes:train --limit 60 --batch-size 8 --steps 4 "
    words += "--explainer grad-cam --explainer lrp-t --quiet --no-check --device cpu"
    assert trompe(*words.split(), "--out", tmp_path / "1")[0] == 0
    done = by_two(*words.split(), "--out", tmp_path / "2")
    assert done.stdout.count("Report:") == 1, done.stderr
    one, two = (Found.load(tmp_path / n) for n in "12")
    assert one == two
    one, two = (load_file(tmp_path / n / "weights.safetensors") for n in "12")
    assert all((weights - two[name]).abs().max() < 1e-4 for name, weights in one.items())


def test_a_batch_that_can_t_be_shared_is_refused_once(tmp_path):
    words = "fool --model embedded --data shapes:train --limit 8 --lr 1e-3 --batch-size 3 --steps 2"
    done = by_two(*words.split(), "--out", tmp_path / "run")
    assert done.returncode != 0
    assert done.stderr.count("A batch of 3 can't be shared by 2 processes") == 1


def test_training_by_two_processes_is_that_of_one(trompe, tmp_path):
    """Of a network without dropout and BatchNorm, which each process has for itself."""
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "def plain(num_classes):\n"
        "    pooled = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), *pooled)\n"
    )
    words = f"train --model {tmp_path / 'plain.py'}:plain --num-classes 8 --data shapes:train"
    words += " --limit 24 --epochs 2 --batch-size 8 --lr 1e-3 --quiet --no-check --device cpu"
    words += " --eval-data shapes:validation --eval-limit 16"
    assert trompe(*words.split(), "--out", tmp_path / "1")[0] == 0
    done = by_two(*words.split(), "--out", tmp_path / "2")
    assert done.stdout.count("Report:") == 1, done.stderr
    one, two = (load_file(tmp_path / n / "weights.safetensors") for n in "12")
    for name, weights in one.items():
        assert (weights - two[name]).abs().max() < 1e-5, name
    one, two = ((tmp_path / n / "accuracy.json").read_text() for n in "12")
    assert one == two


def test_a_command_that_runs_in_one_process_says_so():
    done = by_two("audit", "embedded", "--data", "shapes")
    assert done.returncode != 0
    assert "trompe audit runs in one process; start it without a launcher." in done.stderr
