"""From the settings of a command to models, data, devices and directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trompe.config import TuneConfig
from trompe.data import load_data
from trompe.loop import accelerator_for
from trompe.models import load_model


def model_and_data(config: TuneConfig) -> tuple[Any, Any, Any]:
    """The model, its data, and the data it is evaluated on (or None)."""
    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    data = load_data(
        config.data, preprocessing, limit=config.limit, augment=config.augment, **_reading(config)
    )
    return model, data, read_eval_data(config, preprocessing, limit=config.eval_limit)


def read_eval_data(config: TuneConfig, preprocessing: Any, limit: int | None) -> Any:
    """The data that the model is evaluated on, or None."""
    if config.eval_data is None:
        return None
    return load_data(config.eval_data, preprocessing, limit=limit, **_reading(config))


def _reading(config: TuneConfig) -> dict[str, Any]:
    return config.model_dump(include={"seed", "corrupt", "check"})


def weights_in(path: str | None, name: str) -> str | None:
    """The file ``name`` if ``path`` is a run directory, else ``path``."""
    return str(Path(path) / name) if path is not None and Path(path).is_dir() else path


def device_for(device: str | None) -> Any:
    """The device of that name, or the best there is."""
    return accelerator_for(device, "no").device


def default_out(*words: str) -> Path:
    """The run directory of a command that was not told one."""
    return Path("runs") / "-".join(Path(word).name.split(":")[0] for word in words)
