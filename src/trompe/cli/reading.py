"""From the settings of a command to models, data, devices and directories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

from trompe import runs
from trompe.audit import EXPLAINERS, Calibration, load_calibration
from trompe.data import ImageDataset, load_data
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.explainers import Explainer, parse_explainer
from trompe.models import load_model
from trompe.models.weights import SUFFIXES
from trompe.tuning.config import AuditConfig, TuneConfig
from trompe.tuning.loop import accelerator_for


def model_and_data(config: TuneConfig) -> tuple[Any, Any, Any]:
    """The model, its data, and the data it is evaluated on (or None)."""
    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    data = load_data(
        config.data,
        preprocessing,
        **config.model_dump(include={"limit", "augment", "label_noise"}),
        **_reading(config),
    )
    eval_data = read_data(config, config.eval_data, preprocessing, limit=config.eval_limit)
    if config.eval_data == config.data:
        warnings.warn(
            f"The model is evaluated on the images it is tuned on ({config.data}): what is found "
            "says nothing of others. Give other images with --eval-data.",
            stacklevel=2,
        )
    if config.batch_size > len(data):
        warnings.warn(
            f"A batch of {config.batch_size} is larger than the data, {len(data)} images: each "
            "stands in it more than once. Give more images, or a smaller --batch-size.",
            stacklevel=2,
        )
    return model, data, eval_data


def read_data(
    config: TuneConfig, spec: str | None, preprocessing: Preprocessing, limit: int | None = None
) -> Any:
    """Data besides what the model is tuned on, read like that, or None."""
    return spec and load_data(spec, preprocessing, limit=limit, **_reading(config))


def _reading(config: TuneConfig) -> dict[str, Any]:
    return config.model_dump(include={"seed", "corrupt", "check"})


def _suspect_and_reference(
    config: AuditConfig,
) -> tuple[nn.Module, nn.Module | None, Preprocessing]:
    """The suspect, the model before if it was given, and what their images go through.

    Raises
    ------
    TrompeError
        If the architecture is not known, or weights do not fit.
    """
    given = Path(config.suspect)
    name, classes = config.model, config.num_classes
    if given.is_dir():
        recorded = _recorded(given)
        name, classes = name or recorded.get("model"), classes or recorded.get("num_classes")
        weights: str | None = str(given / "weights.safetensors")
    elif given.suffix in SUFFIXES:
        weights = str(given)
    else:
        name, weights = name or config.suspect, config.weights
    if name is None:
        raise TrompeError(
            f"'{config.suspect}' holds weights alone; name the model they belong to with --model "
            "(torchvision name, timm:NAME, package.module:factory or path/file.py:factory)."
        )
    suspect, preprocessing = load_model(name, weights, classes, seed=config.seed)
    if config.reference is None:
        return suspect, None, preprocessing
    before = weights_in(config.reference, "weights.safetensors")
    return suspect, load_model(name, before, classes).model, preprocessing


class Case(NamedTuple):
    """What an audit or a repair looks at, on its device, and by what it judges."""

    suspect: nn.Module
    reference: nn.Module | None
    data: ImageDataset
    explainers: Sequence[Explainer]
    calibration: Calibration


def read_case(config: AuditConfig) -> Case:
    """Everything that an audit or a repair is given; the images need no labels.

    Raises
    ------
    TrompeError
        If something can't be used.
    """
    chosen = [parse_explainer(spec) for spec in config.explainer or ()]
    calibration = load_calibration(config.calibration)
    suspect, reference, preprocessing = _suspect_and_reference(config)
    data = load_data(
        config.data,
        preprocessing,
        labelled=False,
        **config.model_dump(include={"limit", "seed", "corrupt", "check"}),
    )
    device = device_for(config.device)
    return Case(
        suspect.to(device),
        reference if reference is None else reference.to(device),
        data,
        chosen or EXPLAINERS,
        calibration,
    )


def _recorded(directory: Path) -> dict[str, Any]:
    config = directory / runs.CONFIG
    found = yaml.safe_load(config.read_text()) if config.is_file() else None
    return found if isinstance(found, dict) else {}


def weights_in(path: str | None, name: str) -> str | None:
    """The file ``name`` if ``path`` is a run directory, else ``path``."""
    return str(Path(path) / name) if path is not None and Path(path).is_dir() else path


def device_for(device: str | None) -> Any:
    """The device of that name, or the best there is."""
    return accelerator_for(device, "no").device


def default_out(*words: str) -> Path:
    """The run directory of a command that was not told one."""
    return Path("runs") / "-".join(Path(word).name.split(":")[0] for word in words)
