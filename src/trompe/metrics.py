"""Rates, their intervals, and agreement, from per-image rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor


def in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the ``k`` highest logits. Boolean ``[N]``."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1)


def rate(
    hits: npt.ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Share of hits with its bootstrap 95 % interval (percentile).

    Resampling n booleans with replacement and averaging is a binomial draw, so that is drawn.

    Parameters
    ----------
    hits
        Booleans ``[n]``.
    resamples
        Number of bootstrap samples.
    seed
        Seed of the bootstrap.

    Returns
    -------
    tuple
        ``(share, low, high)``, all in [0, 1]; NaN if there are no hits to count.
    """
    values = np.asarray(hits, dtype=bool)
    if not values.size:
        return (float("nan"),) * 3
    share = float(values.mean())
    draws = np.random.default_rng(seed).binomial(values.size, share, resamples) / values.size
    low, high = np.quantile(draws, [0.025, 0.975])
    return share, float(low), float(high)
