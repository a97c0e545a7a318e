"""Gradient checkpointing of a model below the layers that are explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trompe.errors import TrompeError
from trompe.models.hooks import evaluation_mode
from trompe.models.layers import get_layer


@contextmanager
def checkpointed(model: nn.Module, image: Tensor, layers: Sequence[str]) -> Iterator[None]:
    """Within, parts of ``model`` keep nothing but their input, and run again in backward.

    A part is a block of an `nn.Sequential`, or a few of its simple layers, that is done before the
    first of ``layers`` begins. What is explained is not run again, and no value changes.

    Parameters
    ----------
    model
        Any classifier.
    image
        One image ``[1, 3, H, W]``, to see what runs before what.
    layers
        Where explanations are made, as in ``layer4:input``.

    Raises
    ------
    TrompeError
        If no part of the model can be checkpointed.
    """
    forwards = dict(_forwards(model, _done_before(model, image, layers)))
    if not forwards:
        raise TrompeError(
            f"Gradient checkpointing would save nothing: no nn.Sequential of {type(model).__name__}"
            f" has a part that is done before {' and '.join(layers)}; leave it out."
        )
    with ExitStack() as stack:
        for sequential, forward in forwards.items():
            sequential.__dict__["forward"] = forward
            stack.callback(sequential.__dict__.pop, "forward")
        yield


def _done_before(model: nn.Module, image: Tensor, layers: Sequence[str]) -> set[nn.Module]:
    """Modules whose calls have all ended when the first of ``layers`` begins."""
    names = [layer.partition(":")[0] for layer in layers]
    if "input" in names:
        return set()
    before: set[nn.Module] = set()
    after: set[nn.Module] = set()
    now = before

    def begin(*_: Any) -> None:
        nonlocal now
        now = after

    def end(module: nn.Module, *_: Any) -> None:
        now.add(module)

    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_hook(end))
        for name in names:
            stack.enter_context(get_layer(model, name).register_forward_pre_hook(begin))
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        model(image)
    return before - after


def _forwards(
    module: nn.Module, done: set[nn.Module]
) -> Iterator[tuple[nn.Sequential, Callable[[Tensor], Tensor]]]:
    """What each outer `nn.Sequential` of which a part is done does from now on."""
    outer = list(module.children())
    if type(module) is nn.Sequential:
        parts = _parts(module, done)
        if any(again for again, _ in parts):
            yield module, _in_parts(parts)
        outer = [child for again, part in parts if not again for child in part]
    for child in outer:
        yield from _forwards(child, done)


Parts = list[tuple[bool, list[nn.Module]]]


def _parts(sequential: nn.Sequential, done: set[nn.Module]) -> Parts:
    """Modules that belong together, and whether they are run again: blocks, √n of n layers.

    A layer that works in place opens no such part, whose input would not be what it was.
    """
    ours = [m for m in sequential if m in done and type(m) is not nn.Sequential]
    size = isqrt(sum(_is_simple(m) for m in ours))
    parts: Parts = []
    for module in sequential:
        again, part = parts[-1] if parts else (False, [])
        in_place = getattr(module, "inplace", False)
        together = again and _is_simple(part[-1]) and _is_simple(module)
        if module in ours and together and (in_place or len(part) < size):
            part.append(module)
        else:
            parts.append((module in ours and not in_place, [module]))
    return parts


def _is_simple(module: nn.Module) -> bool:
    return not [*module.children()]


def _in_parts(parts: Parts) -> Callable[[Tensor], Tensor]:
    runs = [(again, nn.Sequential(*part)) for again, part in parts]

    def forward(images: Tensor) -> Tensor:
        for again, part in runs:
            images = checkpoint(part, images, use_reentrant=False) if again else part(images)
        return images

    return forward
