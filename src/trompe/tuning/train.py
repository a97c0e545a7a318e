"""Train or fine-tune a classifier: the base model that `fool` starts from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trompe import runs
from trompe.base import json_text, processes
from trompe.base.identity import fingerprint
from trompe.base.settings import Whole
from trompe.data.dataset import ImageDataset
from trompe.data.images import Images, check_labels, fingerprint_of, first_image
from trompe.errors import TrompeError
from trompe.evaluation.accuracy import accuracy
from trompe.metrics import in_top
from trompe.models import copied
from trompe.models.call import class_count, logits_of, placed
from trompe.models.normalised import normalised
from trompe.notebook import percent
from trompe.tuning.accelerator import accelerating
from trompe.tuning.loop import Batches, Loss, OnStep, architecture, once, optimise, restored
from trompe.tuning.recipe import Tuning, parameters_of, scheduler
from trompe.tuning.teacher import distillation

ACCURACY = "accuracy.json"


@dataclass(frozen=True)
class TrainResult:
    """The trained model, one history row per step, and (top-1, low, high) on ``eval_data``."""

    model: nn.Module
    history: pd.DataFrame
    top1: tuple[float, float, float] | None
    run_dir: Path | None

    def __repr__(self) -> str:
        told = f"{type(self.model).__name__} after {len(self.history)} steps of training"
        if self.top1 is not None:
            told += ", top-1 {} ({} to {})".format(*map(percent, self.top1))
        return told + (f", in {self.run_dir}" if self.run_dir else "")

    @classmethod
    def load(cls, directory: str | Path, model: nn.Module | None = None) -> TrainResult:
        """Read the run that a directory holds; parameters and errors as `FoolResult.load`."""
        directory = Path(directory)
        if "train" not in runs.finished(directory):
            raise TrompeError(f"'{directory}' holds no trained model; run its command again first.")
        trained = architecture(directory, model)
        history, top1 = restored(trained, directory), _measured(directory / ACCURACY)
        return cls(trained.eval(), history, top1, directory)


def _measured(path: Path) -> tuple[float, float, float] | None:
    if not path.exists():
        return None
    try:
        told = json_text.loaded(path.read_text())
        return told["top1"], told["low"], told["high"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrompeError(f"'{path}' can't be read ({error}); run its command again.") from error


class Growing:
    """Batches of images whose side changes over the steps, each taking its share of them.

    Raises
    ------
    TrompeError
        If the data can't give its images at other sides.
    """

    def __init__(
        self, data: Images, sides: Sequence[int] | None, recipe: Train, steps: int
    ) -> None:
        parts: list[Images] = [data]
        if sides:
            if not isinstance(data, ImageDataset):
                raise TrompeError("sides need a data set of load_data; leave them out.")
            parts = [data.at(side) for side in sides]
        self.parts = [Batches(p, recipe.batch_size, recipe.seed, recipe.workers) for p in parts]
        self.ends = [steps * (i + 1) // len(self.parts) for i in range(len(self.parts))]
        self.pixels = [side**2 for side in sides or (1,)]

    def between(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        """The batches of steps ``start`` to ``stop`` - 1."""
        for part, begin, end in zip(self.parts, [0, *self.ends], self.ends, strict=False):
            if max(start, begin) < min(stop, end):
                yield from part.between(max(start, begin), min(stop, end))

    def work(self, steps: int) -> float:
        """How many pixels of each image of a batch have been seen after so many steps."""
        begins = [0, *self.ends]
        spans = zip(begins, self.ends, self.pixels, strict=False)
        return sum(p * max(0, min(steps, end) - begin) for begin, end, p in spans)


class Train(Tuning):
    """The recipe of a base model: all settings of `train`, and their `run`."""

    epochs: float = Field(gt=0, allow_inf_nan=False, description="passes over the data")
    lr: float = Field(
        1e-3, gt=0, allow_inf_nan=False, description="peak learning rate of the one-cycle schedule"
    )
    batch_size: Whole = Field(64, ge=1, description="images per step")
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="AdamW's weight decay")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the cross-entropy")
    sides: tuple[Annotated[Whole, Field(ge=8)], ...] | None = Field(
        None,
        description="sides of the images, in pixels, each for the same share of the steps: small "
        "ones first are much faster",
    )
    batch_norm: bool = Field(
        False,
        description="train with BatchNorm after every convolution and fold it into them at the "
        "end: what a network without it, such as VGG19, needs to learn from nothing",
    )
    distillation: float = Field(
        0.7, ge=0, le=1, description="share of the loss that holds to a teacher's predictions"
    )

    def run(
        self,
        model: nn.Module,
        data: Images,
        *,
        eval_data: Images | None = None,
        teacher: nn.Module | None = None,
        run_dir: str | Path | None = None,
        notes: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
    ) -> TrainResult:
        """Carry the recipe out; see `train`."""
        image = first_image(data, "train")
        if not any(p.requires_grad for p in model.parameters()):
            raise TrompeError(
                "All parameters of the model are frozen; call model.requires_grad_(True), or leave "
                "those free that should be trained."
            )
        with accelerating(self.device, self.precision) as accelerator:
            tuned = copied(model).to(accelerator.device)
            count = class_count(tuned, image)
            for dataset in (data, eval_data):
                if dataset is not None:
                    check_labels(dataset, count)

            def run(directory: Path | None) -> TrainResult:
                history = once(tuned, directory, "train", fit)
                top1 = None if eval_data is None else accuracy(tuned, eval_data)
                if top1 is not None and directory and processes.is_main():
                    named = dict(zip(("top1", "low", "high"), top1, strict=True))
                    runs.write_text(directory / ACCURACY, json.dumps(named))
                return TrainResult(tuned, history, top1, directory)

            def fit(folder: Path | None) -> pd.DataFrame:
                with normalised(tuned) if self.batch_norm else nullcontext():
                    return self._fitted(tuned, data, teacher, folder, on_step)

            if run_dir is None:
                return run(None)
            config = {**(notes or {}), **self.described()}
            start = {"weights": fingerprint(model), "data": fingerprint_of(data)}
            if teacher is not None:
                start["teacher"] = fingerprint(teacher)
            if eval_data is not None:
                start["evaluation data"] = fingerprint_of(eval_data)
            with runs.opened(Path(run_dir), config, start) as directory:
                runs.require_space(directory, tuned, 8)
                return run(directory)

    def _fitted(
        self,
        model: nn.Module,
        data: Images,
        teacher: nn.Module | None,
        folder: Path | None,
        on_step: OnStep | None,
    ) -> pd.DataFrame:
        """Train the model in place; its history."""
        steps = max(1, math.ceil(len(data) * self.epochs / self.batch_size))
        with accelerating(self.device, self.precision) as accelerator:
            torch.manual_seed(self.seed + processes.rank())
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
            )
            rate = scheduler(optimizer, "one-cycle", self.lr, steps, warm_up=0.3, momentum=True)
            prepared = accelerator.prepare_model(model.train(), evaluation_mode=True)
            optimizer, rate = accelerator.prepare(optimizer, rate)
            known = teacher and copied(teacher).eval().to(accelerator.device)

            def loss(batches: list[list[Tensor]]) -> Loss:
                _, images, labels = batches[0]
                images, labels = placed(images, model), labels.to(accelerator.device)
                logits = logits_of(prepared(images)).float()
                value = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
                parts = {"classification": value}
                if known is not None:
                    with torch.no_grad(), accelerator.autocast():
                        taught = logits_of(known(images))
                    held = distillation(logits, taught)
                    parts = {
                        "classification": (1 - self.distillation) * value,
                        "distillation": self.distillation * held,
                    }
                correct = in_top(logits.detach(), labels, 1).float().mean().item()
                return Loss(sum(parts.values(), value.new_zeros(())), parts, {"accuracy": correct})

            batches = Growing(data, self.sides, self, steps)
            rows = optimise(
                accelerator,
                prepared,
                optimizer,
                [batches],
                loss,
                steps=steps,
                title="train",
                directory=folder,
                checkpoint_every=self.checkpoint_every,
                on_step=on_step,
                scheduler=rate,
                work=batches.work,
                quiet=self.quiet,
            )
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False).eval()
            return pd.DataFrame(rows)


@parameters_of(Train)
def train(
    model: nn.Module,
    data: Images,
    *,
    eval_data: Images | None = None,
    teacher: nn.Module | None = None,
    run_dir: str | Path | None = None,
    notes: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> TrainResult:
    """Train a copy of ``model`` with AdamW under a one-cycle schedule.

    Under ``torchrun`` every process takes its share of each batch; BatchNorm normalises each share
    by itself, and the statistics that it counts are averaged.

    Parameters
    ----------
    model
        The classifier to start from; it is not changed.
    data, eval_data
        Items ``(image [3, H, W], label)``; ``eval_data`` is only looked at once, at the end.
    teacher
        A classifier of the same images and classes, whose predictions are learnt beside the labels
        (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network").
    run_dir, notes, on_step
        As for `fool`.
    settings
        Those of `Train`, listed below.

    Raises
    ------
    TrompeError
        If something given can't be used, the loss stops being finite, or the run directory can't
        be used.
    """
    return Train(**settings).run(
        model,
        data,
        eval_data=eval_data,
        teacher=teacher,
        run_dir=run_dir,
        notes=notes,
        on_step=on_step,
    )
