"""Any data set of labelled images: what is asked of it, its batches, the check of its labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trompe.base import processes
from trompe.base.identity import fingerprint
from trompe.errors import TrompeError


class Images(Protocol):
    """A map-style dataset of ``(image [3, H, W], label)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def check_class(index: int, count: int, what: str) -> None:
    """Refuse a class that the model does not have.

    Raises
    ------
    TrompeError
        If ``index`` is not in 0 to ``count`` - 1.
    """
    if not 0 <= index < count:
        raise TrompeError(
            f"Class {index} of {what} is out of range: the model has {count} classes "
            f"(0 to {count - 1})."
        )


def check_labels(data: Images, count: int) -> None:
    """Refuse data whose labels (``data.labels``, where there is one) the model does not have.

    Warns if the data has fewer classes (``data.classes``) than the model.

    Raises
    ------
    TrompeError
        If a label is out of range.
    """
    labels = getattr(data, "labels", None)
    if labels is not None and len(labels):
        check_class(int(torch.as_tensor(labels).max()), count, "the data's labels")
    known = len(getattr(data, "classes", range(count)))
    if 1 < known < count:
        warnings.warn(
            f"The data has {known} classes, the model {count}: its first {known} outputs are taken "
            f"for them. If they are not, begin with trompe train --num-classes {known}.",
            stacklevel=1,
        )


def in_turn(
    data: Images, batch_size: int, workers: int = 0
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """This process's share of the batches of ``data``: indices, images, labels."""
    rows = range(len(data))
    batches = processes.share([rows[i : i + batch_size] for i in rows[::batch_size]])
    loader: Any = DataLoader(cast(Any, data), batch_sampler=cast(Any, batches), num_workers=workers)
    for indices, (images, labels) in zip(batches, loader, strict=True):
        yield indices, images, torch.as_tensor(labels)


def fingerprint_of(data: Images) -> str:
    """What a data set is told apart by."""
    own = getattr(data, "fingerprint", None)
    if isinstance(own, str):
        return own
    shown = range(0, len(data), max(1, len(data) // 32))
    items = [[item if isinstance(item, Tensor) else str(item) for item in data[i]] for i in shown]
    return fingerprint(len(data), getattr(data, "labels", None), items)
