"""A call of a model: where its images go, and the logits in what it returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.models.layers import evaluation_mode


def placed(images: Tensor, model: nn.Module) -> Tensor:
    """Images on the model's device, in channels-last layout, which convolutions are fastest in."""
    return images.to(next(model.parameters()).device, memory_format=torch.channels_last)


def logits_of(output: Any) -> Tensor:
    """The logits ``[N, K]`` in what a model returned.

    Raises
    ------
    TrompeError
        If there are none.
    """
    if not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise TrompeError(
            "The model must return logits [N, K] (a tensor, or an object with 'logits'); wrap it "
            "in a module that does."
        )
    return output


def class_count(model: nn.Module, image: Tensor) -> int:
    """How many classes the model tells apart, seen from one image ``[3, H, W]``."""
    with torch.no_grad(), torch.inference_mode(False), evaluation_mode(model):
        return logits_of(model(placed(image[None], model))).shape[1]
