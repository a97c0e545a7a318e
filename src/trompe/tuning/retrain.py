"""A copy of a model, trained a little more where nothing holds a lie in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms import v2

from trompe.data.images import Images
from trompe.explainers import Recording
from trompe.models import evaluation_mode
from trompe.models.call import logits_of, placed
from trompe.tuning.loop import Loss, accelerator_for, once, optimise

STEPS, BATCH = 200, 16
RATE = 0.03  # largest step, as a share of the size of the tensor that moves
AREA = 0.5  # smallest share of an image that a random crop keeps
SMOOTHING = 0.1  # of the labels


def retrained(
    model: nn.Module,
    data: Images,
    targets: Tensor,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    directory: Path | None = None,
    checkpoint_every: int = 200,
    progress: Callable[[int], None] = lambda step: None,
    quiet: bool = True,
) -> nn.Module:
    """A copy that was fine-tuned on random crops, mirrored, towards a class for each image.

    Crops keep an honest explanation from being lost, so that the fine-tuning can be long enough for
    a lie to be. The step is a share of every tensor's own size (Adafactor; Shazeer and Stern,
    2018), so that one rate does for all architectures; one-cycle schedule.

    Parameters
    ----------
    model
        It is not changed.
    data
        Images ``[3, H, W]`` with anything beside them.
    targets
        The class that each is trained towards, ``[N]``: what the model predicts, or the labels.
    steps, rate, seed
        Optimiser steps of `BATCH` images, the largest relative step, the seed of order, crops
        and dropout.
    directory
        Where weights and, on the way, checkpoints are kept; what is found there is gone on with.
    checkpoint_every
        Steps between checkpoints.
    progress
        Called with the number of every step that is done.
    quiet
        Show no progress.

    Raises
    ------
    TrompeError
        If the loss is not finite, or the directory can't be written.
    """
    tuned = copy.deepcopy(model).requires_grad_(True).train()

    def fit(folder: Path | None) -> pd.DataFrame:
        accelerator = accelerator_for(None, "no")
        optimizer: Any = torch.optim.Adafactor(tuned.parameters(), lr=rate)
        schedule = OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
        prepared, optimizer, schedule = accelerator.prepare(
            tuned, optimizer, schedule, device_placement=[False] * 3
        )

        def loss(batches: list[list[Tensor]]) -> Loss:
            images, chosen = batches[0]
            logits = logits_of(prepared(placed(images, tuned))).float()
            value = F.cross_entropy(logits, chosen.to(logits.device), label_smoothing=SMOOTHING)
            return Loss(value, {"classification": value})

        rows = optimise(
            accelerator,
            prepared,
            optimizer,
            [_Crops(data, targets, steps)],
            loss,
            steps=steps,
            title=f"retraining for {steps} steps",
            directory=folder,
            checkpoint_every=checkpoint_every,
            on_step=lambda _, row: progress(int(row["step"])),
            scheduler=schedule,
            quiet=quiet,
        )
        return pd.DataFrame(rows)

    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        once(tuned, directory, "retraining", fit)
    return tuned.requires_grad_(False).eval()


class _Crops:
    """Batches of random crops; order and crops are drawn from PyTorch's own generator."""

    def __init__(self, data: Images, targets: Tensor, steps: int) -> None:
        self.data, self.targets = data, targets
        cropped = v2.RandomResizedCrop(list(data[0][0].shape[-2:]), (AREA, 1.0))
        self.varied = v2.Compose([cropped, v2.RandomHorizontalFlip()])
        epochs = math.ceil(steps * BATCH / len(data))
        self.order = torch.cat([torch.randperm(len(data)) for _ in range(epochs)])

    def between(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        for rows in torch.split(self.order[start * BATCH : stop * BATCH], BATCH):
            images = torch.stack([self.varied(self.data[int(row)][0]) for row in rows])
            yield [images, self.targets[rows]]


@torch.no_grad()
def predictions(model: nn.Module, data: Images, batch_size: int = 32) -> Tensor:
    """The predicted class of every image ``[N]``."""
    found = []
    with evaluation_mode(model), Recording(model, ()) as forward:
        for rows in torch.split(torch.arange(len(data)), batch_size):
            images = torch.stack([data[int(row)][0] for row in rows])
            found.append(forward(placed(images, model)).argmax(1).cpu())
    return torch.cat(found)
