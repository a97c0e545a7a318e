"""Is all here that trompe needs, where is it, and does it work?"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from trompe.data import Shapes
from trompe.explainers import GradCAM
from trompe.models import load_model
from trompe.models.embedded import EMBEDDED, packaged_weights
from trompe.objectives import Location
from trompe.tuning.fool import fool

FOR_DEVELOPERS = {"dev", "docs"}


class Finding(NamedTuple):
    """What was looked at, what was found, and whether trompe works with it."""

    about: str
    found: str
    fine: bool = True


def examine() -> dict[str, Iterator[Finding]]:
    """Findings by topic, each looked for when it is asked for."""
    return {
        "Versions": _versions(),
        "Optional": _optional(),
        "Devices": _devices(),
        "Places": _places(),
        "Embedded model": _embedded(),
    }


def _versions() -> Iterator[Finding]:
    yield Finding("trompe", version("trompe"))
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    for requirement in map(Requirement, requires("trompe") or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _installed(requirement, "not installed", missing_is_fine=False)


def _optional() -> Iterator[Finding]:
    for extra in metadata("trompe").get_all("Provides-Extra") or ():
        for requirement in map(Requirement, requires("trompe") or ()):
            marker = requirement.marker
            asked = (
                marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
            )
            if asked and extra not in FOR_DEVELOPERS:
                missing = f"not installed: pip install 'trompe[{extra}]'"
                yield _installed(requirement, missing, missing_is_fine=True)


def _installed(requirement: Requirement, missing: str, *, missing_is_fine: bool) -> Finding:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, missing, missing_is_fine)
    fits = requirement.specifier.contains(found, prereleases=True)
    advice = "" if fits else f", but trompe needs {requirement.specifier}"
    return Finding(requirement.name, found + advice, fits)


def _devices() -> Iterator[Finding]:
    yield Finding("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("cuda", "none; --device cpu is used")


def _places() -> Iterator[Finding]:
    from datasets import config as datasets_config  # takes a second
    from huggingface_hub import constants

    places = {
        "torchvision's weights": Path(torch.hub.get_dir()) / "checkpoints",
        "weights of timm": Path(constants.HF_HUB_CACHE),
        "datasets of hf:NAME": Path(datasets_config.HF_DATASETS_CACHE),
        "run directories": Path("runs").resolve(),
    }
    for about, place in places.items():
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free / 2**30
        writable = os.access(there, os.W_OK)
        state = f"{free:.0f} GiB free" if writable else "can't be written"
        yield Finding(about, f"{place} ({state})", writable)


def _embedded() -> Iterator[Finding]:
    for name in EMBEDDED:
        path = packaged_weights(name)
        yield Finding(
            name, str(path) if path.exists() else "its weights are missing", path.exists()
        )
    start = time.monotonic()
    try:
        model, _ = load_model("embedded")
        data = Shapes("train", size=16)
        result = fool(
            model,
            data,
            explainer=GradCAM(),
            objective=Location(),
            lr=1e-3,
            steps=1,
            batch_size=16,
            eval_data=data,
            quiet=True,
        )
        assert result.evaluation is not None
        right = result.evaluation.accuracy["top1"][0]
        taken = f"{time.monotonic() - start:.1f} s, {right:.0%} of 16 images right before"
        yield Finding("one step of fooling", taken, bool(right > 0.9))
    except Exception as error:
        yield Finding("one step of fooling", f"{type(error).__name__}: {error}", fine=False)
