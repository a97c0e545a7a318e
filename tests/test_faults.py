"""What is damaged, changes or is interrupted on the way is told or gone on with."""

import json
import os
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

from trompe import GradCAM, TrompeError, runs, train
from trompe.base import json_text, yaml_text
from trompe.base.memory import is_out_of_memory
from trompe.base.specs import called
from trompe.data import load_data
from trompe.data.preprocessing import Preprocessing
from trompe.explain import DONE, MAPS, TABLE, Photographs, explain_files
from trompe.tuning.job import TrainJob
from trompe.tuning.loop import restored

SMALL = Preprocessing(resize=8, crop=8)


@pytest.fixture
def images(tmp_path):
    """Seven files in two classes."""
    drawn = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(drawn.integers(0, 255, (9, 9, 3), np.uint8))
        picture.save(folder / f"{number}.png")
    return tmp_path / "images"


def network():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*parts).eval()


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


class Stops(Dataset):
    """A dataset that is interrupted at one of its reads."""

    def __init__(self, data, at):
        self.data, self.at, self.reads = data, at, 0
        self.fingerprint, self.labels = data.fingerprint, data.labels

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.at:
            raise KeyboardInterrupt
        return self.data[index]


def trained(data, run_dir=None, **options):
    given = {"epochs": 2, "batch_size": 2, "checkpoint_every": 1, "device": "cpu", "quiet": True}
    return train(network(), data, run_dir=run_dir, **given, **options)


class TestFineTuning:
    def test_a_damaged_checkpoint_is_told(self, images, tmp_path):
        data = load_data(images, SMALL)
        run = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            trained(Stops(data, 7), run)
        (checkpoint,) = (run / "checkpoints/train").iterdir()
        flip(checkpoint / "model.safetensors")
        with pytest.raises(TrompeError, match=f"{checkpoint.name}' is damaged.* Remove it"):
            trained(data, run)
        flip(checkpoint / "model.safetensors")
        pd.testing.assert_frame_equal(trained(data, run).history, trained(data).history)

        flip(run / "weights.safetensors")
        for again in (lambda: trained(data, run), lambda: restored(network(), run)):
            with pytest.raises(TrompeError, match=r"weights.safetensors' is damaged"):
                again()

    def test_killed_before_the_checkpoints_are_removed(self, images, tmp_path):
        run, data = tmp_path / "run", load_data(images, SMALL)
        first = trained(data, run)
        for leftover in ("checkpoints/train/step-2", "checkpoints/.train.old/step-2"):
            (run / leftover).mkdir(parents=True)
        again = trained(data, run, on_step=lambda *_: pytest.fail("it was trained again"))
        pd.testing.assert_frame_equal(first.history, again.history)
        assert not [*(run / "checkpoints").iterdir()]


def test_a_file_that_changes_on_the_way_is_told(images):
    data = load_data(images, SMALL)
    before = data.fingerprint
    changed = images / data.name(3)
    content, stat = changed.read_bytes(), changed.stat()
    Image.new("RGB", (9, 9)).save(changed)
    assert data[2][0].shape == (3, 8, 8)
    with pytest.raises(TrompeError, match=f"{data.name(3)} has changed since this run began"):
        data[3]
    assert load_data(images, SMALL).fingerprint != before
    changed.write_bytes(content)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert data[3][0].shape == (3, 8, 8)


class Interrupted(Photographs):
    """Photographs, with an interruption at one of them."""

    def picture(self, index):
        if index == 4:
            raise KeyboardInterrupt
        return super().picture(index)


