"""Whether what the map marks is what the prediction rests on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trompe.audit.evidence.base import Evidence
from trompe.audit.evidence.occlusion import covered
from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import GRID, gap, on_grid
from trompe.explainers import Recording
from trompe.models.call import placed


class Gaps(NamedTuple):
    """ROAD gaps ``[M]`` of the probability in the order of maps, of occlusion maps, of chance."""

    maps: Maps
    occlusion: Tensor
    random: Tensor


def gaps(seen: Observations) -> Gaps:
    """Take the parts away cell by cell, most relevant first and last, in several orders."""
    images, classes = seen.parts
    count = len(images)
    random = torch.rand(count, GRID, GRID, generator=torch.Generator().manual_seed(0))
    orders = [*(on_grid(m[:count]) for m in seen.maps.values()), seen[covered], random]
    found: list[list[Tensor]] = [[] for _ in orders]
    for batch in seen.batches(count):
        part = placed(images[batch], seen.model)
        chosen = classes[batch].to(part.device)[:, None]

        def probability(given: Tensor, chosen: Tensor = chosen) -> Tensor:
            with Recording(seen.model, ()) as forward:
                return forward(given).float().softmax(1).gather(1, chosen)[:, 0]

        for order, of in zip(orders, found, strict=True):
            of.append(gap(probability, part, order[batch].to(part.device)).cpu())
    *maps, occlusion, chance = (torch.cat(of) for of in found)
    return Gaps(dict(zip(seen.maps, maps, strict=True)), occlusion, chance)


class Faithfulness(Evidence):
    """ROAD gap of the map's order above a random one, as a share of what occlusion reaches.

    1: as good an order as the model-agnostic occlusion map's; 0: no better than chance.
    """

    name = "faithfulness"
    question = "Does the prediction suffer more where the map is hot than where it is cold?"
    suspicious = "low"
    changes = False  # the other model is not taken apart

    def measure(self, seen: Observations) -> Maps:
        """The share of every part."""
        found = seen[gaps]
        best = (found.occlusion - found.random).mean().clamp_min(1e-3)
        return {e: (of - found.random) / best for e, of in found.maps.items()}
