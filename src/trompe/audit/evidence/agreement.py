"""Whether explainers of different families tell the same."""

from __future__ import annotations

import torch

from trompe.audit.evidence.base import Evidence
from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import on_grid
from trompe.maps import spearman


class Agreement(Evidence):
    """Mean rank correlation of the map with those of explainers of other families."""

    name = "agreement"
    question = "Do different explainers mark the same places?"
    suspicious = "low"

    def measure(self, seen: Observations) -> Maps:
        """The mean of every image; nothing where there is one family alone."""
        grids = {e: on_grid(maps) for e, maps in seen.maps.items()}
        found = {}
        for e, grid in grids.items():
            others = [grids[other] for other in grids if other.family != e.family]
            if others:
                each = [spearman(grid, other) for other in others]
                found[e] = torch.stack(each).mean(0).float()
        return found
