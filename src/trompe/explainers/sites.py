"""Places in a model, and a forward pass in which the tensors there are tapped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Size, Tensor, nn

from trompe.base import torch_compat
from trompe.errors import TrompeError
from trompe.explainers.twice import TwiceDifferentiable
from trompe.models.call import scores_of, unwrapped
from trompe.models.grids import CHANNELS_FIRST, Grid, grid_of
from trompe.models.hooks import can_be_hooked, hooked
from trompe.models.layers import get_layer

INPUT = "input"
_LAYER = re.compile(
    r"(?P<name>[^:#@]*)(#(?P<call>\d+))?(:(?P<side>input|output))?(@(?P<layout>first|last|\d+))?"
)


@dataclass(frozen=True)
class Site:
    """A place in a model: the images, or what a module returns or is given.

    Attributes
    ----------
    name
        The module's name.
    side
        ``"output"``, ``"input"``, or ``"images"`` for those of the whole model.
    call
        Which call of the module, from 1; None for the last of a forward pass.
    layout
        How the tensor lies over the images, as `grids.grid_of` takes it; None to find it.
    """

    name: str
    side: Literal["output", "input", "images"] = "output"
    call: int | None = None
    layout: str | None = None

    def __str__(self) -> str:
        if self.side == "images":
            return INPUT
        name = self.name if self.call is None else f"{self.name}#{self.call}"
        name = f"{name}:{self.side}" if self.side == "input" or name == INPUT else name
        return name if self.layout is None else f"{name}@{self.layout}"

    @classmethod
    def parse(cls, layer: str | nn.Module, model: nn.Module) -> Site:
        """Read where to look in ``model``.

        Parameters
        ----------
        layer
            ``"input"`` for the images, a module of the model, or its name; ``":input"`` appended
            for what it is given, ``"#2"`` for its second call. A module that is itself called
            ``input`` is ``"input:output"``. Where a layout is misread, ``"@last"`` and ``"@first"``
            say where the channels are, and ``"@8"`` how many tokens come before those of the grid.

        Raises
        ------
        TrompeError
            If the model has no such layer; close names are suggested.
        """
        modules = dict(unwrapped(model).named_modules())
        if isinstance(layer, nn.Module):
            for name, module in modules.items():
                if module is layer:
                    return cls(name)
            raise TrompeError(
                f"The given layer ({type(layer).__name__}) is not a module of this model; "
                "take it from the model that is explained, or give its name."
            )
        if layer == INPUT:
            return IMAGES
        if layer in modules:
            return cls(layer)
        read = _LAYER.fullmatch(layer)
        if read is None or read["call"] == "0":
            raise TrompeError(
                f"Layer '{layer}' can't be read; write its name, with '#2' for its second call and "
                "':input' or ':output' (the default) for a side of it, '@last' or '@first' for the "
                "place of its channels, '@8' for a grid behind 8 tokens."
            )
        get_layer(model, read["name"])
        side: Literal["output", "input"] = "input" if read["side"] == "input" else "output"
        call = int(read["call"]) if read["call"] else None
        return cls(read["name"], side, call, read["layout"])


IMAGES = Site(INPUT, "images")

Tap = Callable[[Site, Tensor, Grid], Tensor]


def run(
    model: nn.Module,
    images: Tensor,
    taps: Mapping[Site, Tap],
    twice: TwiceDifferentiable | None,
    *contexts: AbstractContextManager[Any],
) -> Tensor:
    """One forward pass in which each tap may keep and replace the tensor at its site.

    Returns
    -------
    Tensor
        The model's output ``[N, K]``, ``[N, 1]`` of a binary head.

    Raises
    ------
    TrompeError
        If a layer is not called, or its tensor does not lie over the images.
    """
    differentiable = twice is not None
    places = [_Place(model, site, tap, images.shape) for site, tap in taps.items()]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(differentiable))
        stack.enter_context(torch_compat.eagerly())
        stack.enter_context(twice or nullcontext())
        for context in contexts:
            stack.enter_context(context)
        images = images.clone() if images.is_inference() else images
        images = images if differentiable else images.detach()
        for place in places:
            if place.site == IMAGES:
                images = place.tap(IMAGES, images, CHANNELS_FIRST)
            else:
                stack.enter_context(place.hooked())
        output = model(images)
    for place in places:
        if place.site != IMAGES:
            place.check()
    return scores_of(output)


@dataclass
class _Place:
    """A site of one forward pass: how often it was met, and what came last."""

    model: nn.Module
    site: Site
    tap: Tap
    images: Size
    calls: int = 0
    last: Any = None
    fits: bool = True

    def hooked(self) -> AbstractContextManager[None]:
        module = get_layer(self.model, self.site.name)
        if not can_be_hooked(module):
            raise TrompeError(
                f"Layer '{self.site.name}' is compiled by TorchScript and can't be looked into; "
                "name a layer outside of it, or give the model as it was before torch.jit."
            )
        if self.site.side == "input":
            return hooked(module, before=self.before)
        return hooked(module, after=self.after)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        if self.site.call not in (None, self.calls):
            return None
        slots: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        slot = next((key for key, value in slots if isinstance(value, Tensor | list)), None)

        def changed(key: int | str, value: Any) -> Any:
            if key != slot:
                return value
            if isinstance(value, list):  # what a DenseNet's layer concatenates first thing
                return [self.tapped(torch.cat(value, 1), module)]
            return self.tapped(value, module)

        return (
            tuple(changed(i, arg) for i, arg in enumerate(args)),
            {key: changed(key, value) for key, value in kwargs.items()},
        )

    def after(self, module: nn.Module, _: Any, __: Any, output: Any) -> Any:
        self.calls += 1
        if self.site.call not in (None, self.calls):
            return None
        if type(output) in (tuple, list) and output:
            return type(output)((self.tapped(output[0], module), *output[1:]))
        return self.tapped(output, module)

    def tapped(self, tensor: Any, module: nn.Module) -> Any:
        self.last = tensor
        grid = None
        if isinstance(tensor, Tensor):
            grid = grid_of(tensor, self.images, module, self.site.layout)
        self.fits = grid is not None
        return tensor if grid is None else self.tap(self.site, tensor, grid)

    def check(self) -> None:
        name = self.site.name
        if self.calls < (self.site.call or 1):
            called = f"called only {self.calls} times" if self.calls else "not called"
            raise TrompeError(
                f"Layer '{name}' is {called} in the forward pass of {type(self.model).__name__}; "
                "name a layer that is, such as a part of it."
            )
        if not self.fits:
            last = self.last
            got = list(last.shape) if isinstance(last, Tensor) else type(last).__name__
            raise TrompeError(
                f"Layer '{name}' has the {self.site.side} {got}, which does not lie over images "
                f"{list(self.images)}: a map needs a tensor [N, C, h, w] or [N, h, w, C], or "
                "tokens [N, T, C] of a grid; choose a layer before the features are flattened, or "
                "outside of the windows that they are cut into."
            )
