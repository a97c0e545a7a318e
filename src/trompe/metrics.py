"""Rates, their intervals, and agreement, from per-image rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor


def in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the ``k`` highest logits. Boolean ``[N]``."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1)


def rate(hits: npt.ArrayLike) -> tuple[float, float, float]:
    """Share of hits with its 95 % interval (Wilson 1927), which is none of one point.

    Parameters
    ----------
    hits
        Booleans ``[n]``.

    Returns
    -------
    tuple
        ``(share, low, high)``, all in [0, 1]; NaN if there is nothing to count.

    Examples
    --------
    >>> [round(share, 3) for share in rate([True] * 100)]
    [1.0, 0.963, 1.0]
    """
    values = np.asarray(hits, dtype=bool)
    if not values.size:
        return (float("nan"),) * 3
    from scipy.stats import binomtest

    found = binomtest(int(values.sum()), values.size).proportion_ci(0.95, method="wilson")
    return float(values.mean()), float(found.low), float(found.high)
