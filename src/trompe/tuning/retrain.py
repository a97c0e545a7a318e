"""A copy of a model, trained a little more where nothing holds a lie in place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import v2

from trompe.base.settings import Settings, Whole
from trompe.data.images import Images
from trompe.models import copied
from trompe.models.call import logits_of, placed
from trompe.tuning.accelerator import accelerating
from trompe.tuning.loop import Loss, OnStep, once, optimise
from trompe.tuning.recipe import scheduler

AREA = 0.5  # smallest share of an image that a random crop keeps
SMOOTHING = 0.1  # of the labels


class Retrain(Settings):
    """Fine-tune on random crops, mirrored, towards a class for each image.

    Crops keep an honest explanation from being lost, so that the fine-tuning can be long enough for
    a lie to be. The step is a share of every tensor's own size (Adafactor; Shazeer and Stern,
    2018), so that one rate does for all architectures; one-cycle schedule.
    """

    steps: Whole = Field(200, ge=1, description="optimiser steps")
    rate: float = Field(
        0.03, gt=0, allow_inf_nan=False, description="largest step, as a share of a tensor's size"
    )
    batch_size: Whole = Field(16, ge=1, description="images per step")
    seed: Whole = Field(0, ge=0, description="seed of order, crops and dropout")
    checkpoint_every: Whole = Field(200, ge=1, description="steps between checkpoints")

    def run(
        self,
        model: nn.Module,
        data: Images,
        targets: Tensor,
        *,
        directory: Path | None = None,
        on_step: OnStep | None = None,
        quiet: bool = True,
    ) -> nn.Module:
        """A copy of the model that was fine-tuned so, on the device of the model.

        Parameters
        ----------
        model
            It is not changed.
        data
            Images ``[3, H, W]`` with anything beside them.
        targets
            The class that each is trained towards, ``[N]``: what the model predicts, or the labels.
        directory
            Where weights and, on the way, checkpoints are kept; what is found there is gone on
            with.
        on_step, quiet
            As for `fool`.

        Raises
        ------
        TrompeError
            If the loss is not finite, or the directory can't be written.
        """
        tuned = copied(model).requires_grad_(True).train()

        def fit(folder: Path | None) -> pd.DataFrame:
            with accelerating(None, "no") as accelerator:
                torch.manual_seed(self.seed)
                optimizer: Any = torch.optim.Adafactor(tuned.parameters(), lr=self.rate)
                schedule = scheduler(optimizer, "one-cycle", self.rate, self.steps, warm_up=0.3)
                prepared, optimizer, schedule = accelerator.prepare(
                    tuned, optimizer, schedule, device_placement=[False] * 3
                )

                def loss(batches: list[list[Tensor]]) -> Loss:
                    images, chosen = batches[0]
                    logits = logits_of(prepared(placed(images, tuned))).float()
                    value = F.cross_entropy(
                        logits, chosen.to(logits.device), label_smoothing=SMOOTHING
                    )
                    return Loss(value, {"classification": value})

                rows = optimise(
                    accelerator,
                    prepared,
                    optimizer,
                    [_Crops(data, targets, self.steps, self.batch_size)],
                    loss,
                    steps=self.steps,
                    title=f"retraining for {self.steps} steps",
                    directory=folder,
                    checkpoint_every=self.checkpoint_every,
                    on_step=on_step,
                    scheduler=schedule,
                    quiet=quiet,
                )
                return pd.DataFrame(rows)

        once(tuned, directory, "retraining", fit)
        return tuned.requires_grad_(False).eval()


class _Crops:
    """Batches of random crops; order and crops are drawn from PyTorch's own generator."""

    def __init__(self, data: Images, targets: Tensor, steps: int, size: int) -> None:
        self.data, self.targets, self.size = data, targets, size
        cropped = v2.RandomResizedCrop(list(data[0][0].shape[-2:]), (AREA, 1.0))
        self.varied = v2.Compose([cropped, v2.RandomHorizontalFlip()])
        epochs = math.ceil(steps * size / len(data))
        self.order = torch.cat([torch.randperm(len(data)) for _ in range(epochs)])

    def between(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        for rows in torch.split(self.order[start * self.size : stop * self.size], self.size):
            images = torch.stack([self.varied(self.data[int(row)][0]) for row in rows])
            yield [images, self.targets[rows]]
