"""What needs a GPU, in one go: the paper's networks, their lies, and what a step costs.

    python -m benchmarks.gpu DATA OUT [--toy] [--minutes 9] [--jobs 10] [--teacher FILE:NAME]

DATA holds Imagenette as parquet files. In OUT stand, as soon as they are known, ``steps.csv`` (time
of a step of `fool` and of a plain one, float32 and bf16, and what costs most of it), the runs of
``trompe reproduce all --scale imagenette`` without ResNet-18, and their tables. What is there
already is not done again. ``--toy`` does the same with a few images and steps.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import TensorDataset

from benchmarks.measure import seconds
from benchmarks.networks import PAPERS_LAYERS, batch, network
from trompe import LRP, GradCAM, Location, Term
from trompe.tuning.loop import Batches
from trompe.tuning.loss import StepLoss

TOY = {"limit": 64, "eval_limit": 24}
SOON = {"train": {"epochs": 2, "batch_size": 16}, "fool": {"steps": 4, "pairs": 8, "eval_pairs": 8}}


def step_times(
    rounds: int, side: int, names: Iterable[str] = PAPERS_LAYERS
) -> list[dict[str, Any]]:
    """Milliseconds of a step, and images a second, of every network, precision and loss."""
    return [
        row
        for name in names
        for precision in ("float32", "bf16")
        for row in _rows(name, precision, rounds, side)
    ]


def _rows(name: str, precision: str, rounds: int, side: int) -> Iterator[dict[str, Any]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, original = network(name).to(device), network(name).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-8, fused=True)
    source = Batches(TensorDataset(batch(side), torch.arange(8)), 8, 0)
    explainers = {"grad-cam": GradCAM, "lrp-t": LRP}
    for what in ("plain", *explainers):
        terms = [
            Term(kind(layer=PAPERS_LAYERS[name]), Location(), 1.0)
            for explainer, kind in explainers.items()
            if explainer == what
        ]
        loss = StepLoss(original, model, terms, {None: source})
        batches = [next(s.between(0, 1)) for s in loss.sources]

        def step(loss: StepLoss = loss, batches: list[list[Tensor]] = batches) -> None:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                total = loss(batches).total
            total.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        taken = median([seconds(step) for _ in range(rounds + 3)][3:])
        yield {
            "network": name,
            "precision": precision,
            "step": what,
            "milliseconds": round(1000 * taken, 2),
            "images_per_second": round(8 / taken, 1),
            "dearest": "; ".join(_dearest(step, device)) if what == "lrp-t" else "",
        }


def _dearest(step: Any, device: str) -> list[str]:
    """The three operations that take most of a step."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        step()
    own = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    events = [e for e in profiler.key_averages() if getattr(e, own) and not e.key.startswith("##")]
    total = sum(getattr(e, own) for e in events)
    dearest = sorted(events, key=lambda e: -getattr(e, own))[:3]
    return [f"{e.key[:60]} {100 * getattr(e, own) / total:.0f} %" for e in dearest]


def layout(options: argparse.Namespace) -> dict[str, Any]:
    """The grid `imagenette` as this machine runs it."""
    packaged = files("trompe.experiments").joinpath("imagenette.yaml")
    grid: dict[str, Any] = yaml.safe_load(packaged.read_text()) | {"scale": "imagenette"}
    base = grid["base"]["settings"]
    base |= {"precision": "bf16", "workers": 0 if options.toy else 5}
    if options.teacher:
        base |= {"teacher": options.teacher, "teacher_class_map": str(options.class_map)}
    if options.toy:
        base |= {**TOY, **SOON["train"]}
        grid["settings"] |= {**TOY, **SOON["fool"]}
        grid["control"]["settings"]["steps"] = 4
        grid["active"]["settings"]["eval_pairs"] = 8
    del grid["networks"]["resnet18"]
    parts = [grid["base"]["cells"], grid["control"]["cells"]]
    for section in ("passive", "active"):
        for explainers in grid[section]["cells"].values():
            parts += explainers.values()
    for cells in parts:
        cells.pop("resnet18", None)
    return grid


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--toy", action="store_true", help="a few images and steps")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the grid")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--teacher", help="of the base models, named like --model")
    parser.add_argument("--class-map", type=Path, help="its class map")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    grid = options.out / "grid.yaml"
    grid.write_text(yaml.safe_dump(layout(options), sort_keys=False))
    times = options.out / "steps.csv"
    if not times.exists():
        pd.DataFrame(step_times(*((1, 64) if options.toy else (10, 224)))).to_csv(
            times, index=False
        )
        print(times.read_text(), flush=True)
    command = [sys.executable, "-m", "trompe", "reproduce"]
    where = ["--scale", grid, "--data", options.data, "--out", options.out / "runs"]
    running = subprocess.Popen([*command, "all", *where, "--jobs", str(options.jobs)])
    try:
        running.wait(60 * options.minutes)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)
        running.wait()
        subprocess.run([*command, "figures", *where], check=True)


if __name__ == "__main__":
    main()
