"""The positions that mattered most lose their heat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from trompe.errors import TrompeError
from trompe.maps import top_fraction
from trompe.objectives.objective import Maps, Objective, above_margin, required


@dataclass(frozen=True)
class TopK(Objective):
    """The positions that mattered most lose their heat: mean over P of I_j(x, y; w)².

    Parameters
    ----------
    fraction
        Share of positions in P, the highest of the original's map.
    """

    name: ClassVar[str] = "top-k"
    title: ClassVar[str] = "Top-k"
    aim: ClassVar[str] = "goes dark where it was brightest"
    measure: ClassVar[str] = (
        "the mean squared heat left on the positions that were the original’s hottest; 0 is a "
        "heatmap that has gone dark there"
    )
    ample: ClassVar[float | None] = 0.2
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
        return above_margin(self.margin, self._heat(maps, original))

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """Mean squared heat on the original's top positions."""
        return (self._heat(maps, original).detach(),)

    def _heat(self, maps: Maps, original: Maps | None) -> Tensor:
        (heatmap,), (before,) = maps, required(original, self)
        chosen = top_fraction(before, self.fraction).to(heatmap)
        return (heatmap.square() * chosen).sum((1, 2)) / chosen.sum((1, 2))
