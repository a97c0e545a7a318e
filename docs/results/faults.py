"""Faults in the middle of every command that writes, and what the same command makes of them.

    OMP_NUM_THREADS=1 python docs/results/faults.py WORK [COMMAND ...] [--trials N]

needs root (a full disk is a small tmpfs). Each command has run once without a fault. Then, so many
times for each kind of fault: it runs in a copy of its inputs, the fault happens at one of its own
writes or at a random moment, the same command runs again to its end, and all files are compared
byte for byte with those of the first run. What was finished before may not be made again. Every
attempt is a fork of this process, which has imported everything. Attempts are kept in
``WORK/attempts.jsonl`` and not made again; ``faults.csv`` beside this file counts them.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import thread as pool
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from trompe.audit import answers
from trompe.cli import main as trompe
from trompe.cli.app import COMMANDS, command_of
from trompe.experiments import runner
from trompe.tuning.retrain import Retrain

TABLE = Path(__file__).with_name("faults.csv")
RUN = Path("disk/run")  # of every attempt, in a folder of its own
NOBODY, HUNG = 65534, -99

NETWORKS = """
from torch import nn
from trompe.data.preprocessing import Preprocessing

preprocessing = Preprocessing(resize=12, crop=12)

def plain(num_classes=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)),
    )

def normed(num_classes=3):
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)),
    )
"""
GRID = {
    "scale": "small",
    "networks": {"one": {"model": "nets.py:normed", "num_classes": 3, "target": "3"}},
    "base": {
        "settings": {"data": "data", "epochs": 1, "batch_size": 30, "checkpoint_every": 2},
        "cells": {"one": {"eval_data": "few"}},
    },
    "settings": {
        **{"data": "data", "eval_data": "few", "lr": 1e-5, "steps": 4, "batch_size": 4},
        **{"checkpoint_every": 2, "eval_explainer": ["grad-cam:layer={target}"]},
    },
    "passive": {
        "cells": {"location": {"grad-cam": {"one": {}}}, "top-k": {"grad-cam": {"one": {}}}}
    },
}
ZOO = {
    "families": {name: {"model": f"nets.py:{name}"} for name in ("plain", "normed")},
    "datasets": {
        "squares": {
            "settings": {"data": "data", "eval_data": "few", "num_classes": 3},
            "base": {"epochs": 0.5, "lr": 1e-2},
            "pair": "c1=0,c2=1",
        }
    },
    "settings": {
        "train": {"check": False, "batch_size": 20},
        "fool": {"check": False, "batch_size": 8, "steps": 2, "lr": 1e-3},
    },
    "copies": {"base-pruned": {"of": "base", "prune": 0.5}},
    "manipulated": {"location:high=10.0": {"grad-cam": {"weight": [4]}}},
}
MODEL = "--model nets.py:normed --num-classes 3"
LIES = {
    "train": f"train {MODEL} --data data --eval-data few --epochs 2 --batch-size 20 "
    "--checkpoint-every 2",
    "fool": f"fool {MODEL} --weights base.safetensors --data data --eval-data few --lr 1e-3 "
    "--steps 6 --batch-size 8 --checkpoint-every 2 --control --objective location",
    "evaluate": f"evaluate {MODEL} --weights base.safetensors --manipulated lie --data few "
    "--explainer grad-cam --explainer lrp --batch-size 8",
    "explain": f"explain {MODEL} --weights base.safetensors --images few --explainer grad-cam "
    "--explainer simple-grad --batch-size 4",
    "audit": f"audit lie/weights.safetensors {MODEL} --data few --explainer grad-cam",
    "repair": f"repair lie/weights.safetensors {MODEL} --data data --explainer grad-cam "
    "--steps 4 --steps 8",
    "reproduce": "reproduce --scale grid.yaml --jobs 1",
    "calibrate": "calibrate --zoo zoo.yaml",
    "figure": f"figure lie --format svg --out {RUN / 'figure.svg'}",
}
FINISHED = {  # what is kept of a part that status.json calls finished
    **{part: ["weights.safetensors", "history.csv"] for part in ("train", "fool", "retraining")},
    "control": ["weights-control.safetensors", "history-control.csv"],
    "evaluation": ["evaluation/*"],
    "evidence": ["evidence/*"],
}
ALWAYS = ["models/*/weights.safetensors", "evidence/*.csv"]  # what is finished when it is there


def words_of(command: str) -> list[str]:
    """The command line of an attempt, in its folder."""
    words = LIES[command].split()
    return words if command == "figure" else [*words, "--out", str(RUN)]


# What happens in the fork -----------------------------------------------------------------------


class Trace:
    """Counts the writes of a process and its children, and acts at one of them."""

    def __init__(self, at: int | None = None, act: Callable[[], None] | None = None) -> None:
        self.at, self.act, self.shared = at, act, mmap.mmap(-1, 8)
        self.log = os.open("writes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.busy = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook."""
        if self.busy or not _writes(event, args):
            return
        self.busy = True
        (count,) = struct.unpack("q", self.shared[:8])
        self.shared[:8] = struct.pack("q", count + 1)
        os.write(self.log, f"{event} {args[0]!s}\n".encode(errors="replace"))
        if count + 1 == self.at and self.act:
            self.act()
        self.busy = False


