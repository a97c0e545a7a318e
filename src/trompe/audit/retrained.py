"""A copy of a model, trained a little more where nothing holds a lie in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms import v2

from trompe.evaluate import Images, placed
from trompe.explainers import Recording
from trompe.explainers.base import logits_of
from trompe.models import evaluation_mode

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
    progress: Callable[[], None] = lambda: None,
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
    progress
        Called after every step.
    """
    cropped = v2.RandomResizedCrop(list(data[0][0].shape[-2:]), (AREA, 1.0))
    varied = v2.Compose([cropped, v2.RandomHorizontalFlip()])
    tuned = copy.deepcopy(model).requires_grad_(True).train()
    optimizer: Any = torch.optim.Adafactor(tuned.parameters(), lr=rate)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        epochs = math.ceil(steps * BATCH / len(data))
        order = torch.cat([torch.randperm(len(data)) for _ in range(epochs)])
        for rows in torch.split(order[: steps * BATCH], BATCH):
            images = torch.stack([varied(data[int(row)][0]) for row in rows])
            logits = logits_of(tuned(placed(images, tuned))).float()
            chosen = targets[rows].to(logits.device)
            optimizer.zero_grad()
            loss: Any = F.cross_entropy(logits, chosen, label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress()
    return tuned.requires_grad_(False).eval()


@torch.no_grad()
def predictions(model: nn.Module, data: Images, batch_size: int = 32) -> Tensor:
    """The predicted class of every image ``[N]``."""
    found = []
    with evaluation_mode(model), Recording(model, ()) as forward:
        for rows in torch.split(torch.arange(len(data)), batch_size):
            images = torch.stack([data[int(row)][0] for row in rows])
            found.append(forward(placed(images, model)).argmax(1).cpu())
    return torch.cat(found)
