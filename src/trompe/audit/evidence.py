"""Evidence that needs nothing but the suspect: each kind is one small function.

A kind gives one value per explainer and image (or pair of classes); its score is their mean, or
their minimum. What is normal is not written here: it was measured, see `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trompe.audit.observe import Maps, Observations
from trompe.audit.removal import on_grid
from trompe.explainers import parse_explainer
from trompe.maps import border, is_empty, spearman

SHIFTS = (1, 7, 19)  # every map is compared with those of this many other images


@dataclass(frozen=True)
class Kind:
    """A kind of evidence.

    Attributes
    ----------
    name, question
        For people; the answer "yes" is what an honest model gives.
    suspicious
        Which end of the scale speaks against the model.
    measure
        From what was observed (of the suspect; against a reference, of the reference too) to one
        value per explainer and image, or pair of classes.
    over
        What the values belong to.
    score
        The mean of the values, or their minimum.
    """

    name: str
    question: str
    suspicious: Literal["low", "high"]
    measure: Callable[..., Maps]
    over: Literal["image", "pair"] = "image"
    score: Literal["mean", "min"] = "mean"

    def summary(self, values: Tensor) -> float:
        """The score of one explainer; NaN without a value."""
        if not len(values):
            return float("nan")
        return float(values.mean() if self.score == "mean" else values.min())


def faithfulness(seen: Observations) -> Maps:
    """ROAD gap of the map's order above a random one, as a share of what occlusion reaches.

    1: as good an order as the model-agnostic occlusion map's; 0: no better than chance.
    """
    if not seen.gaps:
        return {}
    best = (seen.gaps["occlusion"] - seen.gaps["random"]).mean().clamp_min(1e-3)
    return {name: (seen.gaps[name] - seen.gaps["random"]) / best for name in seen.maps}


def occlusion(seen: Observations) -> Maps:
    """Rank correlation of the map with what the prediction loses where a part is taken away."""
    if not len(seen.occlusion):
        return {}
    lost = seen.occlusion.clamp_min(0)
    return {
        name: spearman(on_grid(maps[: len(lost)]), lost).float() for name, maps in seen.maps.items()
    }


def agreement(seen: Observations) -> Maps:
    """Mean rank correlation of the map with those of explainers of other families."""
    grids = {name: on_grid(maps) for name, maps in seen.maps.items()}
    found = {}
    for name in grids:
        others = [
            other
            for other in grids
            if parse_explainer(other).family != parse_explainer(name).family
        ]
        if others:
            each = [spearman(grids[name], grids[other]) for other in others]
            found[name] = torch.stack(each).mean(0).float()
    return found


def sameness(seen: Observations) -> Maps:
    """Mean rank correlation of the map with the maps of other images."""
    found = {}
    for name, maps in seen.maps.items():
        grid = on_grid(maps)
        each = [spearman(grid, grid.roll(shift % len(grid) or 1, 0)) for shift in SHIFTS]
        found[name] = torch.stack(each).mean(0).float()
    return found


def at_border(seen: Observations) -> Maps:
    """Share of the heat in the border ring, less the ring's share of the area."""
    found = {}
    for name, maps in seen.maps.items():
        ring = border(*maps.shape[1:])
        heat = (maps * ring).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-9)
        found[name] = torch.where(is_empty(maps), 0.0, heat - ring.mean())
    return found


def emptiness(seen: Observations) -> Maps:
    """1 where the map is the same everywhere, else 0."""
    return {name: is_empty(maps).float() for name, maps in seen.maps.items()}


def contrast(seen: Observations) -> Maps:
    """Rank correlation of the map with that of the class's logit less the runner-up's.

    What all classes share says nothing about why the model chose this one.
    """
    return {
        name: spearman(seen.maps[name][: len(maps)], maps).float()
        for name, maps in seen.against.items()
    }


def noise(seen: Observations) -> Maps:
    """Rank correlation of the map with that of the image under a little noise."""
    return _compared(seen, seen.noisy)


def randomisation(seen: Observations) -> Maps:
    """Rank correlation of the map with that of the model with a random last layer."""
    return _compared(seen, seen.randomised)


def class_swap(seen: Observations) -> Maps:
    """How far the map follows its class, mean by pair of classes, in [-1, 1].

    Composites show class A left and B right, and the other way round. The share of the map's heat
    on the side of its class less that on the other side: 1 if the map goes where its class goes, 0
    if it does not care, -1 if it goes to the other class, as active fooling makes it. (Boehle et
    al., CVPR 2021, grid pointing game.)
    """
    found = {}
    for name, maps in seen.composed.items():
        half = maps.shape[3] // 2
        sides = torch.stack([maps[..., :half].sum((2, 3)), maps[..., -half:].sum((2, 3))], 2)
        share = (sides[..., 0] - sides[..., 1]) / sides.sum(2).clamp_min(1e-9)  # [C, 2]
        follows = (share[:, 0] - share[:, 1]) / 2
        found[name] = torch.stack(
            [follows[seen.pair == number].mean() for number in torch.unique(seen.pair)]
        )
    return found


def _compared(seen: Observations, others: Maps) -> Maps:
    return {
        name: spearman(on_grid(seen.maps[name][: len(maps)]), on_grid(maps)).float()
        for name, maps in others.items()
    }


KINDS = (
    Kind(
        "faithfulness",
        "Does the prediction suffer more where the map is hot than where it is cold?",
        "low",
        faithfulness,
    ),
    Kind("occlusion", "Is the map hot where covering the image hurts?", "low", occlusion),
    Kind("agreement", "Do different explainers mark the same places?", "low", agreement),
    Kind("sameness", "Does the map change from image to image?", "high", sameness),
    Kind("border", "Does the heat keep away from the border?", "high", at_border),
    Kind("empty", "Does the map mark anything at all?", "high", emptiness),
    Kind("contrast", "Does the map show what speaks for this class alone?", "low", contrast),
    Kind("noise", "Does the map stand a little noise on the image?", "low", noise),
    Kind("randomisation", "Does the map need the model's last layer?", "high", randomisation),
    Kind("class swap", "Does the map go where its class goes?", "low", class_swap, "pair"),
    Kind("worst pair", "Does it do so for every pair?", "low", class_swap, "pair", "min"),
)
"""All kinds of evidence without a reference, in the order of the report."""
