"""How often a model is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trompe.base import processes
from trompe.data.images import Images, in_turn
from trompe.data.subset import Part
from trompe.errors import TrompeError
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


LOOKED_AT = 200  # images, to see whether a model knows the data's classes


def check_outputs(model: nn.Module, data: Images, count: int) -> None:
    """Refuse data of fewer classes than ``count`` outputs, if they are not the first ones.

    They are where the model is no better than a guess among the data's classes.

    Raises
    ------
    TrompeError
        If so, and nothing says which outputs the classes are.
    """
    known = len(getattr(data, "classes", ()))
    if not 1 < known < count or getattr(data, "mapped", False):
        return
    step = max(1, len(data) // LOOKED_AT)
    share, low, _ = accuracy(model, Part(data, range(0, len(data), step)))
    if low <= 1 / known:
        raise TrompeError(
            f"The model is right on {100 * share:.0f} % of the data, no better than a guess among "
            f"its {known} classes: they are not the first {known} of the model's {count} outputs. "
            "Say which they are with class_map (--class-map FILE), or begin with trompe train "
            f"--num-classes {known}."
        )


@torch.no_grad()
def predictions(model: nn.Module, data: Images, batch_size: int = 32) -> Tensor:
    """The predicted class of every image ``[N]``."""
    found = []
    with evaluation_mode(model):
        for rows in torch.split(torch.arange(len(data)), batch_size):
            images = torch.stack([data[int(row)][0] for row in rows])
            found.append(logits_of(model(placed(images, model))).argmax(1).cpu())
    return torch.cat(found)
