"""Where the prediction suffers: the model-agnostic map that explanations are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trompe.audit.evidence.base import Evidence, Picture
from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import occlusion_maps, on_grid
from trompe.explainers import Explainer, Recording
from trompe.maps import by_maximum, spearman
from trompe.models.call import placed


def covered(seen: Observations) -> Tensor:
    """What the prediction (log-odds) of the parts loses where a cell is filled in ``[M, g, g]``."""
    images, classes = seen.parts
    found = []
    for batch in seen.batches(len(images)):
        part = placed(images[batch], seen.model)
        chosen = classes[batch].to(part.device)[:, None]

        def log_odds(given: Tensor, chosen: Tensor = chosen) -> Tensor:
            with Recording(seen.model, ()) as forward:
                logits = forward(given).float()
            others = logits.scatter(1, chosen, -torch.inf).logsumexp(1)
            return logits.gather(1, chosen)[:, 0] - others

        found.append(occlusion_maps(log_odds, part).cpu())
    return torch.cat(found)


def agreement_with(lost: Tensor, maps: Maps) -> Maps:
    """Rank correlation of maps with what the prediction loses where a part is taken away."""
    lost = lost.clamp_min(0)
    return {e: spearman(on_grid(m[: len(lost)]), lost).float() for e, m in maps.items()}


class Occlusion(Evidence):
    """Rank correlation of the map with what the prediction loses where a part is taken away."""

    name = "occlusion"
    question = "Is the map hot where covering the image hurts?"
    suspicious = "low"

    def measure(self, seen: Observations) -> Maps:
        """The rank correlation of every part's map."""
        return agreement_with(seen[covered], seen.maps)

    def change(self, seen: Observations, before: Observations) -> Maps:
        """How much better the map agrees with the suspect's occlusion map than the other's does."""
        now, then = (agreement_with(seen[covered], o.maps) for o in (seen, before))
        return {e: now[e] - then[e] for e in now if e in then}

    def pictures(self, seen: Observations, explainer: Explainer, place: int) -> Sequence[Picture]:
        """Where covering hurts."""
        heat = by_maximum(seen[covered][place][None])[0]
        return (Picture("where covering hurts", seen.probe.images[place], heat),)
