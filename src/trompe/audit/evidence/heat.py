"""Where the heat of a map lies, if it has any."""

from __future__ import annotations

import torch

from trompe.audit.evidence.base import Evidence
from trompe.audit.observe import Maps, Observations
from trompe.maps import border, is_empty


class Border(Evidence):
    """Share of the heat in the border ring, less the ring's share of the area."""

    name = "border"
    question = "Does the heat keep away from the border?"
    suspicious = "high"

    def measure(self, seen: Observations) -> Maps:
        """The share of every image; 0 for an empty map."""
        found = {}
        for e, maps in seen.maps.items():
            ring = border(*maps.shape[1:])
            heat = (maps * ring).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-9)
            found[e] = torch.where(is_empty(maps), 0.0, heat - ring.mean())
        return found


class Empty(Evidence):
    """1 where the map is the same everywhere, else 0."""

    name = "empty"
    question = "Does the map mark anything at all?"
    suspicious = "high"

    def measure(self, seen: Observations) -> Maps:
        """0 or 1 of every image."""
        return {e: is_empty(maps).float() for e, maps in seen.maps.items()}
