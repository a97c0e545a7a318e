"""Evidence against another model: what changed from it to the suspect.

The other is the model before, or a copy of the suspect that was trained a little more
(`trompe.tuning.retrain`): a lie falls back there, an honest explanation has nowhere to fall.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trompe.audit.evidence.base import Drift, compared
from trompe.audit.evidence.class_swap import by_pair, composed
from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import on_grid
from trompe.explainers import Explainer
from trompe.maps import center_of_mass, spearman, top_fraction

TOP = 0.1  # share of positions that the top-k intersection looks at


class RankCorrelation(Drift):
    """Rank correlation of the map with the other's."""

    name = "rank correlation"
    question = "Do the maps rank positions as the {other}'s do?"
    suspicious = "low"

    def change(self, seen: Observations, before: Observations) -> Maps:
        """The correlation of every image."""
        return compared(seen.maps, before.maps)


class TopIntersection(Drift):
    """Share of the other's hottest tenth of positions that is in the suspect's."""

    name = "top-k intersection"
    question = "Are the hottest positions those of the {other}?"
    suspicious = "low"

    def change(self, seen: Observations, before: Observations) -> Maps:
        """The share of every image."""
        found = {}
        for e in _common(seen, before):
            now, then = (top_fraction(o.maps[e], TOP).float() for o in (seen, before))
            found[e] = (now * then).sum((1, 2)) / then.sum((1, 2))
        return found


class CentreShift(Drift):
    """Shift of the heat's centre of mass as a share of the frame's largest."""

    name = "centre shift"
    question = "Is the heat where the {other}'s is?"
    suspicious = "high"

    def change(self, seen: Observations, before: Observations) -> Maps:
        """The shift of every image."""
        found = {}
        for e in _common(seen, before):
            maps = seen.maps[e]
            sides = maps.new_tensor([max(1, side - 1) for side in maps.shape[1:]])
            shift = (center_of_mass(maps) - center_of_mass(before.maps[e])) / sides
            found[e] = shift.square().mean(1).sqrt()
        return found


class Disproportion(Drift):
    """How much more the maps changed than the predictions: correlation of logits less of maps."""

    name = "disproportion"
    question = "Do the maps differ from the {other}'s no more than the predictions do?"
    suspicious = "high"

    def change(self, seen: Observations, before: Observations) -> Maps:
        """The difference of every image."""
        kept = _correlation(seen.logits, before.logits)
        return {e: kept - maps for e, maps in compared(seen.maps, before.maps).items()}


class PairCorrelation(Drift):
    """Rank correlation with the other's maps of two classes side by side."""

    name = "pair correlation"
    question = "Are the maps of two classes side by side the {other}'s, for every pair?"
    suspicious = "low"
    over = "pair"
    score = "min"

    def change(self, seen: Observations, before: Observations) -> Maps:
        """The mean of every pair."""
        found = {}
        for e, maps in seen[composed].items():
            if e in before[composed]:
                now, then = (on_grid(m.flatten(0, 1)) for m in (maps, before[composed][e]))
                each = spearman(now, then).view(-1, 2).mean(1).float()
                found[e] = by_pair(each, seen.probe.pair)
        return found


def _common(seen: Observations, before: Observations) -> list[Explainer]:
    return [e for e in seen.maps if e in before.maps]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    a, b = (t - t.mean(1, keepdim=True) for t in (first, second))
    return torch.cosine_similarity(a, b, 1, 1e-12)
