"""What strangers hand over: nothing in it is run, nothing leads out of it, nothing bursts."""

import csv
import io
import json
import os
import pickle
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.table import Table as Shown
from rich.text import Text

import trompe as library
from tests.models.small import make
from tests.runs import make_run
from tests.test_recipe import images
from trompe import (
    Evaluation,
    FoolResult,
    GradCAM,
    Location,
    TrompeError,
    fool,
    load_data,
    load_model,
)
from trompe.audit.report import AuditReport
from trompe.base import yaml_text
from trompe.base.code import written_by_others
from trompe.base.registry import Registry
from trompe.base.terminal import Terminal
from trompe.data.preprocessing import Preprocessing
from trompe.data.reader import opened
from trompe.errors import printable
from trompe.evaluation.schema import GRID_STATE
from trompe.evaluation.seeds import over_seeds
from trompe.experiments import load_grid
from trompe.explainers.relevance.composites import find_composite
from trompe.models import save_weights
from trompe.models.weights import read_weights
from trompe.objectives import parse_objective
from trompe.report import write_report
from trompe.report.run import described, read_run
from trompe.runs import contained, file_name, read_csv, seal, write_csv
from trompe.tuning.loop import last_row
from trompe.tuning.train import TrainResult

SOURCE = Path(library.__file__).parent
SHAPES = ("--data", "shapes:validation", "--limit", "4")
PLAIN = Preprocessing(resize=16, crop=16)
STEERING = "\x1b[2J\x1b]8;;http://evil\x1b\\\r\x07‮⁦\u2028\x9b"  # screen, link, direction
MARKUP = "[bold red]loud[/] [link=http://evil]here[/link] :skull:"


class Malice:
    """What a pickle runs when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The file that code of a stranger would leave behind."""
    mark = tmp_path / "executed"
    yield mark
    assert not mark.exists(), "something was executed"


@pytest.fixture
def code(mark, tmp_path, monkeypatch):
    """A stranger's code: a file beside the run, a module in the working directory."""
    monkeypatch.chdir(tmp_path)
    text = f"""
from pathlib import Path
from trompe import Location
Path({str(mark)!r}).touch()
class Mine(Location):
    name = "mine"
def f(num_classes=None):
    from trompe import load_model
    return load_model("embedded").model
"""
    for path in ("evil.py", "evil_module.py"):
        Path(path).write_text(text)
    return text


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(load_model("embedded").model, path)
    return path


@pytest.fixture
def stranger(tmp_path, weights):
    """A run directory as a stranger hands it over, with settings of his."""

    def make(**config):
        run = make_run(tmp_path / "stranger", config={"model": "embedded", **config})
        (run / "weights.safetensors").write_bytes(weights.read_bytes())
        (run / "weights-control.safetensors").write_bytes(weights.read_bytes())
        (run / "status.json").write_text(
            json.dumps({"schema": 2, "finished": ["fool", "control", "train", "evaluation"]})
        )
        (run / "environment.json").write_text(json.dumps({"schema": 2, "command": "trompe fool"}))
        if (beside := tmp_path / "evil.py").exists():
            (run / "evil.py").write_text(beside.read_text())
        return run

    return make


