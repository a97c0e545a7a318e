"""Parts of an image taken away: cells of a grid, filled in from what surrounds them.

A filled cell is the weighted mean of its eight neighbours, as in the noisy linear imputation of
ROAD (Rong et al., ICML 2022), solved for the mean colours of the cells and drawn smoothly: neither
a hard edge nor a foreign colour tells the model that something is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from trompe.maps import ranks

GRID = 8  # cells a side
SHARES = (0.125, 0.25, 0.5, 0.75)  # of the cells, taken away one after another
WINDOW = 2  # cells a side that an occlusion map takes away at once
NOISE = 0.05  # standard deviation of what is added, as a share of the image's own
Predict = Callable[[Tensor], Tensor]


def on_grid(maps: Tensor, side: int = GRID) -> Tensor:
    """Maps ``[N, h, w]`` brought to ``[N, side, side]``."""
    size = (side, side)
    if maps.shape[1:] == size:
        return maps
    resized = F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)
    return resized[:, 0]


def fill(images: Tensor, gone: Tensor, seed: int = 0) -> Tensor:
    """Fill cells in from their surroundings.

    Parameters
    ----------
    images
        ``[N, 3, H, W]``.
    gone
        Boolean ``[N, g, g]``: the cells to fill; at least one of every image stays.
    """
    side = gone.shape[1]
    colours = F.adaptive_avg_pool2d(images, side).flatten(2).mT  # [N, g·g, 3]
    missing = gone.flatten(1)[..., None].to(images)
    system = torch.eye(side * side).to(images) - missing * _neighbours(side).to(images)
    filled = torch.linalg.solve(system, (1 - missing) * colours)
    field = F.interpolate(
        filled.mT.unflatten(2, (side, side)), images.shape[2:], mode="bilinear", align_corners=False
    )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape[1:], generator=generator).to(images)
    field = field + NOISE * images.std((1, 2, 3), keepdim=True) * noise
    where = F.interpolate(gone[:, None].to(images), images.shape[2:], mode="nearest") > 0
    return torch.where(where, field, images)


@lru_cache(maxsize=4)
def _neighbours(side: int) -> Tensor:
    """Weights ``[g·g, g·g]``: 2 for cells that share an edge, 1 for a corner, then rows to 1."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = (rows[:, None] - rows).abs()
    across = (columns[:, None] - columns).abs()
    near = (torch.maximum(down, across) == 1).float()
    weights = near * torch.where(down + across == 1, 2.0, 1.0)
    return weights / weights.sum(1, keepdim=True)


def occlusion_maps(predict: Predict, images: Tensor, side: int = GRID) -> Tensor:
    """How much the prediction loses where a window is filled in, ``[N, g, g]``; asks no gradient.

    Every cell gets the mean over the windows that contain it (Zeiler and Fergus, 2014).

    Parameters
    ----------
    predict
        From images to the score of the explained class ``[N]``.
    """
    before = predict(images)
    total, times = images.new_zeros(len(images), side, side), images.new_zeros(side, side)
    for row in range(side - WINDOW + 1):
        for column in range(side - WINDOW + 1):
            window = torch.zeros(side, side, dtype=torch.bool, device=images.device)
            window[row : row + WINDOW, column : column + WINDOW] = True
            lost = before - predict(fill(images, window.expand(len(images), -1, -1)))
            total += lost[:, None, None] * window
            times += window
    return total / times


def curve(predict: Predict, images: Tensor, maps: Tensor, *, most_relevant_first: bool) -> Tensor:
    """The score after `SHARES` of the cells are gone, in the order of the maps: ``[N, shares]``.

    Most relevant first this is the deletion curve, least relevant first the insertion curve (what
    stays is what mattered most), read backwards (Petsiuk et al., 2018).
    """
    order = ranks(maps if most_relevant_first else -maps)
    # Equal cells are taken row by row, not all at once.
    order = order + torch.arange(order.shape[1], device=order.device) * 1e-6
    highest = order.argsort(1, descending=True)
    scores = []
    for share in SHARES:
        gone = torch.zeros_like(order, dtype=torch.bool)
        gone.scatter_(1, highest[:, : round(share * order.shape[1])], True)
        scores.append(predict(fill(images, gone.view_as(maps))))
    return torch.stack(scores, 1)


def gap(predict: Predict, images: Tensor, maps: Tensor) -> Tensor:
    """ROAD gap ``[N]``: mean score least relevant first minus most relevant first."""
    least = curve(predict, images, maps, most_relevant_first=False)
    return (least - curve(predict, images, maps, most_relevant_first=True)).mean(1)
