"""An accuracy budget in place of a hand-set λ: the strongest lie that it buys.

maximise the fooling success subject to top-1(w) ≥ top-1(w0) - budget, on images that are not
fine-tuned on. First the lie, at any price: a multiplier on every λ rises until the batches are
fooled. Then back towards the original's weights, w0 + α (w - w0), with the largest α that keeps the
budget: on this way the accuracy returns before the lie is given up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from trompe.data.kept import Kept
from trompe.evaluate import Images
from trompe.train import accuracy

CHECKS = 16  # in a run
RISE = 0.3  # of the multiplier's logarithm per check
ENOUGH = 0.95  # share of fooled images in the batches above which λ need not rise
HALVINGS = 5  # of the way between the two models
SHARE, LARGEST = 0.2, 1000  # of the data that is held out: this share, but not more images


class Budget:
    """The multiplier of every λ while the lie is learnt, and the way back afterwards.

    Parameters
    ----------
    max_drop
        Largest loss of top-1 accuracy on ``held_out``, as a share.
    held_out
        Images that are not fine-tuned on.
    steps
        Length of the run.
    """

    def __init__(self, max_drop: float, held_out: Images, *, steps: int) -> None:
        self.max_drop = max_drop
        self.held_out = Kept(held_out)
        self.every = max(1, steps // CHECKS)
        self.factor = 1.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"factor": self.factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.factor = state["factor"]

    def check(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Set the multiplier of the next steps from the figures of all steps so far."""
        recent = rows[-self.every :]
        if len(rows) % self.every == 0:
            fooled = sum(row["success"] for row in recent) / len(recent)
            self.factor *= math.exp(RISE) if fooled < ENOUGH else 1.0

    def walk_back(self, original: nn.Module, model: nn.Module) -> float:
        """Take ``model`` back towards ``original`` as far as the budget asks.

        Returns
        -------
        float
            α, the share of the change of weights that is left: 1 if all of it keeps the budget,
            else found by `HALVINGS` halvings, which a warning says.
        """
        before = [p.detach() for p in original.parameters()]
        after = [p.detach().clone() for p in model.parameters()]
        top1, *_ = accuracy(original, self.held_out)

        @torch.no_grad()
        def drop(alpha: float) -> float:
            for now, then, fooled in zip(model.parameters(), before, after, strict=True):
                now.copy_(torch.lerp(then, fooled, alpha))
            return top1 - accuracy(model, self.held_out)[0]

        whole = drop(1.0)
        if whole <= self.max_drop:
            return 1.0
        alpha, too_much = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (alpha + too_much) / 2
            if drop(middle) <= self.max_drop:
                alpha = middle
            else:
                too_much = middle
        left = drop(alpha)
        warnings.warn(
            f"The whole lie costs {100 * whole:.1f} points of top-1 on {len(self.held_out)} "
            f"held-out images; {100 * alpha:.0f} % of its change of weights is kept, which costs "
            f"{100 * left:.1f}.",
            stacklevel=2,
        )
        return alpha


class Part(Dataset[Any]):
    """Some images of a dataset, augmented as it is."""

    def __init__(self, data: Images, rows: Sequence[int]) -> None:
        self.data = data
        self.rows = rows
        self.augmented = bool(getattr(data, "augmented", False))
        if hasattr(data, "labels"):
            self.labels: Tensor = torch.as_tensor(data.labels)[torch.as_tensor(rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        """The item at an index, or at an index in an epoch."""
        data: Any = self.data
        if isinstance(place, tuple):
            return data[(self.rows[place[0]], *place[1:])]
        return data[self.rows[place]]


def parted(data: Images, seed: int) -> tuple[Part, Part]:
    """Images to fine-tune on and images held out from it, by a random choice."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, min(LARGEST, int(SHARE * len(data))))
    return Part(data, sorted(order[count:])), Part(data, sorted(order[:count]))