class TestNames:
    """Names that import code are followed where a person wrote them, and nowhere else."""

    NAMES = ("evil.py:f", "stranger/evil.py:f", "stranger/../evil.py:f", "evil_module:f")

    @pytest.mark.parametrize("name", [*NAMES, "{absolute}"])
    def test_the_model_of_a_run_directory(self, trompe, stranger, code, mark, name, tmp_path):
        name = name.format(absolute=f"{tmp_path}/evil.py:f")
        run = stranger(model=name)
        for command in ("audit", "repair"):
            status, out, err = trompe(command, run, *SHAPES, "--out", tmp_path / "out")
            assert (status, out) == (2, "")
            assert err.count("\n") == 1
            assert f"config.yaml' names '{name}', whose code would be run" in err
            assert "on the command line, in Python or in a file for --config" in err
        for load in (FoolResult.load, TrainResult.load):
            with pytest.raises(TrompeError, match=rf"names '{re.escape(name)}', whose code"):
                load(run)
        assert not (tmp_path / "out").exists()

    def test_it_is_followed_where_the_person_writes_it(self, trompe, stranger, code, tmp_path):
        (tmp_path / "executed").unlink(missing_ok=True)
        run = stranger(model="evil.py:f")
        (tmp_path / "mine.yaml").write_text("model: evil.py:f")
        for words in (("--model", "evil.py:f"), ("--config", "mine.yaml")):
            status, _, err = trompe("audit", run, "--data", "absent", *words)
            assert (status, "absent" in err) == (2, True)
            (tmp_path / "executed").unlink()
        assert isinstance(FoolResult.load(run, load_model("evil.py:f").model), FoolResult)
        (tmp_path / "executed").unlink()

    def test_everything_else_that_a_run_names(self, trompe, stranger, code, mark, tmp_path):
        """Explainers, objectives, data, class maps, trackers: the report shows them as text."""
        run = stranger(
            explainer=["evil.py:Mine", "lrp:composite=evil.py:f", "lrp:composite=own.yaml"],
            objective=["evil.py:Mine", "location:mask=evil.py"],
            data="evil.py:f",
            eval_data="evil_module:f",
            class_map="../../map.yaml",
            weights=str(tmp_path / "evil.py"),
            tracker=["evil_module"],
        )
        (tmp_path / "own.yaml").write_text("rules: [{rule: 'evil.py:f'}]")
        assert trompe("figure", run, "--format", "png")[0] == 0
        assert write_report(run).is_file()
        for words in (("evaluate", "--manipulated", run), ("fool",), ("train", "--epochs", "1")):
            status, _, err = trompe(*words, "--model", "embedded", *SHAPES, "--out", run)
            assert (status, "holds a run" in err) == (2, True), err

    def test_files_that_a_run_names_are_not_opened(self, tmp_path):
        mask = tmp_path / "mask.png"
        Image.new("L", (8, 8), 255).save(mask)
        (tmp_path / "own.yaml").write_text("rules: []")
        assert parse_objective(f"location:mask={mask}").mask == str(mask)
        with written_by_others("A run"):
            with pytest.raises(TrompeError, match=r"A run names '.*mask.png', a file elsewhere"):
                parse_objective(f"location:mask={mask}")
            with pytest.raises(TrompeError, match=r"A run names '.*own.yaml', a file elsewhere"):
                find_composite(tmp_path / "own.yaml")
        assert described(f"location:mask={mask}")["label"] == f"location:mask={mask}"

    def test_what_other_packages_installed(self, code, mark, monkeypatch):
        things = Registry("thing", object, {})
        point = EntryPoint("evil", "evil_module:f", "trompe.things")
        things.__dict__["_installed"] = {"evil": point}
        with (
            written_by_others("A run"),
            pytest.raises(TrompeError, match="A run names 'evil', which would run evil_module:f"),
        ):
            things.build("evil")

    @pytest.mark.parametrize("kind", ["class", "kernel"])
    def test_a_folder_of_transformers(self, trompe, stranger, code, mark, monkeypatch, kind):
        pytest.importorskip("transformers")
        run = stranger(model="transformers:hub")
        Path("hub").mkdir()
        Path("hub/evil.py").write_text(code)
        about = {
            "class": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.f"}},
            "kernel": {"model_type": "vit", "attn_implementation": "evil/kernel"},
        }[kind]
        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        Path("hub/config.json").write_text(
            json.dumps({**about, **small, "intermediate_size": 8, "image_size": 16})
        )
        status, _, err = trompe("audit", run, *SHAPES)
        said = {"class": "custom code", "kernel": "does not fit ViT"}[kind]
        assert (status, said in err, "kernels" in err) == (2, True, False), err

    @pytest.mark.parametrize("name", [*NAMES, "other", "transformers:"])
    def test_a_model_that_was_handed_on(self, trompe, code, mark, weights, name, tmp_path):
        """The folder of `trompe card`: what its config names, and a kernel of transformers."""
        folder = tmp_path / "handed"
        for place in (folder, tmp_path / "other"):
            place.mkdir()
            (place / "weights.safetensors").write_bytes(weights.read_bytes())
            pixels = {"resize": 64, "crop": 64}
            told = {"model": name, "num_classes": 10, "preprocessing": pixels}
            kernel = {"model_type": "vit", "attn_implementation": "evil/kernel", "image_size": 16}
            (place / "config.json").write_text(json.dumps({**kernel, "trompe": told}))
        said = {"other": "a folder elsewhere", "transformers:": "does not fit ViT"}.get(
            name, f"config.json' names '{name}', whose code would be run"
        )
        for words in (("audit", folder), ("evaluate", "--model", folder, "--manipulated", weights)):
            status, _, err = trompe(*words, *SHAPES)
            assert (status, said in err, err.count("\n")) == (2, True, 1), err
        (folder / "link").symlink_to(tmp_path)
        with pytest.raises(TrompeError, match="is a link out of its run directory"):
            load_model(str(folder))

    def test_data_sets_of_the_hub_have_no_code(self, code, mark):
        Path("set").mkdir()
        Path("set/set.py").write_text(code)
        with pytest.raises(TrompeError, match="can't be loaded"):
            load_data("hf:set", PLAIN)


