"""From the settings of a command to models, data, devices and directories."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from torch import nn

from trompe import runs
from trompe.audit import EXPLAINERS, Calibration, load_calibration
from trompe.base.code import written_by_others
from trompe.base.identity import fingerprint
from trompe.base.messages import did_you_mean
from trompe.base.settings import Settings
from trompe.cli.jobs import RepairJob, SuspectJob
from trompe.data import ImageDataset, load_data
from trompe.data.images import fingerprint_of
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.explainers import Explainer, parse_explainer
from trompe.models import load_model
from trompe.models.embedded import EMBEDDED
from trompe.models.folder import CONFIG
from trompe.models.from_torchvision import CLASSIFIERS
from trompe.models.weights import SUFFIXES
from trompe.tuning.accelerator import accelerating
from trompe.tuning.job import MODEL

MODELS = (*EMBEDDED, *CLASSIFIERS)


def _suspect_and_reference(
    config: SuspectJob,
) -> tuple[nn.Module, nn.Module | None, Preprocessing]:
    """The suspect, the model before if it was given, and what their images go through.

    Raises
    ------
    TrompeError
        If the architecture is not known, or weights do not fit.
    """
    given = Path(config.suspect)
    name, classes = config.model, config.num_classes
    source: AbstractContextManager[None] = nullcontext()
    weights: str | None
    if given.is_dir():
        runs.contained(given)
    if name is None and (given / CONFIG).is_file():
        name, weights = config.suspect, config.weights
    elif given.is_dir():
        recorded = _recorded(given)
        if name is None:
            name, source = recorded.model, written_by_others(f"'{given / runs.CONFIG}'")
        classes = classes or recorded.num_classes
        weights = str(given / "weights.safetensors")
        if not Path(weights).is_file():
            raise TrompeError(
                f"'{given}' is a folder but no finished run: it has no weights.safetensors."
            )
    elif given.suffix in SUFFIXES:
        weights = str(given)
    elif name is None and _names_model(config.suspect):
        name, weights = config.suspect, config.weights
    else:
        if given.is_file():
            raise TrompeError(f"'{given}' is no weights file; give a {', '.join(SUFFIXES)} file.")
        known = () if name else MODELS
        raise TrompeError(
            f"There is no weights file or run directory '{config.suspect}'"
            f"{did_you_mean(config.suspect, known)}; give a {', '.join(SUFFIXES)} file, a run "
            "directory, or the name of a model (trompe list models)."
        )
    if name is None:
        raise TrompeError(
            f"'{config.suspect}' holds weights alone; name the model they belong to with --model "
            f"({MODEL})."
        )
    before = weights_in(config.reference, "weights.safetensors")
    with source:
        suspect, preprocessing = load_model(name, weights, classes, seed=config.seed)
        reference = None if before is None else load_model(name, before, classes).model
    return suspect, reference, preprocessing


class Case(NamedTuple):
    """What an audit or a repair looks at, on its device, and by what it judges."""

    suspect: nn.Module
    reference: nn.Module | None
    data: ImageDataset
    explainers: Sequence[Explainer]
    calibration: Calibration

    @property
    def start(self) -> dict[str, str]:
        """Fingerprints of all of it."""
        return {
            "weights": fingerprint(self.suspect, self.reference),
            "data": fingerprint_of(self.data),
            "explainers or calibration": fingerprint(self.explainers, self.calibration),
        }


def read_case(config: SuspectJob) -> Case:
    """Everything that an audit or a repair is given; the images need no labels.

    Raises
    ------
    TrompeError
        If something can't be used.
    """
    chosen = [parse_explainer(spec) for spec in config.explainer or ()]
    calibration = load_calibration(config.calibration)
    suspect, reference, preprocessing = _suspect_and_reference(config)
    data = _images(config, preprocessing)
    device = device_for(config.device)
    return Case(
        suspect.to(device),
        reference if reference is None else reference.to(device),
        data,
        chosen or EXPLAINERS,
        calibration,
    )


class Recorded(Settings):
    """What a run directory says of its model."""

    model: str | None = None
    num_classes: int | None = Field(None, ge=1)


def _recorded(directory: Path) -> Recorded:
    told = runs.config_of(directory) if (directory / runs.CONFIG).is_file() else {}
    return Recorded(**{name: told.get(name) for name in Recorded.model_fields})


def _names_model(text: str) -> bool:
    """Whether a text can name a model: one that is known, a library's, or code."""
    return text in MODELS or ":" in text or text.endswith(".py")


def _images(config: SuspectJob, preprocessing: Preprocessing) -> ImageDataset:
    """The data; its labels are read only where a repair asks for them and it has any."""
    options = config.model_dump(include={"limit", "seed", "corrupt", "check"})
    if isinstance(config, RepairJob) and config.labels:
        try:
            return load_data(config.data, preprocessing, **options)
        except TrompeError as error:
            data = load_data(config.data, preprocessing, labelled=False, **options)
            warnings.warn(f"The repair goes without labels: {error}", stacklevel=2)
            return data
    return load_data(config.data, preprocessing, labelled=False, **options)


def weights_in(path: str | None, name: str) -> str | None:
    """The file ``name`` if ``path`` is a run directory, else ``path``."""
    if path is not None and "/" in path and not Path(path).exists():
        raise TrompeError(f"There is no weights file or run directory '{path}'; check the path.")
    if path is None or not Path(path).is_dir():
        return path
    return str(runs.contained(Path(path)) / name)


def device_for(device: str | None) -> Any:
    """The device of that name, or the best there is."""
    with accelerating(device, "no") as accelerator:
        return accelerator.device


def default_out(*words: object) -> Path:
    """The run directory of a command that was not told one."""
    return Path("runs") / "-".join(Path(str(word)).name.split(":")[0] for word in words)
