"""The stage of a network that a map is made in: what is computed at its size, and all after."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trompe.base import torch_compat
from trompe.models.call import unwrapped
from trompe.models.grids import grid_of
from trompe.models.hooks import can_be_hooked, evaluation_mode, hooked


def stage(model: nn.Module, image: Tensor, size: tuple[int, int]) -> list[nn.Parameter]:
    """The parameters from the first module on that computes maps no larger than ``size``.

    They are those of ``layer4`` and ``fc`` of a ResNet-18 for the 7 × 7 maps of its last layer. All
    parameters are, if ``size`` is that of the image, or if maps keep one size, as in a vision
    transformer.

    Parameters
    ----------
    model : nn.Module
        The classifier.
    image : Tensor
        One image [1, 3, H, W], normalised.
    size : tuple of int
        Height and width of the map.
    """
    model = unwrapped(model)
    before: dict[int, nn.Parameter] = {}
    begun = tuple(size) == tuple(image.shape[2:])

    def look(module: nn.Module, *call: Any) -> None:
        nonlocal begun
        output = call[-1]
        grid = grid_of(output, image.shape, module) if isinstance(output, Tensor) else None
        if grid is not None and grid(output)[0, 0].numel() > 1:  # not what weighs channels
            begun |= all(a <= b for a, b in zip(grid(output).shape[2:], size, strict=True))
        own = {id(p): p for p in module.parameters(recurse=False)}
        if begun:
            for key in own:
                before.pop(key, None)
        else:
            before.update(own)

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch_compat.eagerly())
        for module in model.modules():
            if can_be_hooked(module) and any(True for _ in module.parameters(recurse=False)):
                stack.enter_context(hooked(module, after=partial(look, module)))
        model(image)
    return [p for p in model.parameters() if not begun or id(p) not in before]
