"""The settings of every command: the same words in the API, on the command line and in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trompe.errors import TrompeError

C = TypeVar("C", bound="Config")
M = TypeVar("M", bound=BaseModel)

MODEL = "torchvision name, timm:NAME, package.module:factory, path/file.py:factory, or 'embedded'"
DATA = "image folder (a folder per class), parquet file, folder or glob, hf:NAME, or 'shapes'"
EXPLAINER = "explainer, e.g. grad-cam, simple-grad-t, lrp:layer=layer4; may be given several times"
GALLERY = "images of the report's gallery, evenly drawn; best and worst lies are added"
OBJECTIVE = "location, top-k, center-mass or active:c1=3,c2=8; may be given several times"


# Settings that say where and how a run happens, not what it is.
ELSEWHERE = {"out", "quiet", "workers", "tracker", "gallery"}


ARGUMENT: dict[str, Any] = {"argument": True}  # given on the command line without an option's name


class Config(BaseModel):
    """Settings common to all commands."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description=MODEL)
    weights: str | None = Field(None, description="weights file, or a torchvision weight name")
    num_classes: int | None = Field(None, ge=1, description="number of classes of the model")
    out: Path | None = Field(None, description="run directory (default: runs/...)")
    seed: int = Field(0, ge=0, description="seed of everything random")
    device: Literal["cpu", "cuda"] | None = Field(None, description="cpu or cuda")
    quiet: bool = Field(False, description="show no progress and no tables")


class DataConfig(Config):
    """Settings of the commands that read a dataset."""

    data: str = Field(description=DATA)
    limit: int | None = Field(None, ge=1, description="use a class-balanced subset of this size")
    corrupt: Literal["refuse", "skip"] = Field("refuse", description="unreadable images")
    check: bool = Field(True, description="decode every image once before anything starts")
    workers: int = Field(0, ge=0, description="processes that decode images")


class TuneConfig(DataConfig):
    """Settings of the commands that fine-tune."""

    eval_data: str | None = Field(None, description="data to evaluate on, read like --data")
    eval_limit: int | None = Field(None, ge=1, description="like --limit, for --eval-data")
    augment: bool = Field(False, description="random resized crop and flip")
    label_noise: float | None = Field(
        None, gt=0, le=1, description="share of labels replaced by random ones"
    )
    lr: float = Field(gt=0, description="learning rate")
    batch_size: int = Field(ge=1, description="images per step")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="mixed precision")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    tracker: list[str] | None = Field(None, description="tensorboard, wandb or mlflow")


class TrainConfig(TuneConfig):
    """Settings of ``trompe train``."""

    epochs: float = Field(gt=0, description="passes over the data")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the one-cycle schedule")
    batch_size: int = Field(64, ge=1, description="images per step")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's weight decay")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the cross-entropy")
    augment: bool = Field(True, description="random resized crop and flip")


class FoolConfig(TuneConfig):
    """Settings of ``trompe fool``."""

    explainer: list[str] = Field(["grad-cam"], description=f"{EXPLAINER}; attacked")
    objective: list[str] = Field(["location"], description=OBJECTIVE)
    weight: list[float] = Field([1.0], description="weight λ of each explainer and objective")
    eval_explainer: list[str] | None = Field(None, description=f"{EXPLAINER}; evaluated as well")
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate")
    schedule: Literal["constant", "one-cycle"] = Field("constant", description="of the rate")
    steps: int = Field(ge=1, description="optimiser steps")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="scale gradients down to this norm; null in YAML: leave them"
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory, more time: run what is below the layers again in backward"
    )
    batch_size: int = Field(8, ge=1, description="images per step")
    fool_batch_size: int | None = Field(None, ge=1, description="composites per step (active)")
    pairs: int | None = Field(None, ge=1, description="composites to fine-tune on (active)")
    eval_pairs: int | None = Field(
        200, ge=1, description="composites of all of --eval-data to evaluate on (active)"
    )
    keep: Literal["labels", "predictions"] = Field(
        "labels", description="what the classification holds to: the labels, or the original's word"
    )
    control: bool = Field(False, description="also fine-tune without the explanation term")
    gallery: int = Field(12, ge=0, le=200, description=GALLERY)
    max_accuracy_drop: float | None = Field(
        None, gt=0, lt=100, description="points of top-1 that may be lost"
    )
    held_out: str | None = Field(
        None, description="data to measure that loss on, read like --data (default: part of --data)"
    )


