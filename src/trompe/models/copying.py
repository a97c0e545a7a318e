"""Copies of models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``model`` and has no gradients, wherever it is made.

    Tensors that modules have computed and keep as attributes, as pruned and weight-normalised ones
    do, become plain values; the next forward pass computes them anew.

    Raises
    ------
    TrompeError
        If something in the model can't be copied.
    """
    computed = {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for tensor in _tensors(vars(module))
        if not tensor.is_leaf
    }
    try:
        # With gradients, the parameters of a scripted module would be computed from the original's.
        with torch.inference_mode(False), torch.no_grad():
            made = copy.deepcopy(model, computed)
    except Exception as error:
        raise TrompeError(
            f"The model can't be copied ({type(error).__name__}: {error}), and nothing is done to "
            "the one that is given. Remove what is attached to it (hooks, locks, open files), or "
            "make a new model and load the weights."
        ) from error
    for parameter, original in zip(made.parameters(), model.parameters(), strict=True):
        parameter.grad = None
        parameter.requires_grad_(original.requires_grad)
    return made


def _tensors(held: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, in those of a module's attributes for one."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for value in held.values():
            yield from _tensors(value)
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _tensors(value)
