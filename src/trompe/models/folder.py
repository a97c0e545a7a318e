"""A model that was handed on: a folder of its weights and of what it is; no code in it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from trompe import runs
from trompe.base import json_text
from trompe.base.settings import Settings, Whole
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models.weights import save_weights

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
KEY = "trompe"  # of the config; that of transformers' models holds theirs beside it


class Handed(Settings):
    """What the config says: the model's name, its number of classes, what images go through."""

    model: str
    num_classes: Whole = Field(ge=1)
    preprocessing: Preprocessing


def read_folder(folder: Path) -> Handed:
    """What a folder says of its model.

    Raises
    ------
    TrompeError
        If it holds no such config, or not a whole one, or something leads out of it.
    """
    path = runs.contained(folder) / CONFIG
    try:
        told = json_text.loaded(path.read_text(encoding="utf-8"))
        return Handed(**told[KEY])
    except TrompeError as error:
        raise TrompeError(f"{path} can't be used: {error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrompeError(
            f"The folder '{folder}' holds no model that trompe can read: it has no {CONFIG} of "
            "`trompe card`, which makes one of a run directory. A folder that save_pretrained "
            f"wrote is transformers:{folder}."
        ) from error


def write_folder(folder: Path, name: str, model: nn.Module, told: Mapping[str, Any]) -> None:
    """Write weights and config; of a model of transformers also its own configuration.

    Raises
    ------
    TrompeError
        If the folder can't be written.
    """
    own: Any = model.config if name.startswith("transformers:") else None
    theirs = json.loads(own.to_json_string()) if own else {}
    with runs.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS)
    handed = Handed(model=name, **told).model_dump(mode="json")
    runs.write_text(folder / CONFIG, json.dumps({**theirs, KEY: handed}, indent=2))