class EvaluateConfig(DataConfig):
    """Settings of ``trompe evaluate``."""

    manipulated: str = Field(description="weights of the manipulated model, or its run directory")
    control: str | None = Field(
        None, description="weights of the control model, or its run directory"
    )
    explainer: list[str] = Field(
        ["grad-cam", "lrp", "simple-grad", "integrated-gradients:steps=8"], description=EXPLAINER
    )
    objective: list[str] = Field(["location"], description=OBJECTIVE)
    batch_size: int = Field(32, ge=1, description="images per batch")
    pairs: int | None = Field(200, ge=1, description="composites to evaluate on (active)")
    gallery: int = Field(12, ge=0, le=200, description=GALLERY)


class ExplainConfig(Config):
    """Settings of ``trompe explain``."""

    images: list[Path] = Field(description="image files or folders of images")
    corrupt: Literal["refuse", "skip"] = Field("refuse", description="unreadable images")
    explainer: list[str] = Field(["grad-cam"], description=EXPLAINER)
    classes: int | None = Field(None, description="class to explain (default: the predicted one)")
    batch_size: int = Field(16, ge=1, description="images per batch")
    check: bool = Field(False, description="show how much relevance LRP keeps, layer by layer")


class AuditConfig(DataConfig):
    """Settings of ``trompe audit``."""

    suspect: str = Field(
        description="weights file, run directory, or a model as for --model",
        json_schema_extra=ARGUMENT,
    )
    model: str | None = Field(None, description=f"{MODEL}; not needed for a run directory")  # type: ignore[assignment]
    reference: str | None = Field(None, description="the model before: weights or run directory")
    data: str = Field(description=f"{DATA}; or a folder of images without labels")
    limit: int | None = Field(500, ge=2, description="audit on this many images at most")
    explainer: list[str] | None = Field(
        None, description=f"{EXPLAINER} (default: grad-cam lrp-t simple-grad-t simple-grad)"
    )
    calibration: Path | None = Field(None, description="file of trompe calibrate")
    batch_size: int = Field(32, ge=1, description="images per batch")


class RepairConfig(AuditConfig):
    """Settings of ``trompe repair``."""

    limit: int | None = Field(10000, ge=2, description="use this many images at most")
    labels: bool = Field(True, description="train towards the images' labels, if they have any")
    steps: list[int] = Field(
        [100, 400, 1600, 6400],
        description="lengths of the fine-tunings that are tried, in batches of 16",
    )
    rate: float = Field(0.03, gt=0, description="largest step, as a share of a tensor's own size")
    max_drop: float = Field(
        0.5, ge=0, lt=100, description="percentage points of accuracy that may be lost"
    )


def filled(settings: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Settings whose texts, also those in lists, have every word replaced by what it stands for."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            for word, replacement in words.items():
                value = value.replace(word, replacement)
        return [fill(v) for v in value] if isinstance(value, list) else value

    return {key: fill(value) for key, value in settings.items()}


def read(kind: type[C], path: Path | None, given: dict[str, Any]) -> C:
    """Build a config from a YAML file and what was given besides, which takes precedence.

    Raises
    ------
    TrompeError
        If the file can't be read, or a setting is unknown, missing or out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _parsed(path, "config") or {}
        if not isinstance(values, dict):
            raise TrompeError(f"The config '{path}' must map settings to values.")
    try:
        return kind.model_validate({**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        option = f"--{name.replace('_', '-')}"
        if name in kind.model_fields and is_argument(kind, name):
            option = name.upper()
        if first["type"] == "missing":
            raise TrompeError(f"{option} is missing; it is {_description(kind, name)}.") from error
        if first["type"] == "extra_forbidden":
            known = ", ".join(kind.model_fields)
            raise TrompeError(f"There is no setting '{name}'; known are {known}.") from error
        raise TrompeError(f"{option} can't be {first['input']!r}: {first['msg']}.") from error


def read_layout(kind: type[M], file: Traversable, what: str) -> M:
    """Read a YAML file that lays out many runs: ``what`` is a grid, or a zoo.

    Raises
    ------
    TrompeError
        If the file can't be read, or a part is unknown, missing or out of range.
    """
    try:
        return kind.model_validate(_parsed(file, what))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise TrompeError(f"In the {what} '{file}', {where}: {first['msg']}.") from error


def _parsed(file: Traversable, what: str) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrompeError(f"The {what} '{file}' can't be read as YAML: {error}.") from error


def is_argument(kind: type[Config], name: str) -> bool:
    """Whether a setting is given on the command line without an option's name."""
    return kind.model_fields[name].json_schema_extra == ARGUMENT


def _description(kind: type[Config], name: str) -> str:
    return str(kind.model_fields[name].description)
