"""Whether the map depends on the image at all."""

from __future__ import annotations

import torch

from trompe.audit.evidence.base import Evidence
from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import on_grid
from trompe.maps import spearman

SHIFTS = (1, 7, 19)  # every map is compared with those of this many other images


class Sameness(Evidence):
    """Mean rank correlation of the map with the maps of other images."""

    name = "sameness"
    question = "Does the map change from image to image?"
    suspicious = "high"

    def measure(self, seen: Observations) -> Maps:
        """The mean of every image."""
        found = {}
        for e, maps in seen.maps.items():
            grid = on_grid(maps)
            each = [spearman(grid, grid.roll(shift % len(grid) or 1, 0)) for shift in SHIFTS]
            found[e] = torch.stack(each).mean(0).float()
        return found
