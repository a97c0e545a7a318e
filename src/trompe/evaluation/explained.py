"""What models say of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trompe.explainers import Explainer, Recording
from trompe.explainers.targets import Target
from trompe.maps import is_finite

# (model, place of the target, explainer) -> maps [N, h, w], or whether each is finite [N]
Maps = dict[tuple[str, int, Explainer], Tensor]


class Explained(NamedTuple):
    """What the models say of a batch: logits by model, raw maps and heatmaps.

    A map that is not finite is 0 everywhere in ``raw`` and ``heatmaps``.
    """

    logits: dict[str, Tensor]
    raw: Maps
    heatmaps: Maps
    finite: Maps


@torch.no_grad()
def explain(
    models: Mapping[str, nn.Module],
    images: Tensor,
    explainers: Sequence[Explainer],
    asked: Sequence[Target],
) -> Explained:
    """Explain the targets that are asked for by every model and explainer."""
    logits, raw, finite = {}, {}, {}
    for name, model in models.items():
        with Recording(model, explainers if asked else ()) as forward:
            logits[name] = forward(images)
            for place, target in enumerate(asked):
                for explainer, maps in zip(explainers, forward.maps(target), strict=True):
                    key = name, place, explainer
                    finite[key] = is_finite(maps)
                    raw[key] = maps.where(finite[key][:, None, None], 0)
    heatmaps = {key: key[2].heatmap(maps) for key, maps in raw.items()}
    return Explained(logits, raw, heatmaps, finite)
