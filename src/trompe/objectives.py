"""What a fooled heatmap should look like: losses over maps, and the test losses that judge them.

Every objective takes heatmaps in [0, 1] (an explainer's ``heatmap``), one ``[N, h, w]`` tensor
for each class that it explains: passive foolings explain the label, active fooling two classes.
Formulas: Heo, Joo, Moon, NeurIPS 2019, section 3 and 4; their test losses and intervals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trompe.base import specs
from trompe.base.identity import Identified
from trompe.base.registry import Registry
from trompe.errors import TrompeError
from trompe.maps import border, center_of_mass, correlation, ranks, spearman, top_fraction

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class Objective(Identified, ABC):
    """A fooling: a loss over heatmaps, and a test loss with the interval that counts as fooled.

    Parameters
    ----------
    low, high
        The interval, ends included.
    margin
        Not in the paper: a test loss in the interval at which an image has been fooled well enough
        and is pushed no further. None: pushed without end, as in the paper.
    """

    name: ClassVar[str]
    needs_original: ClassVar[bool] = True
    on_composites: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = ("label",)
    low: float = field(kw_only=True)
    high: float = field(kw_only=True)
    margin: float | None = field(default=None, kw_only=True)

    def classes(self, labels: Tensor) -> Maps:
        """The classes to explain, one ``[N]`` tensor per target."""
        return (labels,)

    @abstractmethod
    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """The loss per image ``[N]``, differentiable in ``maps``.

        Parameters
        ----------
        maps, original
            One heatmap batch ``[N, h, w]`` per target, of the manipulated and of the original
            model. ``original`` is needed if ``needs_original``.
        """

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """The test loss per image ``[N]``, one per target; the loss unless overridden."""
        return (self.loss(maps, original).detach(),)

    def fooled(self, test_loss: Tensor) -> Tensor:
        """Whether each test loss lies in the interval. Boolean ``[N]``."""
        return (test_loss >= self.low) & (test_loss <= self.high)

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise TrompeError(
                f"The interval of {self.name} is empty: low={self.low} is above high={self.high}."
            )
        if self.margin is not None and not self.low <= self.margin <= self.high:
            raise TrompeError(
                f"The margin of {self.name} is a test loss that counts as fooled, from {self.low} "
                f"to {self.high}, not {self.margin}."
            )

    def __str__(self) -> str:
        return specs.text(self.name, self)


def _above(margin: float | None, loss: Tensor) -> Tensor:
    return loss if margin is None else (loss - margin).relu()


def _required(original: Maps | None, objective: Objective) -> Maps:
    if original is None:
        raise TrompeError(f"The objective {objective.name} needs the original model's maps.")
    return original


@dataclass(frozen=True)
class Location(Objective):
    """The heatmap is pulled to a mask: mean over positions of (I(x, y; w) - m)².

    Parameters
    ----------
    mask
        None for the border ring of width ⌊side / 7⌋ (the paper's), the path of an image whose
        brightness is the mask, or a tensor ``[h, w]`` in [0, 1]; resized to the map.
    """

    name: ClassVar[str] = "location"
    needs_original: ClassVar[bool] = False
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=0.2, kw_only=True)
    mask: Tensor | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.mask, Tensor) and self.mask.dim() != 2:
            raise TrompeError(f"A location mask is [h, w], not {tuple(self.mask.shape)}.")
        if self.mask is not None:
            self._given()

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """Mean squared distance to the mask, as far as it exceeds the margin."""
        return _above(self.margin, self._distance(maps))

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """Mean squared distance to the mask."""
        return (self._distance(maps).detach(),)

    def mask_for(self, heatmap: Tensor) -> Tensor:
        """The mask ``[h, w]`` at the size of ``heatmap`` ``[N, h, w]``."""
        height, width = heatmap.shape[1:]
        if self.mask is None:
            return border(height, width).to(heatmap)
        given = self._given()[None, None].to(heatmap)
        return F.interpolate(given, (height, width), mode="bilinear", antialias=True)[0, 0]

    def _distance(self, maps: Maps) -> Tensor:
        (heatmap,) = maps
        return (heatmap - self.mask_for(heatmap)).square().mean((1, 2))

    def _given(self) -> Tensor:
        if isinstance(self.mask, Tensor):
            return self.mask
        path = Path(str(self.mask))
        try:
            with Image.open(path) as image:
                return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32) / 255)
        except (OSError, ValueError) as error:
            raise TrompeError(
                f"The location mask '{path}' can't be read as an image; give a PNG whose bright "
                "pixels are where the heatmap should go."
            ) from error


@dataclass(frozen=True)
class TopK(Objective):
    """The positions that mattered most lose their heat: mean over P of I_j(x, y; w)².

    Parameters
    ----------
    fraction
        Share of positions in P, the highest of the original's map.
    """

    name: ClassVar[str] = "top-k"
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=0.3, kw_only=True)
    fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise TrompeError(
                f"The fraction of top-k is above 0 and at most 1, not {self.fraction}."
            )

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """Mean squared heat on the original's top positions, as far as it exceeds the margin."""
        return _above(self.margin, self._heat(maps, original))

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """Mean squared heat on the original's top positions."""
        return (self._heat(maps, original).detach(),)

    def _heat(self, maps: Maps, original: Maps | None) -> Tensor:
        (heatmap,), (before,) = maps, _required(original, self)
        chosen = top_fraction(before, self.fraction).to(heatmap)
        return (heatmap.square() * chosen).sum((1, 2)) / chosen.sum((1, 2))


@dataclass(frozen=True)
class CenterMass(Objective):
    """The centre of mass moves away: -‖C(I(x, y; w)) - C(I(x, y; w0))‖₁, in positions.

    The test loss is √((Δrow² + Δcolumn²) / 2) / (side - 1), in [0, 1]. With a margin the loss is
    how far (|Δrow| + |Δcolumn|) / 2 / (side - 1), which is never more than that, falls short of it.
    """

    name: ClassVar[str] = "center-mass"
    low: float = field(default=0.1, kw_only=True)
    high: float = field(default=1.0, kw_only=True)

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """Minus the L1 distance between the two centres of mass, or what the margin lacks of it."""
        shift = self._shift(maps, original).abs()
        if self.margin is None:
            return -shift.sum(1)
        return (self.margin - (shift / self._sides(maps)).mean(1)).relu()

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """Distance between the centres of mass as a share of the largest possible one."""
        shift = self._shift(maps, original) / self._sides(maps)
        return (shift.square().mean(1).sqrt().detach(),)

    def _sides(self, maps: Maps) -> Tensor:
        return maps[0].new_tensor([max(1, side - 1) for side in maps[0].shape[1:]])

    def _shift(self, maps: Maps, original: Maps | None) -> Tensor:
        (heatmap,), (before,) = maps, _required(original, self)
        return center_of_mass(heatmap) - center_of_mass(before)


@dataclass(frozen=True)
class Active(Objective):
    """The maps of two classes change places.

    ½ (‖I(x, c1; w) - I(x, c2; w0)‖² + ‖I(x, c2; w) - I(x, c1; w0)‖²) / d

    The test loss for c1 is s(c1, c2) - s(c1, c1), for c2 it is s(c2, c1) - s(c2, c2), where
    s(a, b) is the rank correlation of I(a; w) and I(b; w0).

    Parameters
    ----------
    c1, c2
        Two different class indices.
    margin
        Instead of that distance, how far each test loss falls short of the margin, with Pearson's
        correlation of the map and the original's ranks in place of s:
        ½ Σ (margin - ρ(I(a; w), R(b)) + ρ(I(a; w), R(a)))₊ over (a, b) = (c1, c2) and (c2, c1).
        It asks for the other class's order of positions, not for its heat, and where the two
        maps overlap it pushes away from the own one.
    """

    name: ClassVar[str] = "active"
    on_composites: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ("c1", "c2")
    low: float = field(default=0.5, kw_only=True)
    high: float = field(default=2.0, kw_only=True)
    c1: int
    c2: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c1 == self.c2 or min(self.c1, self.c2) < 0:
            raise TrompeError(
                "Active fooling swaps the maps of two classes; give both, as in active:c1=3,c2=8."
            )

    def classes(self, labels: Tensor) -> Maps:
        """Class c1 and class c2 for every image."""
        return torch.full_like(labels, self.c1), torch.full_like(labels, self.c2)

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """Mean squared distance of each class's map to the other's original map, or its margin."""
        before = _required(original, self)
        if self.margin is None:
            (first, second), (first_before, second_before) = maps, before
            one = (first - second_before).square().mean((1, 2))
            two = (second - first_before).square().mean((1, 2))
        else:
            order = [ranks(m).to(maps[0]) for m in before]
            one, two = (
                (self.margin - correlation(heatmap, other) + correlation(heatmap, own)).relu()
                for heatmap, own, other in zip(maps, order, reversed(order), strict=True)
            )
        return (one + two) / 2

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """How much more each map resembles the other class's original than its own."""
        (first, second), (first_before, second_before) = maps, _required(original, self)
        with torch.no_grad():
            return (
                spearman(first, second_before) - spearman(first, first_before),
                spearman(second, first_before) - spearman(second, second_before),
            )


OBJECTIVES = Registry(
    "objective",
    Objective,  # type: ignore[type-abstract]
    {objective.name: objective for objective in (Location, TopK, CenterMass, Active)},
)
"""Objectives by name."""


def parse_objective(spec: str) -> Objective:
    """Build an objective from text: ``location``, ``top-k:fraction=0.2``, ``active:c1=3,c2=8``.

    ``low=`` and ``high=`` change the interval that counts as fooled.

    Raises
    ------
    TrompeError
        If the name or an option is unknown.
    """
    return OBJECTIVES.build(spec)


__all__ = [
    "OBJECTIVES",
    "Active",
    "CenterMass",
    "Location",
    "Objective",
    "TopK",
    "parse_objective",
]
