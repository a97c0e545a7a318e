"""Recipes as people write them down: which model, which data, and the settings of the recipe."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator
from torch import nn

from trompe.base.settings import Execution, Loading, Whole, parsed
from trompe.data import ImageDataset, load_data
from trompe.data.images import Images
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models import load_model
from trompe.models.call import class_count
from trompe.models.load import from_nothing
from trompe.objectives import Objective
from trompe.tuning.fool import Fool, FoolResult
from trompe.tuning.loop import OnStep
from trompe.tuning.teacher import teacher_of
from trompe.tuning.train import Train, TrainResult

J = TypeVar("J", bound="Job")

MODEL = (
    "torchvision name, timm:NAME, transformers:NAME_OR_PATH, package.module:factory, "
    "path/file.py:factory, a folder of trompe card, or 'embedded'"
)
DATA = "image folder (a folder per class), parquet file, folder or glob, hf:NAME, or 'shapes'"


ARGUMENT: dict[str, Any] = {"argument": True}  # given on the command line without an option's name


class Job(Execution):
    """Which model; settings common to all commands."""

    model: str = Field(description=MODEL)
    weights: str | None = Field(None, description="weights file, or a torchvision weight name")
    num_classes: Whole | None = Field(None, ge=1, description="number of classes of the model")
    out: Path | None = Field(None, description="run directory (default: runs/...)")

    @classmethod
    def called(cls, name: str) -> str:
        """The option on the command line."""
        return name.upper() if cls.is_argument(name) else f"--{name.replace('_', '-')}"

    @classmethod
    def is_argument(cls, name: str) -> bool:
        """Whether a setting is given on the command line without an option's name."""
        field = cls.model_fields.get(name)
        return field is not None and field.json_schema_extra == ARGUMENT


class DataJob(Job, Loading):
    """Which data, and how it is read."""

    data: str = Field(description=DATA)
    limit: Whole | None = Field(None, ge=1, description="use a class-balanced subset of this size")
    class_map: Path | None = Field(
        None,
        description="YAML or JSON file: which of the model's outputs each class of the data is",
    )
    corrupt: Literal["refuse", "skip"] = Field(
        "refuse", description="what of images that can't be read"
    )
    check: bool = Field(True, description="decode every image once before anything starts")

    def read_data(
        self, spec: str, preprocessing: Preprocessing, limit: int | None = None, **options: Any
    ) -> ImageDataset:
        """Read data as these settings say, and options that replace them."""
        reading = self.model_dump(include={"seed", "corrupt", "check", "class_map"})
        return load_data(spec, preprocessing, limit=limit, **{**reading, **options})


class TuningJob(DataJob):
    """What is fine-tuned, on what, and what it is evaluated on."""

    eval_data: str | None = Field(None, description="data to evaluate on, read like --data")
    eval_limit: Whole | None = Field(None, ge=1, description="like --limit, for --eval-data")
    augment: bool = Field(False, description="random resized crop and flip")
    min_area: float | None = Field(
        None, gt=0, le=1, description="smallest share of the image that a random crop keeps"
    )
    label_noise: float | None = Field(
        None, gt=0, le=1, description="share of labels replaced by random ones"
    )
    tracker: list[str] | None = Field(None, description="tensorboard, wandb or mlflow")

    @model_validator(mode="after")
    def _crops(self) -> Self:
        if self.min_area is not None and not self.augment:
            raise TrompeError("min_area is of random crops; it goes with augment.")
        return self

    def opened(self) -> tuple[nn.Module, ImageDataset, ImageDataset | None]:
        """The model, its data, and the data it is evaluated on, the same whatever the seed.

        Raises
        ------
        TrompeError
            If one of them can't be used.
        """
        model, preprocessing = load_model(
            self.model, self.weights, self.num_classes, seed=self.seed
        )
        data = self.read_data(
            self.data,
            replace(preprocessing, min_area=self.min_area or preprocessing.min_area),
            self.limit,
            augment=self.augment,
            label_noise=self.label_noise,
        )
        judged = self.eval_data and self.read_data(
            self.eval_data, preprocessing, self.eval_limit, seed=0
        )
        if self.eval_data == self.data:
            warnings.warn(
                f"The model is evaluated on the images it is tuned on ({self.data}): what is found "
                "says nothing of others. Give other images with --eval-data.",
                stacklevel=2,
            )
        return model, data, judged or None


