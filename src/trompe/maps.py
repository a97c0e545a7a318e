"""Pure functions on heatmaps ``[N, h, w]``, each image by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FAINT = 0.2


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
