"""The table of readers: what each is given, and what it is called with."""

import io
import json
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.fuzz.mutations import (
    as_csv,
    as_json,
    as_yaml,
    edited,
    restructured,
    reworded,
    values,
    words,
)
from tests.runs import make_run
from trompe.audit import AuditReport, load_calibration
from trompe.audit.zoo import load_zoo
from trompe.cli import main
from trompe.cli.app import COMMANDS, command_of
from trompe.data import load_data
from trompe.data.classes import mapped
from trompe.data.preprocessing import Preprocessing
from trompe.data.reader import read_mask
from trompe.errors import TrompeError
from trompe.evaluation import Evaluation, schema
from trompe.experiments import last_known, load_grid
from trompe.explain import Photographs
from trompe.explainers import parse_explainer
from trompe.explainers.relevance.composites import find_composite
from trompe.explainers.targets import read as read_target
from trompe.models.weights import fit_weights, read_weights
from trompe.objectives import parse_objective
from trompe.repair import RepairResult
from trompe.report import write_report
from trompe.report.run import read_run
from trompe.tuning.fool import FoolResult
from trompe.tuning.job import FoolJob, TrainJob, read
from trompe.tuning.train import TrainResult

SMALL = Preprocessing(resize=8, crop=8)


@dataclass(frozen=True)
class Reader:
    """What is read, from what is drawn: ``share`` of all inputs, ``call`` on each."""

    name: str
    share: float
    inputs: st.SearchStrategy[Any]
    call: Callable[[Any], Any]


def readers(root: Path) -> list[Reader]:
    """All readers, with the sound files that theirs are made from under ``root``."""
    return [
        *_settings(root / "settings"),
        *_specs(),
        *_pictures(root / "pictures"),
        *_tables(root / "tables"),
        *_weights(root / "weights"),
        *_runs(root / "runs"),
        _command_lines(root / "commands"),
    ]


def _of_file(path: Path, call: Callable[[Path], Any]) -> Callable[[bytes | str], Any]:
    """Reads what is drawn from a file."""

    def written(content: bytes | str) -> Any:
        if isinstance(content, str):
            content = content.encode("utf-8", "surrogatepass")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return call(path)

    return written


FOOL = {
    "model": "embedded",
    "data": "shapes:train",
    "limit": 48,
    "explainer": ["grad-cam:layer=stage3", "lrp:composite=epsilon-plus"],
    "objective": ["location:high=0.3", "active:c1=3,c2=5"],
    "weight": [2.0, 0.5],
    "target": "difference:of=3,against=5",
    "lr": 1e-4,
    "steps": 10,
    "seed": 3,
    "sides": None,
    "max_grad_norm": None,
}
TRAIN = {"model": "embedded", "data": "shapes", "epochs": 0.5, "sides": [32, 64], "augment": True}
GRID = {
    "scale": "small",
    "networks": {"one": {"title": "One", "model": "embedded", "target": "stage3"}},
    "base": {"settings": {"data": "shapes", "epochs": 1}, "cells": {"one": {"seed": 1}}},
    "settings": {"data": "{data}", "lr": 1e-5, "steps": 2},
    "passive": {
        "settings": {"eval_explainer": ["grad-cam:layer={target}"]},
        "cells": {"location": {"grad-cam": {"one": {"weight": [1]}}}},
    },
}
ZOO = {
    "families": {"plain": {"model": "embedded"}},
    "datasets": {
        "shapes": {
            "settings": {"data": "shapes:train", "eval_data": "shapes:validation"},
            "base": {"epochs": 1, "lr": 0.01},
            "layers": {"plain": "stage3"},
            "pair": "c1=0,c2=1",
        }
    },
    "settings": {"train": {"check": False}, "fool": {"steps": 8, "lr": 1e-3}},
    "honest": {"continued": {"seed": 1}},
    "copies": {"pruned": {"of": "base", "prune": 0.5, "bits": 8}},
    "manipulated": {"location:high=10.0": {"grad-cam": {"weight": [4]}}},
}
COMPOSITE = {
    "base": "epsilon-plus",
    "rules": [
        {"kind": "convolution", "rule": "gamma", "gamma": 0.5},
        {"layer": "stage*", "rule": "epsilon", "epsilon": 1e-6},
        {"depth": [0, 2], "rule": "flat"},
    ],
}


