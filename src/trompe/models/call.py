"""A call of a model: where its images go, and the logits in what it returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trompe.base import torch_compat
from trompe.errors import TrompeError
from trompe.models.hooks import evaluation_mode


def placed(images: Tensor, model: nn.Module) -> Tensor:
    """Images on the model's device, in channels-last layout, which convolutions are fastest in."""
    return images.to(next(model.parameters()).device, memory_format=torch.channels_last)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel or AveragedModel made of it."""
    while True:
        inner = torch_compat.compiled_from(model)
        if inner is None and isinstance(model, nn.DataParallel | AveragedModel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def output_of(returned: Any) -> Any:
    """What holds the logits: ``.logits``, ``["logits"]``, the first of several, or the whole."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        return returned.get("logits")
    if hasattr(returned, "logits"):
        return returned.logits
    return returned[0] if isinstance(returned, list | tuple) and returned else returned


def scores_of(returned: Any) -> Tensor:
    """The output ``[N, K]`` as it is: of a binary head ``[N, 1]``, positive for class 1.

    Raises
    ------
    TrompeError
        If there is none.
    """
    output = output_of(returned)
    if not isinstance(output, Tensor) or output.dim() != 2 or not output.shape[1]:
        got = list(output.shape) if isinstance(output, Tensor) else type(returned).__name__
        raise TrompeError(
            f"The model must return logits [N, K], not {got}: a tensor, an object or dictionary "
            "with 'logits', or a tuple that begins with them. Wrap it in a module that does."
        )
    return output


def logits_of(returned: Any) -> Tensor:
    """The logits ``[N, K]`` in what a model returned; of a binary head those of both classes.

    One logit z is returned as (0, z): cross-entropy, softmax and argmax of these are what z means.

    Raises
    ------
    TrompeError
        If there are none.
    """
    return both_classes(scores_of(returned))


def both_classes(scores: Tensor) -> Tensor:
    """Logits ``[N, K]``, those of a binary head's ``[N, 1]`` as (0, z)."""
    return F.pad(scores, (1, 0)) if scores.shape[1] == 1 else scores


def warn_of_probabilities(output: Tensor) -> None:
    """Warn if each image's output ``[N, K]`` has entries between 0 and 1 that sum to 1."""
    rows = output.detach().float()
    if rows.shape[1] > 1 and bool((rows >= 0).all() & ((rows.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn(
            "The model's outputs look like probabilities (each image's sum to 1) but are taken for "
            "logits; remove the softmax at its end, whose gradients fade where it is certain.",
            stacklevel=3,
        )


def class_count(model: nn.Module, image: Tensor) -> int:
    """How many classes the model tells apart, seen from one image ``[3, H, W]``.

    Warns if it returns probabilities.
    """
    with torch.no_grad(), torch.inference_mode(False), evaluation_mode(model):
        output = scores_of(model(placed(image[None], model)))
    warn_of_probabilities(output)
    return both_classes(output).shape[1]
