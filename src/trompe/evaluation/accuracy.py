"""How often a model is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trompe.base import processes
from trompe.data.images import Images, in_turn
from trompe.metrics import in_top, rate
from trompe.models import evaluation_mode
from trompe.models.call import logits_of, placed


@torch.no_grad()
def accuracy(
    model: nn.Module, data: Images, *, batch_size: int = 64, workers: int = 0
) -> tuple[float, float, float]:
    """Top-1 accuracy with its 95 % interval (Wilson)."""
    hits = []
    with evaluation_mode(model):
        for _, images, labels in in_turn(data, batch_size, workers):
            hits.append(in_top(logits_of(model(placed(images, model))).cpu(), labels, 1).tolist())
    return rate([hit for batch in processes.merged(hits) for hit in batch])


@torch.no_grad()
def predictions(model: nn.Module, data: Images, batch_size: int = 32) -> Tensor:
    """The predicted class of every image ``[N]``."""
    found = []
    with evaluation_mode(model):
        for rows in torch.split(torch.arange(len(data)), batch_size):
            images = torch.stack([data[int(row)][0] for row in rows])
            found.append(logits_of(model(placed(images, model))).argmax(1).cpu())
    return torch.cat(found)