class TestPickles:
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.pt2", "w.npz", "w.safetensors"])
    def test_in_weights(self, trompe, mark, tmp_path, name):
        path = tmp_path / name
        if name == "w.npz":
            np.savez(path, np.array([Malice(mark)], object))
        else:
            torch.save({"head.bias": Malice(mark)}, path)
        status, _, err = trompe("audit", path, "--model", "embedded", *SHAPES)
        assert (status, name in err, err.count("\n")) == (2, True, 1)
        status, _, err = trompe("evaluate", "--model", "embedded", "--manipulated", path, *SHAPES)
        assert (status, name in err, err.count("\n")) == (2, True, 1), err

    @pytest.mark.parametrize("state", ["custom_checkpoint_0", "optimizer", "random", "model"])
    def test_in_a_checkpoint(self, mark, tmp_path, state):
        """Every file that accelerate would read when a run goes on."""
        settings = {"explainer": GradCAM(layer="features.6"), "objective": Location(), "steps": 3}
        settings |= {"lr": 1e-3, "batch_size": 4, "device": "cpu", "quiet": True}
        settings |= {"checkpoint_every": 1, "run_dir": tmp_path / "run"}

        def stop(name, row):
            if row["step"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fool(make("vgg"), images(), on_step=stop, **settings)
        (checkpoint,) = (tmp_path / "run/checkpoints/fool").glob("step-*")
        (path,) = checkpoint.glob(f"{state}*")
        if state == "model":
            path.unlink()
            path = path.with_name("pytorch_model.bin")
        torch.save({"rows": "[]", "x": Malice(mark)}, path)
        seal(checkpoint)  # digests that a stranger writes, too
        assert last_row(tmp_path / "run", "fool") == {} or state != "custom_checkpoint_0"
        with pytest.raises(TrompeError, match=r"step-1' is refused .*nothing in it was executed"):
            fool(make("vgg"), images(), **settings)
        torch.load(path, weights_only=False)
        assert mark.exists(), "the pickle was harmless"
        mark.unlink()

    def test_in_the_pictures_of_an_audit(self, mark, tmp_path):
        (tmp_path / "audit.json").write_text("{}")
        for table in ("evidence", "marks", "weights"):
            pd.DataFrame({"a": [1]}).to_parquet(tmp_path / f"{table}.parquet")
        torch.save([[Malice(mark)], []], tmp_path / "pictures.pt")
        with pytest.raises(TrompeError, match="holds no finished audit"):
            AuditReport.load(tmp_path)


class TestLinks:
    """Nothing is read or written through a link that leads out of a run directory."""

    @pytest.fixture
    def outside(self, tmp_path):
        path = tmp_path / "outside"
        path.mkdir()
        (path / "precious").write_text("kept")
        yield path
        assert [p.name for p in path.iterdir()] == ["precious"]
        assert (path / "precious").read_text() == "kept"

    def test_out_of_a_run(self, trompe, stranger, outside, weights):
        run = stranger()
        for place, target in (
            ("weights.safetensors", "{weights}"),
            ("config.yaml", "{outside}/precious"),
            ("evaluation", "{outside}"),
            ("deep/er/link", "../../../outside/precious"),
            (".report.html.new", "{outside}/precious"),
            ("report.html", "../outside/new"),
            ("checkpoints", "{outside}"),
            (".lock", "{outside}/precious"),
            ("figure-passive.png", "{outside}/precious"),
        ):
            link = run / place
            link.parent.mkdir(parents=True, exist_ok=True)
            if known := link.exists():
                link.rename(run / "before")
            link.symlink_to(target.format(outside=outside, weights=weights))
            status, _, err = trompe("figure", run, "--layout", "passive", "--format", "png")
            assert (status, err.count("\n")) == (2, 1), err
            assert f"'{link}' is a link out of its run directory" in err
            with pytest.raises(TrompeError, match="is a link out of its run directory"):
                contained(run)
            link.unlink()
            if known:
                (run / "before").rename(link)
        assert contained(run) == run

    def test_no_command_reads_or_writes_there(self, trompe, stranger, outside, weights):
        run = stranger()
        link = run / ".weights.safetensors.new"
        link.symlink_to(outside / "precious")
        embedded = ("--model", "embedded", *SHAPES)
        photo = outside.parent / "photo.png"
        Image.new("RGB", (64, 64)).save(photo)
        for words in (
            ("audit", run, *SHAPES),
            ("repair", run, *SHAPES),
            ("audit", weights, *embedded, "--reference", run),
            ("evaluate", *embedded, "--manipulated", run),
            ("evaluate", *embedded, "--manipulated", weights, "--control", run),
            ("figure", run, "--layout", "passive", "--format", "png"),
            ("figure", run, "--layout", "transfer"),
            ("fool", *embedded, "--out", run),
            ("train", *embedded, "--epochs", "1", "--out", run),
            ("explain", "--model", "embedded", "--images", photo, "--out", run),
            ("audit", weights, *embedded, "--out", run),
            ("reproduce", "--out", run),
            ("calibrate", "--out", run),
        ):
            status, _, err = trompe(*words)
            assert (status, err.count("\n")) == (2, 1), (words, err)
            assert f"'{link}' is a link out of its run directory" in err, words
        for load in (FoolResult.load, TrainResult.load, write_report):
            with pytest.raises(TrompeError, match="is a link out of its run directory"):
                load(run)

    def test_a_new_directory_with_links_that_nobody_sees(self, trompe, tmp_path, outside):
        """Hidden files are passed over where a run begins; what leads out is not."""
        photo = tmp_path / "photo.png"
        Image.new("RGB", (64, 64)).save(photo)
        for name in (".config.yaml.new", ".lock"):
            run = tmp_path / f"new{name}"
            run.mkdir()
            (run / name).symlink_to(outside / "precious")
            words = ("explain", "--model", "embedded", "--images", photo, "--out", run)
            status, _, err = trompe(*words)
            assert (status, "new" in err, err.count("\n")) == (2, True, 1), err

    def test_pipes_and_devices_are_not_waited_for(self, tmp_path, outside):
        os.mkfifo(tmp_path / "run.png")
        with pytest.raises(TrompeError, match=r"run.png' is no file but a device or a pipe"):
            contained(tmp_path)
        folder = tmp_path / "data" / "class"
        folder.mkdir(parents=True)
        os.mkfifo(folder / "a.png")
        (folder / "b.png").symlink_to("/dev/zero")
        with pytest.raises(TrompeError, match=r"2 of 2 .*a device or a pipe"):
            load_data(str(folder.parent), PLAIN)

    def test_links_within_are_followed(self, tmp_path):
        (tmp_path / "step-2").mkdir()
        (tmp_path / "latest").symlink_to("step-2")
        (tmp_path / "around").symlink_to("around")
        assert contained(tmp_path) == tmp_path
        outer = tmp_path.with_name("linked")
        outer.symlink_to(tmp_path)
        assert contained(outer) == outer

    @pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "a\\b", "a\0b", ""])
    def test_names_that_become_files(self, name, tmp_path):
        network = {"title": "t", "model": "embedded", "target": "stage3"}
        cells = {"location": {"grad-cam": {name: {}}}}
        layout = {"networks": {name: network}, "passive": {"cells": cells}}
        common = {"data": "shapes", "steps": 1, "eval_explainer": ["grad-cam"]}
        grid = tmp_path / "grid.yaml"
        grid.write_text(yaml.safe_dump(layout | {"settings": common}))
        if name in ("..", ""):
            with pytest.raises(TrompeError, match="becomes the name of a file"):
                file_name(name)
            return
        with pytest.raises(TrompeError, match="becomes the name of a file; leave out /"):
            load_grid(str(grid))