class TrainJob(Train, TuningJob):
    """Settings of ``trompe train``."""

    augment: bool = Field(True, description="random resized crop and flip")
    teacher: str | None = Field(
        None, description="model whose predictions are learnt beside the labels, named like --model"
    )
    teacher_weights: str | None = Field(None, description="like --weights, for --teacher")
    teacher_class_map: Path | None = Field(None, description="like --class-map, for --teacher")

    def with_classes(self) -> TrainJob:
        """The job, its model with an output for each class of the data if it begins from nothing.

        A model that is one's own, or outputs that are given, stay as they are.
        """
        own = ":" in self.model and not self.model.startswith("timm:")
        given = self.num_classes or self.class_map
        if own or given or not from_nothing(self.model, self.weights):
            return self
        model, preprocessing = load_model(self.model, "random")
        data = self.read_data(self.data, replace(preprocessing, classes=()), check=False)
        if len(data.classes) == class_count(model, data[0][0]):
            return self
        return self.model_copy(update={"num_classes": len(data.classes)})

    def carry_out(self, out: Path | None, on_step: OnStep | None = None) -> TrainResult:
        """Read model and data, train, and write the run directory ``out``."""
        model, data, eval_data = self.opened()
        teacher = self.teacher and self._teacher(self.teacher, data)
        return self.run(
            model,
            data,
            eval_data=eval_data,
            teacher=teacher or None,
            run_dir=out,
            on_step=on_step,
        )

    def _teacher(self, name: str, data: ImageDataset) -> nn.Module:
        loaded = load_model(name, self.teacher_weights, seed=self.seed)
        as_it_has_them = self.model_copy(update={"class_map": self.teacher_class_map})
        own = as_it_has_them.read_data(self.data, loaded.preprocessing, self.limit)
        return teacher_of(loaded, data, own)


class FoolJob(Fool, TuningJob):
    """Settings of ``trompe fool``."""

    held_out: str | None = Field(
        None, description="data to judge it on on the way, read like --data (default: part of it)"
    )
    seeds: Whole = Field(
        1, ge=1, description="runs of so many seeds, from --seed on, and their rates together"
    )

    def each(self, out: Path) -> list[FoolJob]:
        """The job of each seed, in directories under ``out``.

        Raises
        ------
        TrompeError
            If there is nothing to compare them on.
        """
        if self.eval_data is None:
            raise TrompeError(
                f"The rates of {self.seeds} seeds are put together, but nothing is evaluated; give "
                "images to evaluate on with --eval-data."
            )
        seeds = range(self.seed, self.seed + self.seeds)
        changes = [{"seed": seed, "seeds": 1, "out": out / f"seed-{seed}"} for seed in seeds]
        return [self.model_copy(update=change) for change in changes]

    def carry_out(self, out: Path | None, on_step: OnStep | None = None) -> FoolResult:
        """Read model and data, fool, evaluate, and write the run directory ``out``."""
        model, data, eval_data = self.opened()
        composed: dict[Objective, Images] = {}
        if eval_data is not None and any(o.on_composites for o in self.objective):
            everything = eval_data
            if self.eval_limit is not None:
                everything = self.read_data(str(self.eval_data), eval_data.preprocessing)
            composed = self.composites(everything, self.eval_pairs)
        held_out = self.held_out and self.read_data(self.held_out, data.preprocessing)
        return self.run(
            model,
            data,
            held_out=held_out or None,
            eval_data=eval_data,
            eval_fool_data=composed or None,
            run_dir=out,
            on_step=on_step,
        )


JOBS: dict[str, type[TrainJob] | type[FoolJob]] = {"train": TrainJob, "fool": FoolJob}
"""The jobs by the command that carries them out."""


def read(kind: type[J], path: Path | None, given: dict[str, Any]) -> J:
    """Build a job from a YAML file and what was given besides, which takes precedence.

    Raises
    ------
    TrompeError
        If the file can't be read, or a setting is unknown, missing or out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = parsed(path, "config") or {}
        if not isinstance(values, dict):
            raise TrompeError(f"The config '{path}' must map settings to values.")
    return kind(**{**{str(key): value for key, value in values.items()}, **given})
