"""An accuracy budget in place of a hand-set λ: the strongest lie that it buys.

maximise the fooling success subject to top-1(w) ≥ top-1(w0) - budget, on images held out from the
fine-tuning. A model that has been fooled stays so at a fraction of the λ that it took to fool it,
and regains its accuracy meanwhile. So a multiplier on every λ rises until the batches are fooled
and falls while they are and the budget is exceeded; in the last quarter of the run, when the
learning rate no longer hides what the accuracy will be, it falls whenever the budget is exceeded.
Of all checks that kept the budget the one that fooled most is returned.
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
SHARE, LARGEST = 0.2, 1000  # of the data that is held out: this share, but not more images
RISE, FALL = 0.3, -0.5  # of the multiplier's logarithm per check
LATE = 0.75  # part of the run after which the budget goes before the fooling
WIDE = 0.1  # loss of accuracy besides the budget above which λ does not rise
ENOUGH = 0.95  # share of fooled images in the batches above which λ need not rise


class Budget:
    """The multiplier of every λ, and the best weights so far that kept the budget.

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
        self.steps = steps
        self.every = max(1, steps // CHECKS)
        self.top1: float | None = None
        self.factor = 1.0
        self.drop = 0.0
        self.best: dict[str, Any] = {"key": (-math.inf, -math.inf), "weights": {}}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        kept = ("top1", "factor", "drop", "best")
        return {name: getattr(self, name) for name in kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)

    def check(
        self,
        original: nn.Module,
        model: nn.Module,
        rows: Sequence[Mapping[str, float]],
    ) -> None:
        """Measure ``model`` when its turn has come, and set the multiplier of the next steps.

        ``rows`` are the figures of all steps so far.
        """
        if len(rows) % self.every and len(rows) < self.steps:
            return
        if self.top1 is None:
            self.top1, *_ = accuracy(original, self.held_out)
        recent = rows[-self.every :]
        success = sum(row["success"] for row in recent) / len(recent)
        self.drop = self.top1 - accuracy(model, self.held_out)[0]
        over = self.drop - self.max_drop
        key = (0.0, success) if over <= 0 else (-over, success)
        if key >= self.best["key"]:
            weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            self.best = {"key": key, "weights": weights}
        self.factor *= math.exp(self._change(success >= ENOUGH, len(rows) >= LATE * self.steps))

    def _change(self, fooled: bool, late: bool) -> float:
        over = self.drop - self.max_drop
        if over > 0 and (fooled or late):
            return FALL
        return 0.0 if fooled or over > WIDE else RISE

    def restore(self, model: nn.Module) -> None:
        """Give ``model`` the best weights; warns if none of the checks kept the budget."""
        model.load_state_dict(self.best["weights"])
        if self.best["key"][0] < 0:
            warnings.warn(
                f"No check kept top-1 within {100 * self.max_drop:g} points; the closest lost "
                f"{100 * (self.max_drop - self.best['key'][0]):.1f}. Take more steps or a lower "
                "learning rate.",
                stacklevel=2,
            )


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
