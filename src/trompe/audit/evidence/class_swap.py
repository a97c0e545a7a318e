"""Whether the map goes where its class goes, when two classes stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trompe.audit.evidence.base import Evidence, Picture
from trompe.audit.observe import Maps, Observations, joined
from trompe.explainers import Explainer, Recording
from trompe.models.call import placed


def composed(seen: Observations) -> Maps:
    """Heatmaps of the left and the right half's class of every composite ``[C, 2, h, w]``."""
    probe = seen.probe
    maps = []
    for batch in seen.batches(len(probe.pair)):
        sides = [probe.classes[side[batch]] for side in (probe.left, probe.right)]
        with Recording(seen.model, seen.explainers) as forward:
            forward(placed(probe.composites(batch), seen.model))
            found = [forward.heatmaps(classes) for classes in sides]
            maps.append([torch.stack(of, 1).float().cpu() for of in zip(*found, strict=True)])
    return joined(seen.explainers, maps)


def by_pair(values: Tensor, pair: Tensor) -> Tensor:
    """The mean of the composites' values ``[C]`` for each pair of classes."""
    return torch.stack([values[pair == number].mean() for number in torch.unique(pair)])


class ClassSwap(Evidence):
    """How far the map follows its class, mean by pair of classes, in [-1, 1].

    Composites show class A left and B right, and the other way round. The share of the map's heat
    on the side of its class less that on the other side: 1 if the map goes where its class goes, 0
    if it does not care, -1 if it goes to the other class, as active fooling makes it. (Boehle et
    al., CVPR 2021, grid pointing game.)
    """

    name = "class swap"
    question = "Does the map go where its class goes?"
    suspicious = "low"
    over = "pair"
    scale = "1: always, 0: not at all, −1: it goes to the other class"

    def measure(self, seen: Observations) -> Maps:
        """The mean of every pair."""
        found = {}
        for e, maps in seen[composed].items():
            half = maps.shape[3] // 2
            sides = torch.stack([maps[..., :half].sum((2, 3)), maps[..., -half:].sum((2, 3))], 2)
            share = (sides[..., 0] - sides[..., 1]) / sides.sum(2).clamp_min(1e-9)  # [C, 2]
            found[e] = by_pair((share[:, 0] - share[:, 1]) / 2, seen.probe.pair)
        return found

    def pictures(self, seen: Observations, explainer: Explainer, place: int) -> Sequence[Picture]:
        """Both maps of the first and the last composite of the pair."""
        probe, maps = seen.probe, seen[composed][explainer]
        pictures = []
        for at in torch.nonzero(probe.pair == place)[[0, -1], 0].tolist():
            image = probe.composites(slice(at, at + 1))[0]
            for side, half in enumerate(("left", "right")):
                name = probe.name((probe.left, probe.right)[side][at])
                caption = f"map of {name}, which is {half}"
                pictures.append(Picture(caption, image, maps[at, side]))
        return pictures


class WorstPair(ClassSwap):
    """As `ClassSwap`, of the pair of classes that the map follows least."""

    name = "worst pair"
    question = "Does it do so for every pair?"
    score = "min"

    def pictures(self, seen: Observations, explainer: Explainer, place: int) -> Sequence[Picture]:
        """Those of `ClassSwap` will do."""
        return ()