class TestExplaining:
    @staticmethod
    def explained(data, out, **options):
        explainers = [GradCAM(layer="0"), GradCAM(layer="1")]
        return explain_files(network(), data, explainers, out, batch_size=2, quiet=True, **options)

    def test_it_goes_on_after_the_last_batch(self, images, tmp_path):
        whole = self.explained(Photographs([images], SMALL), tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            self.explained(Interrupted([images], SMALL), tmp_path / "out")
        assert not (tmp_path / "out" / TABLE).exists()
        assert not (tmp_path / "out" / MAPS).exists()
        done = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.png")}
        assert len(done) == 4 * 4
        table = self.explained(Photographs([images], SMALL), tmp_path / "out")
        pd.testing.assert_frame_equal(table, whole)
        assert all(file.stat().st_mtime_ns == written for file, written in done.items())
        for file in (tmp_path / "whole").rglob("*"):
            if file.suffix in (".png", ".csv", ".safetensors"):
                same = tmp_path / "out" / file.relative_to(tmp_path / "whole")
                assert file.read_bytes() == same.read_bytes()
        maps = load_file(tmp_path / "out" / MAPS)
        assert maps["classes"].tolist() == whole["explained"][::2].tolist()
        assert maps["grad-cam:layer=0"].shape == (7, 6, 6)

    @pytest.mark.parametrize("damaged", ["a/2.grad-cam.png", MAPS, DONE])
    def test_what_is_damaged_is_made_again(self, images, tmp_path, damaged):
        data, out = Photographs([images], SMALL), tmp_path / "out"
        self.explained(data, out)
        files = {f: f.read_bytes() for f in out.rglob("*") if f.suffix in (".png", ".safetensors")}
        flip(out / damaged, place=len((out / damaged).read_bytes()) // 2)
        self.explained(data, out)
        assert all(file.read_bytes() == content for file, content in files.items())

    def test_another_task_begins_anew(self, images, tmp_path):
        data, out = Photographs([images], SMALL), tmp_path / "out"
        assert self.explained(data, out, classes=0)["explained"].unique().tolist() == [0]
        assert self.explained(data, out, classes=1)["explained"].unique().tolist() == [1]


class TestTexts:
    @pytest.mark.parametrize(
        "text", ["[" * 300, "{a: " * 300, "- " * 300, "&a [*a]", "2020-13-45", "{[]: 1}"]
    )
    def test_yaml_that_is_none(self, text):
        begun = os.times().user
        with suppress(yaml.YAMLError):
            yaml_text.loaded(text)
        assert os.times().user - begun < 5

    def test_json_that_is_too_deep(self):
        with pytest.raises(ValueError, match="too deeply"):
            json_text.loaded("[" * 100_000)

    def test_values_that_a_class_can_not_take(self):
        with pytest.raises(TrompeError, match=r"thing 'range:start=\[1\]' can't be made"):
            called("thing", "range", lambda start: range(start), "start=[1]")


def test_what_a_run_says_of_itself_may_be_anything(tmp_path):
    for text in ("{}", '{"finished": 3}', "[]", '{"finished": ["a"], "digests": 3}'):
        (tmp_path / runs.STATUS).write_text(text)
        with suppress(TrompeError):
            runs.finished(tmp_path)
            runs.check_intact(tmp_path, tmp_path / runs.STATUS)
    runs.write_text(tmp_path / runs.STATUS, json.dumps({"finished": []}))
    (tmp_path / "made").write_text("content")
    runs.finish(tmp_path, "part", tmp_path / "made")
    runs.check_intact(tmp_path, tmp_path / "made")
    flip(tmp_path / "made")
    with pytest.raises(TrompeError, match="made' is damaged"):
        runs.check_intact(tmp_path, tmp_path / "made")


def test_too_little_memory_is_known_by_its_many_names():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_network_from_nothing_has_the_classes_of_the_data(images):
    given = {"data": str(images), "epochs": 1}
    assert TrainJob(model="resnet18", **given).with_classes().num_classes == 2
    kept = [{"model": "resnet18", "num_classes": 5}, {"model": "embedded"}, {"model": "mine.py:f"}]
    for one in kept:
        job = TrainJob(**one, **given)
        assert job.with_classes() is job
