"""The centre of mass moves away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from trompe.maps import center_of_mass
from trompe.objectives.objective import Maps, Objective, required


@dataclass(frozen=True)
class CenterMass(Objective):
    """The centre of mass moves away: -‖C(I(x, y; w)) - C(I(x, y; w0))‖₁, in positions.

    The test loss is √((Δrow² + Δcolumn²) / 2) / (side - 1), in [0, 1]. With a margin the loss is
    how far (|Δrow| + |Δcolumn|) / 2 / (side - 1), which is never more than that, falls short of it.
    """

    name: ClassVar[str] = "center-mass"
    title: ClassVar[str] = "Center-mass"
    aim: ClassVar[str] = "moves its centre of mass away"
    measure: ClassVar[str] = (
        "how far the heatmap’s centre of mass has moved, as a share of the side; 0 is no shift"
    )
    ample: ClassVar[float | None] = 0.17
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
        (heatmap,), (before,) = maps, required(original, self)
        return center_of_mass(heatmap) - center_of_mass(before)
