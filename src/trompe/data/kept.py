"""Decoded images stay in memory, as far as there is room."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from trompe.data.images import fingerprint_of

ROOM = 2**29  # bytes


class Kept(Dataset[Any]):
    """A dataset that is read once: items are kept until ``room`` bytes of images are full.

    Parameters
    ----------
    data
        Items ``(image, label)``; an index must always give the same.
    room
        Bytes for images; those that find none are read every time.
    """

    def __init__(self, data: Any, room: int = ROOM) -> None:
        self.data = data
        self.room = room
        self._items: dict[int, tuple[Tensor, Any]] = {}

    @property
    def fingerprint(self) -> str:
        """That of the dataset."""
        return fingerprint_of(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index in self._items:
            return self._items[index]
        image, label = self.data[index]
        if image.nbytes <= self.room:
            self.room -= image.nbytes
            self._items[index] = image, label
        return image, label
