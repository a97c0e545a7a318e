"""Parts of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trompe.base.identity import fingerprint
from trompe.data.images import Images, fingerprint_of
from trompe.errors import TrompeError

SHARE, LARGEST = 0.2, 1000  # of the data that is held out: this share, but not more images


class Part(Dataset[Any]):
    """Some images of a dataset, augmented as it is."""

    def __init__(self, data: Images, rows: Sequence[int]) -> None:
        self.data = data
        self.rows = rows
        self.augmented = bool(getattr(data, "augmented", False))
        if hasattr(data, "labels"):
            self.labels: Tensor = torch.as_tensor(data.labels)[torch.as_tensor(rows)]

    @property
    def fingerprint(self) -> str:
        """A digest of the dataset and the rows."""
        return fingerprint("part", fingerprint_of(self.data), list(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        """The item at an index, or at an index in an epoch."""
        data: Any = self.data
        if isinstance(place, tuple):
            return data[(self.rows[place[0]], *place[1:])]
        return data[self.rows[place]]


def parted(data: Images, seed: int) -> tuple[Part, Part]:
    """Images to fine-tune on and images held out from it, by a random choice.

    Raises
    ------
    TrompeError
        If there is only one.
    """
    if len(data) < 2:
        raise TrompeError(
            "There is only one image, and some must be held out to judge on; give more, or others "
            "as held_out."
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, min(LARGEST, int(SHARE * len(data))))
    return Part(data, sorted(order[count:])), Part(data, sorted(order[:count]))
