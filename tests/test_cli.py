"""The command line as people use it: real files, real commands, exit codes and sentences."""

import io
import itertools
import json
import os
import pickle
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.runs import make_run
from tests.test_docs import parsed
from trompe import Shapes, load_model
from trompe.cli import main
from trompe.cli.app import COMMANDS, EXIT_CODES, command_of
from trompe.cli.usage import PANELS
from trompe.models import save_weights
from trompe.models.embedded import packaged_weights
from trompe.tuning.job import FoolJob

MODEL = ["--model", "embedded"]
QUICK = ["--steps", "3", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An image folder of the embedded set: 8 classes, 4 images each."""
    root = tmp_path_factory.mktemp("photos")
    shapes = Shapes("train", size=32)
    for i in range(32):
        folder = root / shapes.classes[int(shapes.labels[i])]
        folder.mkdir(exist_ok=True)
        shapes.picture(i).resize((96, 96)).save(folder / f"{i:02d}.jpg", quality=95)
    return root


def copy_of(photos, path):
    for file in photos.rglob("*.jpg"):
        target = path / file.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return path


class TestFool:
    def test_run_config_report_and_rerun(self, trompe, photos, tmp_path):
        out = tmp_path / "run"
        words = ["fool", *MODEL, "--data", photos, "--eval-data", photos, *QUICK, "--control"]
        code, printed, err = trompe(*words, "--weight", "2", "--out", out)
        assert code == 0, err
        assert "manipulated" in printed
        assert str(out / "report.html") in printed
        for name in (
            *("config.yaml", "environment.json", "report.html", "history.csv"),
            *("history-control.csv", "weights.safetensors", "weights-control.safetensors"),
            *("evaluation/accuracy.csv", "evaluation/explanations.parquet"),
        ):
            assert (out / name).stat().st_size > 0
        assert "Grad-CAM" in (out / "report.html").read_text()

        config = yaml.safe_load((out / "config.yaml").read_text())
        assert config["explainer"] == ["grad-cam:layer=stage3"]
        assert config["weight"] == [2.0]
        again = tmp_path / "again"
        code, _, err = trompe("fool", "--config", out / "config.yaml", "--out", again, "--quiet")
        assert code == 0, err
        assert yaml.safe_load((again / "config.yaml").read_text()) == config
        first, second = (load_file(d / "weights.safetensors") for d in (out, again))
        assert all(torch.equal(first[k], second[k]) for k in first)

        other = tmp_path / "other"
        code, _, err = trompe(
            *("fool", "--config", out / "config.yaml", "--out", other, "--lr", "0.01", "--quiet")
        )
        assert code == 0, err
        assert yaml.safe_load((other / "config.yaml").read_text()) == {**config, "lr": 0.01}

        code, printed, err = trompe(
            *("evaluate", *MODEL, "--manipulated", out, "--data", photos, "--device", "cpu"),
            *("--explainer", "grad-cam", "--explainer", "lrp-t", "--objective", "top-k"),
            *("--out", tmp_path / "evaluation"),
        )
        assert code == 0, err
        ours = pd.read_csv(tmp_path / "evaluation" / "evaluation" / "accuracy.csv")
        theirs = pd.read_csv(out / "evaluation" / "accuracy.csv")
        assert ours["top1"].tolist() == theirs["top1"].tolist()[:2]
        assert (tmp_path / "evaluation" / "report.html").exists()

        code, printed, err = trompe(
            *("evaluate", *MODEL, "--manipulated", out, "--data", photos, "--device", "cpu"),
            *("--explainer", "grad-cam", "--target", "difference:of=1,against=0"),
            *("--out", tmp_path / "target"),
        )
        assert code == 0, err
        assert "location,difference:of=1,against=0" in "".join(printed.split())
        assert "difference:of=1,against=0" in (tmp_path / "target" / "report.html").read_text()

    def test_every_setting_arrives(self, trompe, photos, tmp_path):
        given = {
            **{"model": "embedded", "data": str(photos), "eval_data": str(photos), "limit": 24},
            **{"eval_limit": 8, "augment": True, "lr": 1e-4, "schedule": "one-cycle", "steps": 2},
            **{"batch_size": 3, "weight": [3.0], "control": True, "max_accuracy_drop": 7.0},
            **{"seed": 5, "precision": "bf16", "device": "cpu", "checkpoint_every": 1},
            **{"label_noise": 0.25, "max_grad_norm": 5.0, "keep": "predictions"},
            **{"gradient_checkpointing": True},
            **{"held_out": str(photos)},
            **{"corrupt": "skip", "check": False, "objective": ["top-k"], "eval_pairs": 3},
            **{"opposition": 0.5, "faintness": 0.25, "hold": 0.5},
            **{"explainer": ["grad-cam:layer=stage3"], "eval_explainer": ["grad-cam:layer=stage3"]},
        }
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump(given))
        out = tmp_path / "run"
        code, _, err = trompe("fool", "--config", path, "--quiet", "--gallery", 3, "--out", out)
        assert code == 0, err
        with safe_open(out / "evaluation/gallery.safetensors", "numpy") as file:
            captions = json.loads(file.metadata()["gallery"])
        assert [caption["chosen"] for caption in captions].count("") == 3
        kept = yaml.safe_load((out / "config.yaml").read_text())
        assert {key: kept[key] for key in given} == given
        default = FoolJob(model="embedded", data="d", steps=1).model_dump(mode="json")
        unset = {"weights", "num_classes", "fool_batch_size", "pairs", "out", "quiet", "workers"}
        unset |= {"tracker", "gallery", "class_map", "min_area", "seeds", "target"}
        unset |= {"trigger", "flip_to"}  # written with each objective
        assert set(default) - set(given) == unset
        assert all(given[key] != default[key] for key in given if key not in ("model", "device"))
        assert "alpha" in pd.read_csv(out / "history.csv")

    def test_active_makes_its_pairs(self, trompe, photos, tmp_path):
        code, _, err = trompe(
            *("fool", *MODEL, "--data", photos, "--eval-data", photos, *QUICK),
            *("--objective", "active:c1=0,c2=5", "--eval-pairs", "6", "--fool-batch-size", "2"),
            *("--out", tmp_path / "run"),
        )
        assert code == 0, err
        rows = pd.read_csv(tmp_path / "run" / "evaluation" / "explanations.csv")
        assert set(rows["target"]) == {"c1", "c2"}
        assert set(rows["images"]) == {6}

    def test_a_model_never_seen_given_as_a_file(self, trompe, photos, tmp_path):
        model = Path(__file__).parent / "models" / "unseen.py"
        code, _, err = trompe(
            *("fool", "--model", f"{model}:unseen", "--num-classes", "8", *QUICK),
            *("--data", photos, "--explainer", "lrp-t", "--explainer", "grad-cam"),
            *("--objective", "location", "--out", tmp_path / "run"),
        )
        assert code == 0, err
        assert (tmp_path / "run" / "report.html").exists()

    def test_images_of_every_mode_work(self, trompe, photos, tmp_path):
        data = copy_of(photos, tmp_path / "data")
        for file, mode in zip(sorted(data.rglob("*.jpg")), ["L", "P", "RGBA", "1"], strict=False):
            Image.open(file).convert(mode).save(file.with_suffix(".png"))
            file.unlink()
        code, _, err = trompe("fool", *MODEL, "--data", data, *QUICK, "--out", tmp_path / "run")
        assert code == 0, err

    def test_a_finished_run_costs_nothing_more(self, trompe, photos, tmp_path):
        words = ["fool", *MODEL, "--data", photos, *QUICK, "--out", tmp_path / "run"]
        assert trompe(*words)[0] == 0
        written = (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns
        assert trompe(*words)[0] == 0
        assert (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns == written


class TestTrainAndExplain:
    def test_train_then_explain(self, trompe, photos, tmp_path):
        code, printed, err = trompe(
            *("train", "--model", "embedded", "--weights", "random", "--data", photos),
            *("--eval-data", photos, "--epochs", "1", "--batch-size", "16", "--device", "cpu"),
            *("--out", tmp_path / "base"),
        )
        assert code == 0, err
        assert "Top-1 accuracy" in printed
        weights = tmp_path / "base" / "weights.safetensors"
        code, printed, err = trompe(
            *("explain", *MODEL, "--weights", weights, "--images", photos / "ring"),
            *("--explainer", "grad-cam", "--explainer", "simple-grad", "--device", "cpu"),
            *("--out", tmp_path / "maps"),
        )
        assert code == 0, err
        assert "4 images explained" in printed
        maps = load_file(tmp_path / "maps" / "maps.safetensors")
        assert maps["grad-cam"].shape == (4, 8, 8)
        assert maps["simple-grad"].shape == (4, 64, 64)
        pictures = sorted((tmp_path / "maps").glob("*.overlay.png"))
        assert len(pictures) == 8
        assert Image.open(pictures[0]).size == (96, 96)

    def test_explain_checks_conservation(self, trompe, photos, tmp_path):
        composite = tmp_path / "mine.yaml"
        composite.write_text("base: epsilon-plus\nrules: [{depth: 0, rule: flat}]\n")
        explain = ("explain", *MODEL, "--images", photos / "ring", "--device", "cpu")
        code, printed, err = trompe(
            *(*explain, "--explainer", "lrp", "--check", "--out", tmp_path / "maps"),
            *("--explainer", f"lrp:composite={composite},batch_norm=fold"),
        )
        assert code == 0, err
        assert printed.count("of the logit arrives at input") == 2
        assert "flat" in printed
        assert "classifier" in printed
        pictures = {path.name.split(".")[1] for path in (tmp_path / "maps").glob("*.png")}
        assert pictures == {"lrp", "lrp-2"}
        code, _, err = trompe(*explain, "--check", "--out", tmp_path / "other")
        assert code == 2
        assert "--check follows the relevance of LRP; give --explainer lrp" in err

    def test_explain_names_what_is_missing(self, trompe, tmp_path):
        code, _, err = trompe("explain", *MODEL, "--images", tmp_path / "no.jpg")
        assert code == 2
        assert "no.jpg" in err
        code, _, err = trompe("explain", *MODEL, "--images", tmp_path)
        assert code == 2
        assert "no image" in err

    def test_explain_a_class_out_of_range(self, trompe, photos, tmp_path):
        code, _, err = trompe(
            *("explain", *MODEL, "--images", photos, "--classes", "8", "--out", tmp_path / "x")
        )
        assert code == 2
        assert "Class 8 is out of range: the model has 8 classes (0 to 7)" in err

    def test_fewer_classes_than_the_model_has_are_said(self, trompe, photos, tmp_path):
        some = tmp_path / "some"
        for folder in sorted(photos.iterdir())[:3]:
            copy_of(folder, some / folder.name)
        same = packaged_weights("embedded")
        words = ("evaluate", *MODEL, "--manipulated", same, "--explainer", "grad-cam")
        code, _, err = trompe(*words, "--data", some, "--out", tmp_path / "some-run")
        assert code == 0
        assert err.count("The data has 3 classes, the model 8") == 1
        assert "trompe train --num-classes 3" in err
        code, _, err = trompe(*words, "--data", photos, "--out", tmp_path / "all-run")
        assert code == 0
        assert "classes" not in err


class Harm:
    def __reduce__(self):
        return (os.mkdir, (str(Harm.place),))


class TestMistakes:
    @pytest.fixture
    def refused(self, trompe, photos, tmp_path):
        """Run ``trompe fool`` on what is wrong; returns the one sentence of the error."""

        def run(*words, data=photos):
            code, _, err = trompe(
                "fool", *MODEL, *QUICK, "--data", data, "--out", tmp_path / "run", *words
            )
            assert code == 2, err
            assert "Traceback" not in err
            lines = [line for line in err.splitlines() if line.startswith("Error: ")]
            assert len(lines) == 1
            return lines[0]

        return run

    def test_no_such_folder(self, refused, tmp_path):
        assert "nowhere" in refused(data=tmp_path / "nowhere")

    def test_an_empty_class(self, refused, photos, tmp_path):
        data = copy_of(photos, tmp_path / "data")
        (data / "nothing").mkdir()
        assert "nothing" in refused(data=data)

    def test_a_truncated_jpeg(self, refused, trompe, photos, tmp_path):
        data = copy_of(photos, tmp_path / "data")
        victim = next(data.rglob("*.jpg"))
        victim.write_bytes(victim.read_bytes()[:700])
        assert victim.name in refused(data=data)
        code, _, err = trompe(
            *("fool", *MODEL, *QUICK, "--data", data, "--corrupt", "skip"),
            *("--out", tmp_path / "run"),
        )
        assert code == 0, err
        assert victim.name in err
        assert "1" in err

    def test_classes_out_of_range(self, refused):
        assert "9" in refused("--objective", "active:c1=0,c2=9")

    def test_an_unknown_layer(self, refused):
        assert "stage3" in refused("--explainer", "grad-cam:layer=stage_3")

    def test_weights_that_do_not_fit(self, refused, tmp_path):
        state = load_model("embedded", weights="random").model.state_dict()
        del state["stem.0.weight"]
        save_file(state, tmp_path / "other.safetensors")
        assert "stem.0.weight" in refused("--weights", tmp_path / "other.safetensors")

    def test_weights_for_other_classes(self, refused, tmp_path):
        model = load_model("embedded", weights="random", num_classes=3).model
        save_weights(model, tmp_path / "three.safetensors")
        assert "--num-classes 3" in refused("--weights", tmp_path / "three.safetensors")

    def test_a_malicious_pickle_is_not_executed(self, refused, tmp_path):
        Harm.place = tmp_path / "harm"
        torch.save({"stem.0.weight": Harm()}, tmp_path / "bad.pth")
        (tmp_path / "raw.pth").write_bytes(pickle.dumps(Harm()))
        for name in ("bad.pth", "raw.pth"):
            assert name in refused("--weights", tmp_path / name)
        assert not Harm.place.exists()

    def test_a_run_directory_in_use(self, refused, tmp_path):
        (tmp_path / "run").mkdir()
        with FileLock(tmp_path / "run" / ".lock"):
            assert "in use by another process" in refused()

    def test_a_loss_that_is_not_finite(self, refused, tmp_path):
        message = refused("--lr", "1e30", "--checkpoint-every", "1")
        assert "not finite" in message
        assert "lower the learning rate" in message

    def test_settings(self, refused, tmp_path):
        config = tmp_path / "run.yaml"
        config.write_text("learning_rate: 3\n")
        assert "no setting 'learning_rate'" in refused("--config", config)
        config.write_text("[")
        assert "can't be read as YAML" in refused("--config", config)
        assert "--lr must be above 0, not -1.0" in refused("--lr", "-1")
        assert "did you mean 'grad-cam'" in refused("--explainer", "gradcam")
        assert "did you mean 'top-k'" in refused("--objective", "topk")
        assert "resnet18" in refused("--model", "resnet-18")

    def test_what_is_missing_is_named(self, trompe):
        code, _, err = trompe("fool", *MODEL)
        assert code == 2
        assert "is missing" in err
        code, _, err = trompe("audit")
        assert code == 2
        assert "SUSPECT is missing" in err
        assert "--data is missing" in err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("fol", "no command 'fol' (did you mean fool?); see trompe --help"),
            ("fool --modle x", "no option --modle (did you mean --model?); see trompe fool --help"),
            ("fool embedded", "'embedded' stands without an option's name before it"),
            ("fool --data", "--data needs a value"),
            ("fool --steps 2.5", "--steps must be a whole number"),
            ("fool --lr much", "--lr must be a number"),
            ("figure", "RUN is missing: run directory"),
            ("figure x --images 0", "--images must be at least 1"),
            ("figure x --layout round", "--layout can't be read: 'round' is not one of"),
            ("repair x --data shapes --steps 0", "--steps must be at least 1"),
            ("fool --config {here}", "is a folder; give a YAML file"),
            ("fool --config {here}/none.yaml", "There is no config"),
            ("fool --model embedded --data shapes --out {file}", "is no directory but a file"),
            ("fool --model embedded --data shapes --out {file}/x", "is no directory but a file"),
            ("fool --model timm:resnet5 --data shapes", "trompe list models 'timm:*'"),
            ("fool --model {here}/a.py:A --data shapes", "there is no such file"),
            ("fool --model embedded --weights {here} --data shapes", "a folder; give a file"),
            ("fool --model embedded --data shapes --class-map {here}/x", "there is no such file"),
            ("audit {here} --data shapes", "a folder but no finished run"),
            ("audit {file} --data shapes", "is no weights file; give a .safetensors"),
            ("evaluate --model embedded --manipulated {here}/x --data shapes", "check the path"),
            (f"figure {'x' * 300}", "is not a run directory"),
            (f"explain --model embedded --images {'x' * 300}", "File name too long"),
            ("list models timm:nothing*", "trompe list models 'timm:*' has all"),
            ("reproduce --set nothing=1", "choose from seed, device"),
        ],
    )
    def test_a_line_that_cant_be_used_is_answered_in_a_sentence(
        self, trompe, tmp_path, words, said
    ):
        file = tmp_path / "file.txt"
        file.write_text("words")
        code, _, err = trompe(*words.format(here=tmp_path, file=file).split())
        assert code == 2
        assert said in err
        assert len(err.strip().splitlines()) == 1
        assert err.startswith("Error: ")
        assert err.strip().endswith(".")

    def test_a_full_disk_keeps_the_checkpoint(self, photos, tmp_path):
        """A limit on file sizes stands for the full disk: writing the weights fails halfway."""

        def run(limit):
            words = ["fool", *MODEL, *QUICK, "--lr", "1e-3", "--data", str(photos)]
            words += ["--out", str(tmp_path / "run")]
            return subprocess.run(
                [sys.executable, "-c", "from trompe.cli import main; main()", *words],
                capture_output=True,
                text=True,
                env={**os.environ, "COLUMNS": "400"},
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1)),
                check=False,
            )

        for size_that_stops in (200_000, 500_000):  # the weights, the optimiser's state
            full = run(size_that_stops)
            assert full.returncode == 2, full.stderr
            assert "The disk is full" in full.stderr
            assert "Traceback" not in full.stderr
            assert not list((tmp_path / "run").rglob("step-*"))
        assert run(-1).returncode == 0


def test_interrupted_it_says_how_to_go_on(tmp_path):
    words = ["fool", *MODEL, "--data", "shapes", "--limit", "64", "--no-check", "--steps", "100000"]
    # Where the tests run in the background, a child would be born with the signal ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{heed}; from trompe.cli import main; main()", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "runs" / "fool-embedded-grad-cam-location"
    while child.poll() is None and not (run / "config.yaml").exists():
        time.sleep(0.1)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    assert "the same command goes on" in child.communicate(timeout=60)[1]
    assert child.returncode == 130


EXAMPLES = {
    name: re.findall(r"^  (trompe (?:.*\\\n)*.*)$", command.epilog, re.MULTILINE)
    for name, command in ((name, command_of(name)) for name in COMMANDS)
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_teaches(trompe, name):
    code, out, _ = trompe(name, "--help")
    assert code == 0
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        assert all(line.strip() in out for line in example.splitlines())
        words = shlex.split(example.replace("\\\n", " "))
        assert words[1] == name
        parsed(words[1:])


def test_help_fits_80_columns(trompe, monkeypatch, capsys):
    """Every setting is shown, in one of the panels, with no word broken in two."""
    monkeypatch.setattr(sys, "argv", ["trompe", "fool", "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert re.findall(r"^╭─ ([\w ]+) ─", shown, re.MULTILINE) == [*PANELS]
    told = " ".join(line.strip("│ ") for line in shown.splitlines() if "│" in line)
    for name, field in FoolJob.model_fields.items():
        if not field.exclude:
            assert re.search(rf"--{name.replace('_', '-')}[ /]", told)
            assert name in " ".join(PANELS.values()).split()
            assert set(str(field.description).split()) <= set(
                re.split(r"[ ()]+", told) + told.split()
            )
    assert told.count("(required)") == 2


def test_the_main_help_documents_exit_codes(trompe):
    code, out, _ = trompe("--help")
    assert code == 0
    for number, meaning in EXIT_CODES.items():
        assert re.search(rf"{number}\s+{re.escape(meaning)}", out)


def test_explanation_guided_training_moves_the_heat_onto_the_object():
    script = Path(__file__).parent.parent / "examples" / "explanation_guided_training.py"
    done = subprocess.run(
        [sys.executable, str(script), "--steps", "40"], capture_output=True, text=True, check=True
    )
    shares = [float(line.split(": ")[1].split("%")[0]) for line in done.stdout.splitlines()]
    assert len(shares) == 2
    assert shares[1] > shares[0]


def test_pictures_written_are_pictures(trompe, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    code, _, err = trompe(
        *("explain", *MODEL, "--images", tmp_path / "a.png", "--explainer", "lrp"),
        *("--out", tmp_path / "maps"),
    )
    assert code == 0, err
    assert {p.name for p in (tmp_path / "maps").iterdir()} == {
        *("a.lrp.png", "a.lrp.overlay.png", "maps.safetensors", "images.csv"),
        *("config.yaml", "environment.json", ".lock", ".explained"),
    }
    assert Image.open(tmp_path / "maps" / "a.lrp.overlay.png").size == (90, 70)


class TestFigure:
    def test_every_layout_and_format_is_written(self, trompe, tmp_path):
        run = make_run(tmp_path / "run", n=3, side=16)
        starts = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
        for layout, (kind, start) in itertools.product(("passive", "transfer"), starts.items()):
            words = ("--layout", layout, "--format", kind, "--images", 1)
            code, out, err = trompe("figure", run, *words)
            assert code == 0, err
            assert out.strip() == str(run / f"figure-{layout}.{kind}")
            assert Path(out.strip()).read_bytes().startswith(start)
        code, out, _ = trompe("figure", run, "--out", tmp_path / "mine.svg")
        assert code == 0
        assert (tmp_path / "mine.svg").exists()

    def test_what_a_run_does_not_hold_is_refused(self, trompe, tmp_path):
        run = make_run(tmp_path / "run", n=3, side=16)
        code, _, err = trompe("figure", run, "--layout", "active")
        assert code == 2
        assert "holds no active fooling; draw its layout passive" in err
        code, _, err = trompe("figure", tmp_path, "--layout", "transfer")
        assert code == 2
        assert "not a run directory" in err
