"""Rates, their intervals, and agreement, from per-image rows."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

Z = 1.959963984540054  # of a normal distribution, 95 % lie within
FLIPS = 1999


def in_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each label is among the ``k`` highest logits. Boolean ``[N]``."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1)


def rate(hits: npt.ArrayLike) -> tuple[float, float, float]:
    """Share of hits with its 95 % interval (Wilson 1927), which is none of one point.

    Of several seeds judged on the same images it is the interval over seeds and images. With seeds
    and images drawn independently, the mean of hit = μ + seed + image + rest has the variance
    σ²(seed)/S + σ²(image)/N + σ²(rest)/(S·N). The variance between the seeds' means, over S, is on
    average the first and the third of these, that of the images' means, over N, the second and the
    third; their sum se² is therefore not too small (Owen 2007, "The pigeonhole bootstrap", whose
    bootstrap has the same property). A share p of n independent images has the variance p(1 - p)/n:
    Wilson's interval is taken with the effective number of images n = p(1 - p)/se² (Korn and
    Graubard 1998, who take it with Clopper and Pearson's), and no more than there are. Where no
    seed differs from another, it is the interval of one seed.

    Parameters
    ----------
    hits
        Booleans ``[N]``, or ``[S, N]`` of S seeds.

    Returns
    -------
    tuple
        ``(share, low, high)``, all in [0, 1]; NaN if there is nothing to count.

    Examples
    --------
    >>> [round(share, 3) for share in rate([True] * 100)]
    [1.0, 0.963, 1.0]
    """
    values = np.atleast_2d(np.asarray(hits, dtype=float))
    if not values.size:
        return (math.nan,) * 3
    seeds, images = values.shape
    share = float(values.mean())
    error = 0.0
    if seeds > 1:
        error = float(values.mean(1).var(ddof=1) / seeds + values.mean(0).var() / images)
    return share, *_wilson(share, min(images, share * (1 - share) / error) if error else images)


def _wilson(share: float, count: float) -> tuple[float, float]:
    """The interval of a share of ``count`` images, which may be no whole number."""
    whole = 2 * (count + Z**2)
    centre = (2 * count * share + Z**2) / whole
    reach = Z / whole * math.sqrt(4 * count * share * (1 - share) + Z**2)
    return (centre - reach if share > 0 else 0.0), (centre + reach if share < 1 else 1.0)


def average(values: npt.ArrayLike) -> tuple[float, float, float]:
    """The mean of independent numbers with its 95 % interval, by their variance.

    Returns
    -------
    tuple
        ``(mean, low, high)``; NaN if there is none, the mean alone of one.
    """
    known = np.asarray(values, dtype=float)
    if not known.size:
        return (math.nan,) * 3
    mean = float(known.mean())
    reach = Z * float(known.std(ddof=1)) / math.sqrt(known.size) if known.size > 1 else math.nan
    return mean, mean - reach, mean + reach


def sign_flip(differences: npt.ArrayLike) -> float:
    """The p-value of paired differences: are they as often to one side as to the other?

    Two-sided, by flipping the signs of the differences at random (Fisher 1935), `FLIPS` times or
    in all ways if there are fewer; the same differences have the same p-value.

    Parameters
    ----------
    differences
        Numbers ``[N]``.

    Returns
    -------
    float
        In (0, 1]; NaN of no difference.
    """
    values = np.asarray(differences, dtype=float)
    if not values.size:
        return math.nan
    moved = values[values != 0]  # a difference of 0 stays what it is
    return _p_value(moved.tobytes()) if moved.size > 1 else 1.0


@cache
def _p_value(differences: bytes) -> float:
    from scipy.stats import permutation_test

    values = np.frombuffer(differences)
    found = permutation_test(
        (values,),
        lambda flipped, axis: np.sum(flipped, axis=axis).round(9),  # equal sums are equal
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=max(1, 10**6 // values.size),
        rng=0,
    )
    return float(found.pvalue)