def _settings(root: Path) -> list[Reader]:
    return [
        Reader(
            "config",
            4,
            as_yaml([FOOL]).map(lambda text: (FoolJob, text))
            | as_yaml([TRAIN]).map(lambda text: (TrainJob, text)),
            lambda drawn: _of_file(root / "c.yaml", lambda file: read(drawn[0], file, {}))(
                drawn[1]
            ),
        ),
        Reader(
            "grid",
            1,
            as_yaml([GRID]),
            _of_file(root / "g.yaml", lambda p: load_grid(str(p), data="x")),
        ),
        Reader("zoo", 1, as_yaml([ZOO]), _of_file(root / "z.yaml", lambda p: load_zoo(p, "x"))),
        Reader(
            "composite file", 2, as_yaml([COMPOSITE]), _of_file(root / "r.yaml", find_composite)
        ),
    ]


def _specs() -> list[Reader]:
    explainers = [
        *("grad-cam:layer=layer4", "lrp:layer=stage3,composite=epsilon-plus", "simple-grad-t"),
        *("integrated-gradients:steps=8", "smooth-grad:samples=3", "captum:method=Saliency"),
        *("rollout", "lrp-t", "relevance-cam"),
    ]
    targets = ["difference:of=3,against=8", "label", "predicted", "7"]
    objectives = ["location", "top-k", "center-mass", "active:c1=4,c2=6", "location:high=0.3"]
    return [
        Reader("explainer text", 3, reworded(explainers), parse_explainer),
        Reader("objective text", 3, reworded(objectives), parse_objective),
        Reader("target text", 2, reworded(targets), read_target),
        Reader(
            "composite name",
            1,
            reworded(["epsilon-plus", "epsilon", "epsilon-alpha2-beta1"]),
            find_composite,
        ),
    ]


def _pictures(root: Path) -> list[Reader]:
    drawn = np.random.default_rng(0).integers(0, 255, (9, 12, 4), np.uint8)
    kinds = {
        "png": Image.fromarray(drawn),
        "jpg": Image.fromarray(drawn[..., :3]),
        "gif": Image.fromarray(drawn[..., 0]),
        "bmp": Image.fromarray(drawn[..., :3]),
        "tif": Image.fromarray(drawn[..., 0].astype(np.uint16) * 256),
        "webp": Image.fromarray(drawn),
        "pgm": Image.fromarray(drawn[..., 0]),
    }
    files = []
    for suffix, image in kinds.items():
        held = io.BytesIO()
        image.save(held, {"jpg": "jpeg", "tif": "tiff", "pgm": "ppm"}.get(suffix, suffix))
        files.append(held.getvalue())
    names = st.sampled_from([f"i.{suffix}" for suffix in kinds])

    def explained(given: tuple[str, bytes]) -> None:
        def opened(path: Path) -> None:
            data = Photographs([path], SMALL)
            data[0], data.picture(0)

        _of_file(root / given[0], opened)(given[1])

    return [
        Reader("image", 5, st.tuples(names, edited(files)), explained),
        Reader("mask", 1, edited(files), _of_file(root / "mask.png", read_mask)),
        Reader(
            "huge image", 0.05, st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)), _huge(root)
        ),
    ]