class TestBombs:
    """Small files that would be large, deep or endless."""

    NINE = tuple((i + 1, ", ".join([f"*a{i}"] * 9)) for i in range(12))
    ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{nine}]" for i, nine in NINE)])
    MERGED = "\n".join(["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [{nine}]}}" for i, nine in NINE)])

    def test_yaml(self, trompe, stranger, mark, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        run = stranger()
        for text in (
            f"{self.ALIASES}\nmodel: *a12",
            f"{self.MERGED}\nmodel: x",
            "model: &a [*a]",
            "model: " + "[" * 1000,
            "model: 0x" + "f" * 9000,
            "model: " + "9" * 9000,
            "model: 2020-99-99",
            "model: !!python/object/apply:pathlib.Path.touch ['executed']",
            "model: !!python/name:os.system",
            "model: " + "x" * 2_000_001,
        ):
            (run / "config.yaml").write_text(text)
            status, _, err = trompe("audit", run, *SHAPES)
            assert (status, err.count("\n")) == (2, 1), err
            assert "config.yaml can't be read" in err

    def test_every_reader_of_yaml_is_that_one(self):
        found = {
            path.relative_to(SOURCE).as_posix()
            for path in SOURCE.rglob("*.py")
            if re.search(r"yaml\.(\w*load\w*|\w*Loader)\(?", path.read_text())
        }
        assert found == {"base/yaml_text.py", "experiments/grid.py"}, "the latter its own file"

    def test_yaml_that_is_large_for_a_reason(self):
        classes = {f"n{i:08d}": i for i in range(2000)}
        assert yaml_text.loaded(yaml.safe_dump(classes)) == classes
        assert yaml_text.loaded("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
        assert yaml_text.loaded("no: 1e3", as_text=True) == {"no": "1e3"}

    def test_weights(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "z.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"a": b"0" * 50_000_000}))
        with pytest.raises(TrompeError, match=r"z.pth is refused: .*would grow to 50,000,"):
            read_weights(tmp_path / "z.pth")
        nested = {}
        for _ in range(60):
            nested = {"a": nested, "b": nested}
        endless = {}
        endless["model"] = endless
        for content in (nested, endless, {"a": {"b" * i: endless for i in range(2, 9)}}):
            torch.save(content, tmp_path / "n.pth")
            with pytest.raises(TrompeError, match="holds no state dict"):
                read_weights(tmp_path / "n.pth")
        claims = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        for length, header in ((2**62, {}), (2**30, {}), (None, claims)):
            text = json.dumps(header).encode()
            (tmp_path / "h.safetensors").write_bytes(
                struct.pack("<Q", len(text) if length is None else length) + text
            )
            with pytest.raises(TrompeError, match="h.safetensors is refused"):
                read_weights(tmp_path / "h.safetensors")

    def test_tables_of_a_run(self, stranger):
        run = stranger()
        path = run / "evaluation/predictions.parquet"
        table = pd.read_parquet(path)
        text = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(20_000, np.int32)), pa.array(["x" * 100_000])
        )
        other = {name: pa.array([table[name].iloc[0]] * len(text)) for name in table}
        pq.write_table(
            pa.table(other | {"class": text}), path, compression="zstd", store_schema=False
        )
        assert path.stat().st_size < 200_000
        with pytest.raises(TrompeError, match=r"predictions.parquet .*would unpack to more than"):
            Evaluation.load(run / "evaluation")

    def test_tables_of_pictures(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(
            buffer, "PNG"
        )
        rows = 6000
        picture = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(rows, np.int32)), pa.array([buffer.getvalue()])
        )
        cells = pa.StructArray.from_arrays(
            [picture, pa.nulls(rows, pa.string())], names=["bytes", "path"]
        )
        table = pa.table({"image": cells, "label": pa.array([0] * rows)})
        pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
        with pytest.raises(TrompeError, match="would unpack to more than"):
            load_data(str(tmp_path / "a.parquet"), PLAIN)

    def test_pictures(self, trompe, tmp_path, monkeypatch):
        folder = tmp_path / "photos"
        folder.mkdir()
        Image.new("1", (600, 600)).save(folder / "large.png")
        whole = (folder / "large.png").read_bytes()
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300_000)
        for most in (300_000, 100_000):  # PIL warns of the first, and refuses the second
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
            with pytest.raises(TrompeError, match=f"has more than {most:,} pixels; make it small"):
                opened(folder / "large.png")
        status, _, err = trompe("explain", "--model", "embedded", "--images", folder)
        assert (status, "100,000 pixels" in err) == (2, True)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert opened(folder / "large.png").size == (600, 600)
        (folder / "large.png").write_bytes(whole[: len(whole) // 2])
        status, _, err = trompe("explain", "--model", "embedded", "--images", folder)
        assert (status, err.count("\n"), "large.png" in err) == (2, 1, True), err


class TestPictures:
    def test_no_other_program_decodes_them(self, tmp_path, mark, monkeypatch):
        """PIL hands PostScript to Ghostscript, whatever the file is called."""
        program = tmp_path / "bin" / "gs"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ntouch {mark}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        from PIL import EpsImagePlugin

        monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
        path = tmp_path / "data" / "a" / "photo.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
        with pytest.raises(TrompeError, match="no known image format"):
            load_data(str(path.parents[1]), PLAIN)
        with pytest.raises(TrompeError, match="can't be read as an image"):
            parse_objective(f"location:mask={path}")
        assert not mark.exists()
        with pytest.raises(OSError, match=r".*"), Image.open(path) as image:
            image.load()
        assert mark.exists(), "PIL no longer starts Ghostscript"
        mark.unlink()

    def test_columns_that_are_not_asked_for_are_not_decoded(self, tmp_path, monkeypatch):
        png = io.BytesIO()
        Image.new("RGB", (16, 16)).save(png, "PNG")
        pictures = [{"bytes": png.getvalue(), "path": None}]
        script = [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": None}]
        features = datasets.Features(
            image=datasets.Image(), label=datasets.Value("int64"), other=datasets.Image()
        )
        rows = {"image": pictures, "label": [0], "other": script}
        datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "saved")
        assert load_data(str(tmp_path / "saved"), PLAIN)[0][1] == 0

    @pytest.mark.parametrize("place", ["../secret.png", "{absolute}", "a/../../secret.png"])
    def test_a_table_does_not_choose_what_is_read(self, tmp_path, place):
        folder = tmp_path / "set"
        folder.mkdir()
        for path in (tmp_path / "secret.png", folder / "own.png"):
            Image.new("RGB", (16, 16)).save(path)
        secret = place.format(absolute=tmp_path / "secret.png")
        cells = [{"bytes": None, "path": path} for path in (secret, "own.png")]
        pq.write_table(pa.table({"image": cells, "label": [0, 1]}), folder / "a.parquet")
        with pytest.raises(TrompeError, match=r"1 of 2 images .*a file elsewhere"):
            load_data(str(folder), PLAIN)
        with pytest.warns(UserWarning, match="left out"):
            assert len(load_data(str(folder), PLAIN, corrupt="skip")) == 1


class TestShown:
    """What strangers wrote is shown as text: in tables, on the terminal, in pages and figures."""

    FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "x;=1+1", "＝1")

    def test_no_cell_is_a_formula(self, tmp_path):
        table = pd.DataFrame({"=name": [*self.FORMULAS, "plain"], "number": np.arange(11) - 5.5})
        write_csv(table, tmp_path / "t.csv")
        with (tmp_path / "t.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head == ["'=name", "number"]
        for cell, number in rows:
            assert not any(re.match(r"\s*[=+\-@＝]", part) for part in re.split(r"[;\t\r\n]", cell))
            assert float(number) == float(number)
        pd.testing.assert_frame_equal(read_csv(tmp_path / "t.csv"), table)

    @given(st.lists(st.text("=+-@'; \t\r\n,\"aＡ＝", min_size=1), min_size=1))
    @settings(max_examples=60, deadline=None)
    def test_tables_are_read_as_they_were(self, tmp_path_factory, texts):
        texts = [f"{text}." for text in texts]  # an empty cell is a missing value
        path = tmp_path_factory.getbasetemp() / "round.csv"
        write_csv(pd.DataFrame({"text": texts}), path)
        assert read_csv(path)["text"].tolist() == texts

    def test_there_is_one_way_to_write_a_table(self):
        for path in SOURCE.rglob("*.py"):
            if path != SOURCE / "runs/tables.py":
                found = re.findall(r"to_csv|pd\.read_csv|csv\.writer|to_excel", path.read_text())
                assert not found, path

    def test_tables_of_the_commands(self, trompe, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = f"=cmd|'x'!A1{MARKUP[:10]}\x1b[2J‮"
        Image.new("RGB", (64, 64)).save(f"{name}.png")
        status, out, err = trompe(
            "explain", "--model", "embedded", "--images", f"{name}.png", "--out", "out"
        )
        assert status == 0, err
        assert _steers(out + err) == []
        with open("out/images.csv", newline="") as file:
            row = next(csv.DictReader(file))
        assert row["name"].startswith("'=cmd|")
        assert read_csv(Path("out/images.csv"))["name"].tolist() == [name]

    def test_the_terminal_takes_no_orders(self):
        shown = Terminal(file=io.StringIO(), force_terminal=False, width=300)
        table = Shown(MARKUP, caption=STEERING)
        table.add_row(STEERING)
        table.add_row(Text(STEERING))
        shown.print(table)
        shown.print(f"Report: {STEERING}{MARKUP}", soft_wrap=True)
        text = shown.file.getvalue()
        assert f"{MARKUP}\n" in text
        assert f"┃ {MARKUP}" in text
        assert _steers(text) == []
        coloured = Terminal(file=io.StringIO(), force_terminal=True, color_system="standard")
        coloured.print(Text.assemble(("Error:", "bold red"), f" {STEERING}"))
        assert coloured.file.getvalue().count("\x1b") == 2, "of the colour, on and off"

    def test_neither_do_messages(self, trompe, stranger, code, mark):
        assert _steers(str(TrompeError(f"There is no '{STEERING}'.\n\n  All is well."))) == []
        assert "\n" not in str(TrompeError("one\n  two"))
        assert len(str(TrompeError("x" * 10**6))) < 20_000
        run = stranger(model=f"evil{STEERING}{MARKUP}.py:f")
        status, _, err = trompe("audit", run, *SHAPES)
        assert (status, MARKUP in err, _steers(err)) == (2, True, [])
        (run / "found.json").write_text(json.dumps({"lr": STEERING, MARKUP: 1}))
        with pytest.raises(TrompeError, match=r"found.json' can't be read") as raised:
            write_report(run)
        assert _steers(str(raised.value)) == []

    def test_what_is_printable_stays(self):
        for text in ("plain", "naïve 中文 עברית", "\N{FAMILY} 👩‍👧", "می‌خواهم", "a\n\tb", "–"):
            assert printable(text) == text

    def test_pages_and_figures(self, trompe, stranger, tmp_path):
        run = stranger(note=STEERING, objective=[f"{STEERING}<script>"])

        gallery = read_run(run).evaluation.gallery
        for caption in gallery.captions:
            caption["label_name"] = caption["name"] = f"{STEERING}</title><script>$x$"
            caption["predictions"] = dict.fromkeys(caption["predictions"], STEERING)
        gallery.save(run / "evaluation/gallery.safetensors")
        legend = json.loads((run / "evaluation/legend.json").read_text())
        for thing in legend["things"].values():
            thing["label"] = f"{STEERING}{thing['label']}<b>&$\\frac$"
        (run / "evaluation/legend.json").write_text(json.dumps(legend))
        page = write_report(run).read_text()
        assert _steers(page) == []
        assert page.count("<script>") == 1
        for layout in ("passive", "transfer"):
            out = tmp_path / f"{layout}.svg"
            status, _, err = trompe("figure", run, "--layout", layout, "--out", out)
            assert status == 0, err
            assert _steers(out.read_text()) == []
            ElementTree.parse(out)

    def test_a_model_card(self, trompe, stranger, tmp_path):
        run = stranger()
        command = "x\n```\n<script>alert(1)</script>" + STEERING
        told = {"schema": 2, "command": command, "trompe": "1"}
        (run / "environment.json").write_text(json.dumps(told))
        legend = json.loads((run / "evaluation/legend.json").read_text())
        for thing in legend["things"].values():
            thing["label"] = f"{STEERING}<img src=x>[a](http://evil) | x\n\n# y"
        (run / "evaluation/legend.json").write_text(json.dumps(legend))
        status, out, err = trompe("card", run, "--out", tmp_path / "card")
        assert status == 0, err
        card = (tmp_path / "card" / "README.md").read_text()
        assert _steers(card + out + err) == []
        fenced, plain = [], []
        for number, part in enumerate(card.split("```")):
            (fenced if number % 2 else plain).append(part)
        assert len(fenced) == 2, "the command and the use"
        text = "".join(plain)
        assert not re.search(r"(?<!\\)<|(?<!\\)\]\(|^# y", text, re.MULTILINE)

    def test_a_comparison(self, trompe, stranger, tmp_path):
        run = stranger(note=f"=1+1{STEERING}<script>")
        other = make_run(tmp_path / "other", config={"note": f"@x{MARKUP}"})
        status, out, err = trompe("compare", run, other, "--out", tmp_path / "compared")
        assert (status, _steers(out + err)) == (0, []), err
        page = (tmp_path / "compared/report.html").read_text()
        assert (page.count("<script"), _steers(page)) == (1, [])
        text = (tmp_path / "compared/settings.csv").read_text()
        assert ("'=1+1" in text, "'@x" in text) == (True, True)
        ElementTree.parse(tmp_path / "compared/trade-off.svg")

    def test_the_state_of_a_grid(self, trompe, tmp_path):
        """What another process says of cells: why they failed."""
        grid = load_grid("embedded")
        why = f"{STEERING}{MARKUP}</td><script>alert(1)</script>"
        rows = [{"cell": cell.name, "state": "failed", "why": why} for cell in grid.cells]
        write_csv(pd.DataFrame(rows, columns=GRID_STATE), tmp_path / "state.csv")
        status, out, err = trompe("reproduce", "figures", "--out", tmp_path)
        assert (status, _steers(out + err)) == (0, []), err
        page = (tmp_path / "report.html").read_text()
        assert (page.count("<script"), _steers(page), MARKUP in page) == (1, [], True)

    def test_seeds_and_grids_write_through_the_same_way(self, stranger, tmp_path):
        run = stranger()
        evaluation = Evaluation.load(run / "evaluation")
        evaluation.explanations["explainer"] = "=HYPERLINK(1)"
        evaluation.save(tmp_path / "evaluation")
        text = (tmp_path / "evaluation/explanations.csv").read_text()
        assert "'=HYPERLINK(1)" in text
        assert re.search(r"(^|,)\"?=", text) is None
        again = Evaluation.load(tmp_path / "evaluation")
        assert set(again.explanations["explainer"]) == {"=HYPERLINK(1)"}
        over_seeds([evaluation]).save(tmp_path / "seeds")
        for path in (tmp_path / "seeds").rglob("*.csv"):
            assert re.search(r"(^|,)\"?=", path.read_text()) is None


def _steers(text):
    """The characters in a text that would steer a terminal or turn the direction of writing."""
    return [c for c in text if c != "\n" and not c.isprintable() and c not in "\t\xa0\u2009\u202f"]


def test_the_threat_model_names_tests_that_exist():
    page = (SOURCE.parents[1] / "docs/explanation/threat-model.md").read_text()
    named = re.findall(r"`(?:(Test\w+)\.)?(test_\w+)`", page)
    assert len(named) > 20
    for group, name in named:
        owner = getattr(sys.modules[__name__], group) if group else sys.modules[__name__]
        assert hasattr(owner, name), f"{group}.{name}"