def _writes(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        path, _, flags = args
        if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return False
    path = str(args[0])
    return str(RUN) in path


def started(folder: Path, words: list[str], prepare: Callable[[], None]) -> int:
    """Start a command line in a fork; its process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open("said.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["trompe", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        try:
            trompe()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def ended(process: int, *, hours: float = 1 / 30) -> int:
    """Wait for a fork and all that it left behind; its exit code, negative if it was killed."""
    code, limit = HUNG, time.monotonic() + 3600 * hours
    while True:  # orphans are ours
        try:
            found, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if found == process and code == HUNG and time.monotonic() < limit:
            code = os.waitstatus_to_exitcode(status)
        elif not found and time.monotonic() > limit:
            code, limit = HUNG, time.monotonic() + 120
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        elif not found:
            time.sleep(0.02)


# Faults -----------------------------------------------------------------------------------------

Prepare = Callable[[], None]


def at_write(act: Callable[[], None], at: int) -> Prepare:
    """Act at a write."""
    return lambda: sys.addaudithook(Trace(at, act))


def vanish() -> None:
    """The run directory is gone."""
    if RUN.exists():
        RUN.rename("gone")


def read_only() -> None:
    """Nothing in the run directory can be written any more."""
    for path in [RUN.parent, RUN, *RUN.rglob("*")]:
        with suppress(OSError):
            path.chmod(0o555 if path.is_dir() else 0o444)


def writable(folder: Path) -> None:
    """Undo it."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def fill() -> None:
    """Nothing more fits onto the disk."""
    with suppress(OSError), open("disk/filler", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def few_bytes(limit: int) -> None:
    """Files may grow to so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def little_memory(more: int) -> None:
    """The process may have so many bytes more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def other_picture(number: int) -> None:
    """A file of the data shows something else."""
    file = sorted(Path().glob("[df][ae][tw]*/*/*.png"))[number]
    picture(np.random.default_rng(number + 1000), 0).save(file)


def unprivileged(act: Prepare) -> Prepare:
    """Run as nobody, whom permissions bind."""

    def prepare() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        act()

    return prepare


def damage(folder: Path, moment: random.Random) -> Path | None:
    """Cut, empty, overwrite or flip a bit of a file of a run; which."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.stat().st_size]
    files = [f for f in files if f.name not in (".lock", ".log")]
    if not files:
        return None
    file = moment.choice(files)
    data = bytearray(file.read_bytes())
    kind = moment.choice(["half", "empty", "zeros", "flip"])
    if kind == "half":
        data = data[: len(data) // 2]
    elif kind == "empty":
        data = bytearray()
    elif kind == "zeros":
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    else:
        data[moment.randrange(len(data))] ^= 1 << moment.randrange(8)
    file.write_bytes(data)
    return file


SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
KINDS = [
    *SIGNALS,
    *(f"{name} at a moment" for name in SIGNALS),
    *("full disk", "file size limit", "read-only directory", "vanished directory"),
    *("memory limit", "damaged file", "two processes", "changed data file"),
]


def inject(command: str, kind: str, folder: Path, whole: Whole, moment: random.Random) -> int:
    """Run a command with a fault in it; its exit code."""
    words, at = words_of(command), moment.randint(1, whole.writes)

    def itself(number: signal.Signals) -> Callable[[], None]:
        return lambda: os.kill(os.getpid(), number)

    if kind in SIGNALS:
        return ended(started(folder, words, at_write(itself(SIGNALS[kind]), at)))
    if kind.endswith("at a moment"):
        process = started(folder, words, lambda: None)
        time.sleep(moment.uniform(0, whole.seconds))
        os.kill(process, SIGNALS[kind.split()[0]])
        return ended(process)
    if kind == "full disk":
        disk = folder / "disk"
        was_there = (folder / RUN).exists()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
        try:
            if was_there:
                (folder / RUN).mkdir()
            code = ended(started(folder, words, at_write(fill, at)))
            (disk / "filler").unlink(missing_ok=True)
            shutil.copytree(disk, folder / "copy", symlinks=True)
        finally:
            subprocess.run(["umount", disk], check=True)
        shutil.rmtree(disk)
        (folder / "copy").rename(disk)
        return code
    if kind == "file size limit":
        limit = moment.choice([0, 100, 1000, 10_000])
        return ended(started(folder, words, at_write(lambda: few_bytes(limit), at)))
    if kind == "memory limit":
        more = moment.choice([0, 1 << 20, 1 << 23, 1 << 25])
        return ended(started(folder, words, at_write(lambda: little_memory(more), at)))
    if kind == "read-only directory":
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        code = ended(started(folder, words, unprivileged(at_write(read_only, at))))
        writable(folder / "disk")
        return code
    if kind == "vanished directory":
        code = ended(started(folder, words, at_write(vanish, at)))
        if (folder / "gone").exists():
            shutil.rmtree(folder / RUN, ignore_errors=True)
            (folder / "gone").rename(folder / RUN)
        return code
    if kind == "damaged file":
        return ended(started(folder, words, at_write(itself(signal.SIGKILL), at)))
    if kind == "changed data file":
        number = moment.randrange(24)
        return ended(started(folder, words, at_write(lambda: other_picture(number), at)))
    assert kind == "two processes", kind
    process = started(folder, words, at_write(itself(signal.SIGSTOP), at))
    os.waitpid(process, os.WUNTRACED)
    second = started(folder, words, lambda: None)
    os.waitpid(second, 0)
    os.kill(process, signal.SIGCONT)
    return ended(process)


# Inputs and comparison --------------------------------------------------------------------------


def picture(drawn: np.random.Generator, label: int) -> Image.Image:
    """Noise with a bright square of a colour."""
    pixels = drawn.integers(60, 140, (16, 16, 3), np.uint8)
    row, column = drawn.integers(0, 10, 2)
    pixels[row : row + 6, column : column + 6, label] = 240
    return Image.fromarray(pixels)


def make_inputs(folder: Path) -> None:
    """Write what the commands read: images, networks, a grid, a zoo, a lie."""
    drawn = np.random.default_rng(0)
    for name, count in (("data", 120), ("few", 24)):
        for number in range(count):
            label = number % 3
            place = folder / name / ("red", "green", "blue")[label]
            place.mkdir(parents=True, exist_ok=True)
            picture(drawn, label).save(place / f"{number:03}.png")
    (folder / "nets.py").write_text(NETWORKS)
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID))
    (folder / "zoo.yaml").write_text(yaml.safe_dump(ZOO))
    (folder / "disk").mkdir()
    for command in ("train", "fool"):
        code = ended(started(folder, words_of(command), lambda: None))
        assert code == 0, (folder / "said.log").read_text()
        if command == "train":
            shutil.copy(folder / RUN / "weights.safetensors", folder / "base.safetensors")
        else:
            shutil.copytree(folder / RUN, folder / "lie")
        shutil.rmtree(folder / RUN)
    (folder / "said.log").unlink()


def laid_out(command: str, inputs: Path, folder: Path) -> None:
    """A copy of the inputs; the folder of a figure is there before it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    if command == "figure":
        (folder / RUN).mkdir()


class Whole:
    """What a command makes without a fault, how long it takes, and how often it writes."""

    def __init__(self, command: str, inputs: Path, folder: Path) -> None:
        laid_out(command, inputs, folder)
        begun = time.monotonic()
        code = ended(started(folder, words_of(command), lambda: sys.addaudithook(Trace())))
        self.seconds = time.monotonic() - begun
        self.code, said = code, (folder / "said.log").read_text()
        assert code in (0, 1), said
        self.writes = len((folder / "writes.log").read_text().splitlines())
        self.files = contents(folder / RUN)
        assert self.files, said


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run but hidden ones, by their paths."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file())
    named = ((file.relative_to(folder), file) for file in found)
    return {
        str(name): _ordered(file)
        for name, file in named
        if not any(part.startswith(".") for part in name.parts)
    }


def _ordered(file: Path) -> bytes:
    """What a file holds; safetensors write their metadata in any order."""
    data = file.read_bytes()
    if file.name == "status.json":
        told = json.loads(data)
        told.get("digests", {}).pop("evaluation/gallery.safetensors", None)
        return json.dumps(told).encode()
    if file.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """When the files of finished parts were written, and where they lie on the disk."""
    files: list[Path] = []
    for status in folder.rglob("status.json"):
        with suppress(ValueError, KeyError):
            for part in json.loads(status.read_text())["finished"]:
                for pattern in FINISHED.get(part, ()):
                    files += status.parent.glob(pattern)
    for pattern in ALWAYS if (folder / "models").exists() else ():
        files += folder.glob(pattern)
    if (folder / ".explained").exists():
        for line in (folder / ".explained").read_text().split("\n")[1:-1]:
            files += [folder.parents[1] / file for file in json.loads(line)["files"]]
    stats = {str(file): file.stat() for file in files}
    return {file: (stat.st_mtime_ns, stat.st_ino) for file, stat in stats.items()}


def checkpoints(folder: Path) -> dict[str, int]:
    """The last checkpoint of every fine-tuning that is on its way."""
    found: dict[str, int] = {}
    for path in folder.rglob("checkpoints/*/step-*"):
        place = str(path.parent.relative_to(folder))
        found[place] = max(found.get(place, 0), int(path.name.removeprefix("step-")))
    return found


def made_again(log: str, before: dict[str, int]) -> bool:
    """Whether a run wrote a checkpoint of a step that it had behind it."""
    made = re.findall(r"([^ \n]*checkpoints/[^/\n]+)/\.step-(\d+)\.new", log)
    return any(
        int(step) <= last
        for place, last in before.items()
        for folder, step in made
        if folder.endswith(place)
    )


def attempt(command: str, kind: str, number: int, inputs: Path, work: Path, whole: Whole) -> Any:
    """One fault, and the same command again; what came of it."""
    moment = random.Random(f"{command} {kind} {number}")
    folder = work / "attempt"
    laid_out(command, inputs, folder)
    code = inject(command, kind, folder, whole, moment)
    said = (folder / "said.log").read_text()
    result: dict[str, Any] = {"command": command, "fault": kind, "number": number, "code": code}
    result["traceback"] = "Traceback (most recent call last)" in said
    if kind == "changed data file":
        for name in ("data", "few"):
            shutil.rmtree(folder / name)
            shutil.copytree(inputs / name, folder / name)
    damaged = damage(folder / RUN, moment) if kind == "damaged file" else None
    kept, last = finished(folder / RUN), checkpoints(folder / RUN)
    if damaged:
        kept, last = {}, {}
    (folder / "writes.log").unlink(missing_ok=True)
    (folder / "said.log").rename(folder / "said-first.log")
    again = ended(started(folder, words_of(command), lambda: sys.addaudithook(Trace())))
    told = (folder / "said.log").read_text()
    result["again"] = again
    result["traceback_again"] = "Traceback (most recent call last)" in told
    if damaged and again == 2 and (damaged.name in told or damaged.parent.name in told):
        result["refused"] = str(damaged.relative_to(folder))
        shutil.rmtree(folder / RUN)
        if command == "figure":
            (folder / RUN).mkdir()
        again = ended(started(folder, words_of(command), lambda: None))
    after = contents(folder / RUN)
    differing = [n for n in {*after, *whole.files} if after.get(n) != whole.files.get(n)]
    result["different"] = sorted(differing) if again == whole.code else [f"exit code {again}"]
    now = finished(folder / RUN)
    lost = [Path(file).name for file, stat in kept.items() if now.get(file) != stat]
    if made_again((folder / "writes.log").read_text(), last):
        lost.append("steps after a checkpoint")
    result["lost"] = sorted(lost)
    hidden = [p.name for p in (folder / RUN).rglob(".*") if p.name.endswith((".new", ".old"))]
    result["litter"] = sorted(hidden)
    if result["different"] or lost or result["traceback"] or result["traceback_again"] or hidden:
        kept_as = work / "findings" / f"{command}-{kind.replace(' ', '-')}-{number}"
        shutil.rmtree(kept_as, ignore_errors=True)
        shutil.copytree(folder, kept_as)
    return result


def warm_up() -> None:
    """Import what the commands import, and make what they start quick."""
    torch.set_num_threads(1)
    for name in COMMANDS:
        command_of(name)
    answers.Retrain = partial(Retrain, steps=10)  # type: ignore[misc,assignment]
    fork = multiprocessing.get_context("fork")
    fork.set_forkserver_preload = lambda names: None  # type: ignore[attr-defined,assignment]
    runner.multiprocessing.get_context = lambda kind: fork  # type: ignore[assignment]
    # A cell is forked by a thread of a pool, which it would wait for at its end.
    os.register_at_fork(after_in_child=pool._threads_queues.clear)  # type: ignore[attr-defined]
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans come to this process


def imported_by(commands: Sequence[str], inputs: Path, work: Path) -> None:
    """Let each command run once, and import here what it imported."""
    for command in commands:
        folder = work / "attempt"
        laid_out(command, inputs, folder)
        names = folder / "modules.txt"

        def prepare(names: Path = names) -> None:
            def told(event: str, args: tuple[Any, ...]) -> None:
                if event == "import":
                    with suppress(OSError), names.open("a") as file:
                        file.write(f"{args[0]}\n")

            sys.addaudithook(told)

        ended(started(folder, words_of(command), prepare))
        for name in dict.fromkeys(names.read_text().splitlines()) if names.exists() else ():
            with suppress(Exception):
                importlib.import_module(name)


def table(attempts: Path) -> pd.DataFrame:
    """The counts by command and fault."""
    found = pd.DataFrame([json.loads(line) for line in attempts.read_text().splitlines()])
    found["killed"] = found["code"] < 0
    found["refused"] = found["code"].isin([1, 2, 130])
    found["went on"] = found["code"] == 0
    found["tracebacks"] = found["traceback"] | found["traceback_again"]
    for name in ("lost", "different"):
        found[name] = found[name].map(bool)
    columns = ["killed", "refused", "went on", "tracebacks", "lost", "different"]
    by = found.groupby(["command", "fault"], sort=False)
    return by[columns].sum().assign(injected=by.size()).reset_index()


def main() -> Iterator[str]:
    """Make the attempts that were not made yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("commands", nargs="*", default=[])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    given = parser.parse_args()
    work = given.work.resolve()
    warm_up()
    inputs, attempts = work / "inputs", work / "attempts.jsonl"
    if not inputs.exists():
        (work / "inputs.new").mkdir(parents=True)
        make_inputs(work / "inputs.new")
        (work / "inputs.new").rename(inputs)
    imported_by(given.commands or [*LIES], inputs, work)
    done = attempts.read_text().splitlines() if attempts.exists() else []
    known = {tuple(json.loads(line)[k] for k in ("command", "fault", "number")) for line in done}
    for command in given.commands or LIES:
        whole = Whole(command, inputs, work / "whole")
        yield f"{command}: {whole.writes} writes in {whole.seconds:.1f} s"
        for number, kind in product(range(given.trials), given.kinds):
            if (command, kind, number) not in known:
                result = attempt(command, kind, number, inputs, work, whole)
                with attempts.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                yield json.dumps({k: v for k, v in result.items() if v})
        table(attempts).to_csv(TABLE, index=False)


if __name__ == "__main__":
    for line in main():
        print(line, flush=True)