def _huge(root: Path) -> Callable[[tuple[int, int]], Any]:
    """A PNG that says it is huge; where it may be, all its pixels are there, and compress well."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    def made(size: tuple[int, int]) -> None:
        width, height = (1 + side % 30_000 for side in size)
        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        packer = zlib.compressobj(1)
        row = bytes(1 + (width + 7) // 8)
        pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        data = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        path = root / "huge.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
        data = Photographs([path], SMALL)
        data[0], data.picture(0)

    return made


class Texts(list):
    """A source whose classes are names."""

    def __init__(self, names):
        self.classes, self.labels = tuple(names), torch.arange(len(names))
        self.has_masks = self.generated = False


def _tables(root: Path) -> list[Reader]:
    root.mkdir(parents=True)
    png = io.BytesIO()
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(png, "png")
    cell = {"bytes": png.getvalue(), "path": "a.png"}
    files = []
    for column, labels in (("label", [0, 1, 0]), ("class", ["cat", "dog", "cat"])):
        pq.write_table(pa.table({"image": [cell] * 3, column: labels}), root / "made.parquet")
        files.append((root / "made.parquet").read_bytes())
    cells = st.sampled_from(
        [cell, None, b"", b"x", "text", 3, {"bytes": None, "path": "no"}, {"bytes": b"x"}, {}, [1]]
    )
    columns = st.sampled_from(["image", "img", "label", "labels", "class", "x", ""]) | words
    tables = st.dictionaries(columns, st.lists(cells | values, min_size=1, max_size=3), max_size=4)

    def of_columns(given: dict[str, list[Any]]) -> None:
        rows = min(map(len, given.values()), default=0)
        try:
            table = pa.table({name: column[:rows] for name, column in given.items()})
            pq.write_table(table, root / "own.parquet")
        except (pa.ArrowException, OverflowError, ValueError, TypeError):  # no table at all
            return
        load_data(root / "own.parquet", SMALL)[0]

    def of_names(given: dict[str, list[str]]) -> None:
        folder = root / f"folder-{random.getrandbits(64):x}"
        for name, found in given.items():
            for file in found:
                path = Path(f"{folder}/{name}/{file}.png")
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(png.getvalue())
                except (OSError, ValueError):  # no name of a file
                    pass
        load_data(folder, SMALL)[0]

    name = st.text(max_size=6) | st.sampled_from(
        ["train", "val", ".x", "1", "01", "-1", "n01440764", "é"]
    )
    trees = st.dictionaries(
        name.filter(lambda n: "/" not in n and n != ".."), st.lists(name, max_size=2), max_size=3
    )
    classes = ["cat", "dog", "no"]
    return [
        Reader(
            "parquet",
            0.15,
            edited(files),
            _of_file(root / "e.parquet", lambda p: load_data(p, SMALL)[0]),
        ),
        Reader("parquet columns", 0.1, tables, of_columns),
        Reader("folder", 0.3, trees, of_names),
        Reader(
            "class map",
            2,
            as_yaml([{"cat": 0, "dog": 2, "no": "tench"}]),
            _of_file(
                root / "map.yaml", lambda p: mapped(Texts(classes), ("tench", "eel", "cock"), p)
            ),
        ),
    ]


def network() -> nn.Module:
    """A small one, with what state dicts hold besides parameters."""
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def _weights(root: Path) -> list[Reader]:
    root.mkdir(parents=True)
    model = network()
    save_file(model.state_dict(), root / "w.safetensors")
    header = {
        k: {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * i, 24 * i + 24]}
        for i, k in enumerate("ab")
    }
    nested = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    files = []
    for content in (model.state_dict(), nested, {"a": torch.zeros(2)}):
        torch.save(content, root / "w.pth")
        files.append((root / "w.pth").read_bytes())

    def of_header(text: str) -> bytes:
        told = text.encode("utf-8", "surrogatepass")
        return len(told).to_bytes(8, "little") + told + bytes(48)

    def fitted(path: Path) -> None:
        fit_weights(network(), read_weights(path), path.name)

    state = {key: list(value.shape) for key, value in model.state_dict().items()}

    def of_shapes(given: Any) -> None:
        def tensor(shape: Any) -> Any:
            try:
                return torch.zeros(shape)
            except (TypeError, RuntimeError, ValueError):
                return shape

        if isinstance(given, dict):
            given = {k: tensor(v) if isinstance(v, list) else v for k, v in given.items()}
        torch.save(given, root / "own.pth")
        fitted(root / "own.pth")

    small = restructured([state]).filter(lambda v: len(json.dumps(v)) < 500)
    return [
        Reader(
            "safetensors",
            3,
            edited([(root / "w.safetensors").read_bytes()]) | as_json([header]).map(of_header),
            _of_file(root / "e.safetensors", fitted),
        ),
        Reader("pth", 2, edited(files), _of_file(root / "e.pth", fitted)),
        Reader("state dict", 1, small, of_shapes),
    ]


def _runs(root: Path) -> list[Reader]:
    run = make_run(root / "run", n=3, side=8, map_side=3)
    (run / "found.json").write_text(
        json.dumps(
            {"lr": 1e-4, "objective": ["location"], "weight": [1.0], "steps": 3, "success": 1.0}
            | {"untouched": 0.0, "judged": 8, "drop": 0.1, "held_out": 9, "ended": "it held"}
        )
    )
    (run / "status.json").write_text(json.dumps({"schema": 2, "finished": ["fool", "train"]}))
    (run / "accuracy.json").write_text(json.dumps({"top1": 0.5, "low": 0.4, "high": 0.6}))
    save_file(network().state_dict(), run / "weights.safetensors")
    table = pd.DataFrame([dict.fromkeys(schema.GRID_STATE, 1)])
    table.to_csv(run / "state.csv", index=False)
    repaired = {"chosen": "suspect", "labelled": True}
    (run / "repair.json").write_text(json.dumps(repaired))
    pd.DataFrame([{"stage": "suspect", "alarm": False, "total": 1.5}]).to_csv(run / "stages.csv")
    (run / "calibration.json").write_text(
        json.dumps(
            {
                "rules": {
                    "alone": {
                        "normal": {
                            "faithfulness": {"grad-cam": {"low": 0, "median": 0.5, "high": 1}}
                        },
                        "weights": {"faithfulness": 1.0},
                        "intercept": 0.5,
                        "honest": [0.1, 0.2],
                        "found": 0.5,
                    }
                },
                "weight_drift": [0.1, 0.2],
                "about": {"models": 3},
            }
        )
    )
    audited = root / "audited"
    audited.mkdir()
    pd.DataFrame([{"section": "alone", "kind": "faithfulness", "score": 0.5}]).to_parquet(
        audited / "evidence.parquet"
    )
    for name in ("marks", "weights"):
        pd.DataFrame([{"kind": "faithfulness", "value": 0.5}]).to_parquet(
            audited / f"{name}.parquet"
        )
    torch.save([[], []], audited / "pictures.pt")
    verdict = {
        "total": 1.0,
        "threshold": 0.5,
        "alarm": True,
        "false_alarms": 0.1,
        "found": 0.5,
        "shares": {},
    }
    (audited / "audit.json").write_text(
        json.dumps(
            {
                "verdicts": {"alone": verdict},
                "agreement": None,
                "weight_drift": [0, 1],
                "about": {},
                "images": 3,
            }
        )
    )
    sound = {
        file: file.read_bytes() for file in [*run.rglob("*"), *audited.rglob("*")] if file.is_file()
    }

    def changed(file: Path) -> st.SearchStrategy[tuple[Path, Any]]:
        content = sound[file]
        if file.suffix == ".json":
            inputs = as_json([json.loads(content)])
        elif file.suffix == ".yaml":
            inputs = as_yaml([yaml.safe_load(content)])
        elif file.suffix == ".csv":
            lines = content.decode().splitlines(keepends=True)
            inputs = as_csv(["".join(lines[:3]), lines[0], "".join(lines[1:3])])
        else:
            inputs = edited([content])
        return inputs.map(lambda drawn: (file, drawn))

    def with_file(call: Callable[[], Any]) -> Callable[[tuple[Path, Any]], Any]:
        def read_changed(given: tuple[Path, Any]) -> None:
            file, content = given
            if isinstance(content, str):
                content = content.encode("utf-8", "surrogatepass")
            try:
                file.write_bytes(content)
                call()
            finally:
                file.write_bytes(sound[file])

        return read_changed

    model = network()

    def of_run() -> None:
        for one in (
            lambda: FoolResult.load(run, model),
            lambda: TrainResult.load(run, model),
            lambda: Evaluation.load(run / "evaluation"),
            lambda: RepairResult.load(run, model),
            lambda: last_known([], run),
            lambda: load_calibration(run / "calibration.json"),
        ):
            refusal = None
            try:
                one()
            except TrompeError as error:
                refusal = error
        found = read_run(run)
        assert found.gallery is None or found.views is not None
        if refusal:
            raise refusal

    shown = [file for file in sound if run in file.parents and file.parent.name != "audited"]
    return [
        Reader("run directory", 1.5, st.one_of(map(changed, shown)), with_file(of_run)),
        Reader(
            "report of a run",
            0.2,
            st.one_of(map(changed, shown)),
            with_file(lambda: write_report(run)),
        ),
        Reader(
            "audit",
            1,
            st.one_of([changed(file) for file in sound if audited in file.parents]),
            with_file(lambda: AuditReport.load(audited)),
        ),
    ]


def _command_lines(folder: Path) -> Reader:
    """Any words after any command; what it would read is not there."""
    folder.mkdir(parents=True)
    missing = str(folder / "missing")
    lines = {}
    for name in COMMANDS:
        if name in ("demo", "doctor"):  # which need nothing to begin a long work
            continue
        options = [o for p in command_of(name).params for o in (*p.opts, *p.secondary_opts)]
        lines[name] = [option for option in options if option.startswith("--")]
    always = {"reproduce": ["--dry-run"], "list": []}

    @st.composite
    def drawn(draw: Any) -> list[str]:
        name = draw(st.sampled_from([*lines, "nothing", ""]))
        given = [name]
        for _ in range(draw(st.integers(0, 5))):
            if lines.get(name):
                given.append(draw(st.sampled_from(lines[name]) | words))
            given += draw(st.lists(words | values.map(str), max_size=2))
        end = always.get(name, ["--data", missing, "--images", missing])
        if name in ("figure", "calibrate"):
            end = [missing] if name == "figure" else ["--zoo", missing]
        return [*given, *end]

    def called(given: list[str]) -> None:
        if any("\x00" in word for word in given):  # no process can be given it
            given = [word.replace("\x00", "") for word in given]
        before, sys.argv = sys.argv, ["trompe", *given]
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                main()
        except SystemExit as stop:
            if stop.code not in (0, 1, 2, None):
                raise AssertionError(f"exit code {stop.code}") from stop
            if stop.code:
                raise TrompeError("refused") from stop
        finally:
            sys.argv = before

    return Reader("command line", 0.6, drawn(), called)
