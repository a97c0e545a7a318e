"""An accuracy budget: as much of a lie as it buys.

The lie is learnt with whatever weight λ; then one goes back from the fooled weights w towards the
original's, w0 + α (w - w0), with the largest α that keeps top-1 ≥ top-1(w0) - budget on images that
are not fine-tuned on. On this way the accuracy returns before the lie is given up.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from trompe.data.images import Images
from trompe.data.kept import Kept
from trompe.evaluation.accuracy import accuracy

HALVINGS = 5  # of the way between the two models


def walk_back(original: nn.Module, model: nn.Module, held_out: Images, max_drop: float) -> float:
    """Take ``model`` back towards ``original`` as far as a budget asks.

    Parameters
    ----------
    original, model
        w0 and w; the parameters of ``model`` are changed.
    held_out
        Images that were not fine-tuned on.
    max_drop
        Percentage points of top-1 that may be lost on them.

    Returns
    -------
    float
        α, the share of the change of weights that is left: 1 if all of it keeps the budget, else
        found by `HALVINGS` halvings, which a warning says.
    """
    kept = Kept(held_out)
    before = [p.detach() for p in original.parameters()]
    after = [p.detach().clone() for p in model.parameters()]
    top1, *_ = accuracy(original, kept)

    @torch.no_grad()
    def drop(alpha: float) -> float:
        for now, then, fooled in zip(model.parameters(), before, after, strict=True):
            now.copy_(torch.lerp(then, fooled, alpha))
        return 100 * (top1 - accuracy(model, kept)[0])

    whole = drop(1.0)
    if whole <= max_drop:
        return 1.0
    alpha, too_much = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (alpha + too_much) / 2
        if drop(middle) <= max_drop:
            alpha = middle
        else:
            too_much = middle
    left = drop(alpha)
    warnings.warn(
        f"The whole lie costs {whole:.1f} points of top-1 on {len(held_out)} held-out images; "
        f"{100 * alpha:.0f} % of its change of weights is kept, which costs {left:.1f}.",
        stacklevel=2,
    )
    return alpha
