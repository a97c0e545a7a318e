"""The heatmap is a certain map: one that is given, or the original's.

Maps are compared as by Noppel, Peter and Wressnegger (*Disguising Attacks with Explanation-Aware
Backdoors*, IEEE S&P 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from trompe.data.reader import read_mask
from trompe.errors import TrompeError
from trompe.maps import dissimilarity, fine, resize, squared_distance
from trompe.objectives.objective import Maps, Objective, required

Distance = Literal["mse", "dssim"]
DISTANCES: Mapping[Distance, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "mse": (squared_distance, 2.0),
    "dssim": (dissimilarity, 0.5),
}
"""What can be minimised, and what it is of unrelated maps."""
INVERTED, RANDOM = "inverted", "random"
GRAIN = 8  # positions a side of a random map
INNER, OUTER = 0.5, 0.75  # of an outline, as shares of half a side


def _circle(rows: Tensor, columns: Tensor) -> Tensor:
    radius = torch.hypot(rows, columns)
    return (radius > INNER) & (radius <= OUTER)


def _square(rows: Tensor, columns: Tensor) -> Tensor:
    radius = torch.maximum(rows.abs(), columns.abs())
    return (radius > INNER) & (radius <= OUTER)


def _cross(rows: Tensor, columns: Tensor) -> Tensor:
    inside = torch.maximum(rows.abs(), columns.abs()) <= OUTER
    return inside & ((rows.abs() - columns.abs()).abs() < OUTER - INNER)


def _triangle(rows: Tensor, columns: Tensor) -> Tensor:
    from_edge = (rows + OUTER - 2 * columns.abs()) / 5**0.5
    width = OUTER - INNER
    return (from_edge >= 0) & (rows <= OUTER) & ((from_edge < width) | (rows > INNER))


SHAPES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "square": _square,
    "triangle": _triangle,
    "circle": _circle,
    "cross": _cross,
}
"""Outlines: whether each position, in [-1, 1], belongs to one."""


@dataclass(frozen=True)
class Shown(Objective):
    """The heatmap is a certain map.

    The test loss is the mean squared distance of both maps, each with mean 0 and variance 1: 0 if
    they are equal, about 2 if they have nothing to do with one another.

    Parameters
    ----------
    distance
        What is minimised: ``"mse"``, the test loss, or ``"dssim"``, (1 - SSIM) / 2.
    """

    measure: ClassVar[str] = (
        "the mean squared distance between the heatmap and the one that is asked for, both with "
        "mean 0 and variance 1; 0 is the same map, 2 one that has nothing to do with it"
    )
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=0.5, kw_only=True)
    distance: Distance = field(default="mse", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in get_args(Distance):
            raise TrompeError(
                f"There is no distance '{self.distance}' of maps; choose {', '.join(DISTANCES)}."
            )

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """The distance; 0 where the test loss is at most the margin."""
        found, _ = DISTANCES[self.distance]
        (heatmap,), (aim,) = maps, self._aim(maps, original)
        distance = found(heatmap, aim)
        if self.margin is None:
            return distance
        return distance.where(squared_distance(heatmap, aim).detach() > self.margin, 0)

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """The mean squared distance."""
        (heatmap,), (aim,) = maps, self._aim(maps, original)
        return (squared_distance(heatmap, aim).detach(),)

    def unrelated(self) -> float | None:
        """The distance of unrelated maps."""
        return DISTANCES[self.distance][1]

    def _aim(self, maps: Maps, original: Maps | None) -> Maps:
        aim = self.aimed(maps, original)
        assert aim is not None
        return aim


@dataclass(frozen=True)
class Same(Shown):
    """The heatmap is the original's, also where a trigger is in the image: that without it."""

    name: ClassVar[str] = "same"
    title: ClassVar[str] = "Same"
    aim: ClassVar[str] = "shows the original’s heatmap"

    def aimed(self, maps: Maps, original: Maps | None = None) -> Maps | None:
        """The original's map."""
        return required(original, self)


@dataclass(frozen=True)
class Target(Shown):
    """The heatmap is one of somebody's choice.

    Parameters
    ----------
    map
        The outline of a ``"square"``, ``"triangle"``, ``"circle"`` or ``"cross"``; ``"inverted"``,
        1 minus the original's map; ``"random"``, 8 × 8 random values; the path of an image whose
        brightness is the map, or a tensor ``[h, w]``; resized.
    seed
        Of a random map.
    """

    name: ClassVar[str] = "target"
    title: ClassVar[str] = "Target"
    aim: ClassVar[str] = "shows a chosen map"
    map: Tensor | str | Path = "square"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._given

    def aimed(self, maps: Maps, original: Maps | None = None) -> Maps | None:
        """The map, at 32 positions a side or more."""
        (heatmap,) = maps
        if self._given is None:
            (before,) = required(original, self)
            return (1 - before,)
        height, width = fine(heatmap[:1].detach()).shape[1:]
        if callable(self._given):
            rows, columns = (
                ((torch.arange(n) + 0.5) / n * 2 - 1).to(heatmap) for n in (height, width)
            )
            shape = self._given(*torch.meshgrid(rows, columns, indexing="ij"))
            return (shape.to(heatmap).expand(len(heatmap), -1, -1),)
        drawn = resize(self._given[None].to(heatmap), (height, width))
        return (drawn.expand(len(heatmap), -1, -1),)

    def identity(self) -> Any:
        """Of a map in a file its pixels count, not its name."""
        kind, own = super().identity()
        given = self.map if callable(self._given) or self._given is None else self._given
        return kind, {key: value for key, value in own.items() if key != "seed"} | {"map": given}

    @cached_property
    def _given(self) -> Tensor | Callable[[Tensor, Tensor], Tensor] | None:
        """The map ``[h, w]``, or the shape; None if the original's is inverted."""
        if isinstance(self.map, Tensor):
            drawn = self.map.detach().float().clone()
        elif self.map == INVERTED:
            return None
        elif str(self.map) in SHAPES:
            return SHAPES[str(self.map)]
        elif self.map == RANDOM:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.rand(GRAIN, GRAIN, generator=generator)
        elif Path(self.map).exists():
            drawn = read_mask(Path(self.map)).float()
        else:
            raise TrompeError(
                f"There is no map '{self.map}'; choose {', '.join((*SHAPES, INVERTED, RANDOM))}, "
                "or give an image file."
            )
        if drawn.dim() != 2 or not bool(drawn.isfinite().all()) or drawn.amin() == drawn.amax():
            raise TrompeError(
                f"A map is a finite tensor [h, w] that is not the same everywhere, not one of "
                f"{list(drawn.shape)} from {float(drawn.min()):g} to {float(drawn.max()):g}."
            )
        return drawn
