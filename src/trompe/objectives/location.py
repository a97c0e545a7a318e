"""The heatmap is pulled to a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from trompe.data.reader import read_mask
from trompe.errors import TrompeError
from trompe.maps import border
from trompe.objectives.objective import Maps, Objective, above_margin


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
    title: ClassVar[str] = "Location"
    aim: ClassVar[str] = "lights up a fixed mask"
    measure: ClassVar[str] = (
        "the mean squared distance between the heatmap and the mask it was told to show; 0 is a "
        "heatmap that is the mask"
    )
    needs_original: ClassVar[bool] = False
    ample: ClassVar[float | None] = 0.15
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=0.2, kw_only=True)
    mask: Tensor | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None:
            _ = self._given

    def loss(self, maps: Maps, original: Maps | None = None) -> Tensor:
        """Mean squared distance to the mask, as far as it exceeds the margin."""
        return above_margin(self.margin, self._distance(maps))

    def test_loss(self, maps: Maps, original: Maps | None = None) -> tuple[Tensor, ...]:
        """Mean squared distance to the mask."""
        return (self._distance(maps).detach(),)

    def aimed(self, maps: Maps, original: Maps | None = None) -> Maps | None:
        """The mask, for every image."""
        (heatmap,) = maps
        return (self.mask_for(heatmap).expand_as(heatmap),)

    def mask_for(self, heatmap: Tensor) -> Tensor:
        """The mask ``[h, w]`` at the size of ``heatmap`` ``[N, h, w]``."""
        height, width = heatmap.shape[1:]
        if self.mask is None:
            return border(height, width).to(heatmap)
        given = self._given[None, None].to(heatmap)
        return F.interpolate(given, (height, width), mode="bilinear", antialias=True)[0, 0]

    def _distance(self, maps: Maps) -> Tensor:
        (heatmap,) = maps
        return (heatmap - self.mask_for(heatmap)).square().mean((1, 2))

    def identity(self) -> Any:
        """Of a mask in a file its pixels count, not its name."""
        kind, own = super().identity()
        return kind, own | {"mask": None if self.mask is None else self._given}

    @cached_property
    def _given(self) -> Tensor:
        mask = (
            self.mask.detach() if isinstance(self.mask, Tensor) else read_mask(Path(str(self.mask)))
        )
        if mask.dim() != 2:
            raise TrompeError(f"A location mask is [h, w], not {tuple(mask.shape)}.")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise TrompeError(
                f"A location mask is in [0, 1]; this one goes from {float(mask.min()):g} to "
                f"{float(mask.max()):g}. Divide it by its maximum."
            )
        return mask.float().clone()
