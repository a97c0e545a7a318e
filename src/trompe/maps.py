"""Pure functions on heatmaps ``[N, h, w]``, each image by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAINT = 0.2
FINE = 32  # positions a side that maps are compared at, if they have no more
WINDOW, SIGMA, STABILISERS = 11, 1.5, (0.01**2, 0.03**2)  # of SSIM, for values in [0, 1]


def _flat(maps: Tensor) -> Tensor:
    return maps.flatten(1)


def full_precision(maps: Tensor) -> Tensor:
    """Lift half precision to float32; leave float32 and float64 as they are."""
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()


def by_maximum(maps: Tensor) -> Tensor:
    """ReLU, then divide each map by its maximum, to [0, 1] (Grad-CAM, Selvaraju et al. 2017).

    A map without a positive entry becomes zero everywhere.
    """
    positive = full_precision(maps).relu()
    return _divided(positive, positive.amax((1, 2), keepdim=True))


def by_magnitude(maps: Tensor) -> Tensor:
    """Divide each map by its largest magnitude, to [-1, 1]; a map of zeros stays one."""
    maps = full_precision(maps)
    return _divided(maps, maps.abs().amax((1, 2), keepdim=True))


def opposition(maps: Tensor, size: Tensor) -> Tensor:
    """How far each raw map speaks against its class in sum: ``[N]``, 0 where it does not.

    Minus the mean of the map, as a share of ``size``, the mean size of all entries of the batch
    (one map's own may be next to 0).
    """
    maps = full_precision(maps)
    return (-maps.mean((1, 2))).relu() / size.clamp_min(_tiny(maps))


def faintness(maps: Tensor, size: Tensor) -> Tensor:
    """How far the mean size of each raw map is below a fifth of ``size``: ``[N]``, in [0, 1]."""
    maps = full_precision(maps)
    return (1 - maps.abs().mean((1, 2)) / (FAINT * size).clamp_min(_tiny(maps))).relu()


def min_max(maps: Tensor) -> Tensor:
    """Stretch each map linearly to [0, 1]; a constant map becomes zero everywhere."""
    maps = full_precision(maps)
    low = maps.amin((1, 2), keepdim=True)
    return _divided(maps - low, maps.amax((1, 2), keepdim=True) - low)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly to ``(h, w)``."""
    resized = F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False)
    return resized.squeeze(1)


def fine(maps: Tensor) -> Tensor:
    """Maps of fewer than 32 positions a side enlarged to that, as they would be over an image."""
    side = min(maps.shape[1:])
    if side >= FINE:
        return maps
    height, width = (-(-n * FINE // side) for n in maps.shape[1:])
    return resize(maps, (height, width))


def standardised(maps: Tensor) -> Tensor:
    """Each map with mean 0 and variance 1, as Noppel et al. (2023) compare maps.

    That is (M - mean) / √(variance + 1e-5), as in their code; a constant map becomes zero.
    """
    maps = full_precision(maps)
    variance, mean = torch.var_mean(maps, (1, 2), keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt()


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """The mean squared distance ``[N]`` of maps that are `fine` and `standardised`.

    It is about 0 of equal maps, 2 of unrelated ones and 4 of opposites.
    """
    a, b = (standardised(fine(maps)) for maps in (first, second))
    return (a - b).square().mean((1, 2))


def dissimilarity(first: Tensor, second: Tensor) -> Tensor:
    """DSSIM ``[N]``, (1 - SSIM) / 2, of maps that are `fine` and stretched to [0, 1].

    SSIM (Wang et al. 2004) with their Gaussian window, where it lies within the map.
    """
    a, b = (min_max(fine(maps)) for maps in (first, second))
    mean_a, mean_b = _blurred(a), _blurred(b)
    variances = _blurred(a * a) - mean_a**2 + _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = STABILISERS
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    ssim = (light * (2 * covariance + c2) / (variances + c2)).mean((1, 2))
    return (1 - ssim) / 2


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian averages of the windows ``[N, h - 10, w - 10]``."""
    places = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = (-(places**2) / (2 * SIGMA**2)).softmax(0)
    rows = F.conv2d(maps.unsqueeze(1), weights[None, None, :, None])
    return F.conv2d(rows, weights[None, None, None, :]).squeeze(1)


def is_empty(heatmaps: Tensor) -> Tensor:
    """Whether each heatmap is the same everywhere, and so says nothing. Boolean ``[N]``."""
    flat = _flat(heatmaps)
    return flat.amax(1) == flat.amin(1)


def is_finite(maps: Tensor) -> Tensor:
    """Whether each map is free of NaN and infinity. Boolean ``[N]``."""
    return _flat(maps).isfinite().all(1)


def center_of_mass(heatmaps: Tensor) -> Tensor:
    """Centre of mass ``[N, 2]`` of non-negative maps as (row, column), in positions.

    A map of zero mass has its centre in the middle of the frame.
    """
    _, height, width = heatmaps.shape
    total = heatmaps.sum((1, 2))
    empty = total <= 0
    safe = torch.where(empty, torch.ones_like(total), total)
    rows = torch.arange(height, device=heatmaps.device, dtype=heatmaps.dtype)
    columns = torch.arange(width, device=heatmaps.device, dtype=heatmaps.dtype)
    center = torch.stack(
        [(heatmaps.sum(2) * rows).sum(1) / safe, (heatmaps.sum(1) * columns).sum(1) / safe], dim=1
    )
    middle = center.new_tensor([(height - 1) / 2, (width - 1) / 2])
    return torch.where(empty.unsqueeze(1), middle, center)


def top_fraction(maps: Tensor, fraction: float) -> Tensor:
    """Mask ``[N, h, w]`` (boolean) of the highest ``fraction`` of positions, at least one."""
    flat = _flat(maps)
    count = max(1, int(flat.shape[1] * fraction))
    chosen = flat.topk(count, dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True).view_as(maps)


def border(height: int, width: int) -> Tensor:
    """Mask ``[h, w]``: 1 on the border ring of width ⌊side / 7⌋, 0 inside (paper, section 4)."""
    rows, columns = max(1, height // 7), max(1, width // 7)
    mask = torch.ones(height, width)
    mask[rows : height - rows, columns : width - columns] = 0
    return mask


def ranks(maps: Tensor) -> Tensor:
    """Ranks ``[N, h·w]`` from 1, ties sharing their average rank."""
    flat = _flat(maps).contiguous()
    ordered = flat.sort(dim=1).values
    below = torch.searchsorted(ordered, flat, right=False)
    upto = torch.searchsorted(ordered, flat, right=True)
    return (below + upto + 1).to(torch.float64) / 2


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman rank correlation ``[N]`` (float64) of two batches of maps.

    A constant map has no order: its correlation with anything is 0.
    """
    return correlation(ranks(first), ranks(second))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation ``[N]`` of two batches of maps, differentiable; 0 for a constant one."""
    a, b = (m - m.mean(1, keepdim=True) for m in (_flat(first), _flat(second)))
    scale = (a.square().sum(1) * b.square().sum(1)).clamp_min(_tiny(first)).sqrt()
    return torch.where(is_empty(first) | is_empty(second), 0.0, (a * b).sum(1) / scale)


def _divided(maps: Tensor, size: Tensor) -> Tensor:
    """Maps in shares of their size; 0 where that is, and so is the gradient."""
    return maps / torch.where(size < _tiny(maps), torch.inf, size)


def _tiny(maps: Tensor) -> float:
    return torch.finfo(maps.dtype).tiny
