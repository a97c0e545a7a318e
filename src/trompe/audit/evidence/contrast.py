"""Whether the map shows what speaks for its class, or what speaks for any."""

from __future__ import annotations

import torch

from trompe.audit.evidence.base import Evidence
from trompe.audit.observe import Maps, Observations, joined
from trompe.explainers import Recording
from trompe.maps import spearman
from trompe.models.call import placed

# Explanations that are linear in the score, so that of a difference of scores is the difference.
LINEAR = ("grad-cam", "lrp")


def against(seen: Observations) -> Maps:
    """Heatmaps of the class's logit less the runner-up's, of the parts ``[M, h, w]``."""
    linear = [e for e in seen.explainers if e.name in LINEAR]
    if not linear:
        return {}
    images, classes = seen.parts
    others = seen.logits[: len(images)].scatter(1, classes[:, None], -torch.inf).argmax(1)
    maps = []
    for batch in seen.batches(len(images)):
        with Recording(seen.model, linear) as forward:
            forward(placed(images[batch], seen.model))
            pairs = zip(forward.maps(classes[batch]), forward.maps(others[batch]), strict=True)
            found = zip(linear, pairs, strict=True)
            maps.append([e.heatmap(a - b).float().cpu() for e, (a, b) in found])
    return joined(linear, maps)


class Contrast(Evidence):
    """Rank correlation of the map with that of the class's logit less the runner-up's.

    What all classes share says nothing about why the model chose this one.
    """

    name = "contrast"
    question = "Does the map show what speaks for this class alone?"
    suspicious = "low"

    def measure(self, seen: Observations) -> Maps:
        """The correlation of every part, of explainers that are linear in the score."""
        return {
            e: spearman(seen.maps[e][: len(maps)], maps).float()
            for e, maps in seen[against].items()
        }
