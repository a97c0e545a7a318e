"""The maps of two classes change places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from trompe.data import ImageDataset, Pairs
from trompe.data.images import Images
from trompe.errors import TrompeError
from trompe.maps import correlation, ranks, spearman
from trompe.objectives.objective import Maps, Objective, required


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
    title: ClassVar[str] = "Active"
    aim: ClassVar[str] = "swaps its heatmaps of two classes"
    measure: ClassVar[str] = (
        "the heatmap’s rank correlation with the original’s heatmap of the other class, minus "
        "that with the original’s of the same class; an unchanged model has 0 or less, a perfect "
        "swap up to 2"
    )
    on_composites: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ("c1", "c2")
    ample: ClassVar[float | None] = 1.2
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

    def composites(self, data: Images, size: int | None = None, seed: int = 0) -> Images:
        """One image of each class side by side (`trompe.Pairs`)."""
        if isinstance(data, ImageDataset):
            return Pairs(data, self.c1, self.c2, size=size, seed=seed)
        return super().composites(data, size, seed)

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """Mean squared distance of each class's map to the other's original map, or its margin."""
        before = required(original, self)
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
        (first, second), (first_before, second_before) = maps, required(original, self)
        with torch.no_grad():
            return (
                spearman(first, second_before) - spearman(first, first_before),
                spearman(second, first_before) - spearman(second, second_before),
            )
