"""Any data set of labelled images: what is asked of it, its batches, its fingerprint."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from trompe.base import processes
from trompe.base.identity import Lazily, fingerprint
from trompe.errors import TrompeError

LOOKED_AT = 128  # items of a data set that is not in memory
_EXPECTED = (
    "expected a data set with a length whose items are (image, class): a float tensor [3, H, W], "
    "normalised as the model expects, all of one size, and a whole number"
)

_WHOLE = {torch.int8, torch.int16, torch.int32, torch.int64}
_WHOLE |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}


class Images(Protocol):
    """A map-style dataset of ``(image [3, H, W], label)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


def check_images(data: Images) -> None:
    """Refuse data whose items are not all (image ``[3, H, W]``, class), of one size and finite.

    All items of a list are looked at; of other data sets the first one if they have ``labels`` or
    ``targets``, else a fixed sample.

    Raises
    ------
    TrompeError
        If the data has no length or can't be indexed (a loader, a stream), or an item is
        something else.
    """
    _items(data)


def first_image(data: Images, purpose: str) -> Tensor:
    """The first image ``[3, H, W]`` of data that `check_labels` will look at further.

    Raises
    ------
    TrompeError
        As `check_images`, of this item, or if there is none.
    """
    found = _items(data, range(1))
    if not found:
        raise TrompeError(f"There is no image to {purpose} on.")
    return found[0][0]


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
    """Refuse data that is no set of labelled images, or has labels that the model does not have.

    Labels are ``data.labels`` or ``data.targets``, else those of the items that `check_images`
    looks at; whole numbers of any type. Warns if the data has fewer classes (``data.classes``)
    than the model, and it is not known which of its outputs they are.

    Raises
    ------
    TrompeError
        As `check_images`, or if a label is no whole number or out of range.
    """
    items = _items(data)
    labels = known_labels(data)
    if labels is None:
        labels = [label for _, label in items.values()]
    numbers = as_classes(labels)
    for number in (numbers.min(initial=0), numbers.max(initial=0)):
        check_class(int(number), count, "the data's labels")
    known = len(getattr(data, "classes", range(count)))
    if 1 < known < count and not getattr(data, "mapped", False):
        warnings.warn(
            f"The data has {known} classes, the model {count}: its first {known} outputs are taken "
            f"for them. If they are not, begin with trompe train --num-classes {known}, or say "
            "which outputs they are with class_map.",
            stacklevel=1,
        )


def fingerprint_of(data: Any) -> str:
    """What a data set is told apart by.

    That is ``data.fingerprint`` where there is one. Of a list and of tensors it is all they hold,
    of another data set its type, length, labels and a fixed sample of its items.
    """
    own = getattr(data, "fingerprint", None)
    if isinstance(own, str):
        return own
    if isinstance(data, Subset):
        return fingerprint("subset", fingerprint_of(data.dataset), list(data.indices))
    if isinstance(data, TensorDataset):
        return fingerprint("tensors", data.tensors)
    items = Lazily(data.__getitem__, _rows(data))
    return fingerprint(type(data), len(data), known_labels(data), items)


def in_turn(
    data: Images, batch_size: int, workers: int = 0
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """This process's share of the batches of ``data``: indices, images, labels of int64."""
    rows = range(len(data))
    batches = processes.share([rows[i : i + batch_size] for i in rows[::batch_size]])
    loader: Any = DataLoader(
        cast(Any, data),
        batch_sampler=cast(Any, batches),
        num_workers=workers,
        collate_fn=collated,
    )
    for indices, (images, labels) in zip(batches, loader, strict=True):
        yield indices, images, labels


def collated(items: Sequence[tuple[Any, ...]]) -> list[Tensor]:
    """A batch of items that end with an image and the class, a whole number of any type.

    Raises
    ------
    TrompeError
        If the images are of several sizes.
    """
    _check_sizes([item[-2] for item in items])
    whole = [(*rest, operator.index(label)) for *rest, label in items]
    return cast(list[Tensor], default_collate(whole))


def _items(data: Any, rows: Sequence[int] | None = None) -> dict[int, tuple[Tensor, Any]]:
    """The items of ``rows``, or that are looked at, each found to be an image and something."""
    if advice := _no_data_set(data):
        raise TrompeError(f"{advice}; {_EXPECTED}.")
    found: dict[int, tuple[Tensor, Any]] = {}
    if rows is None:
        rows = range(1) if known_labels(data) is not None else _rows(data)
    for row in rows[: len(data)]:
        try:
            item = data[row]
        except TrompeError:
            raise
        except Exception as error:
            raise TrompeError(
                f"Item {row} of the data can't be had ({type(error).__name__}: {error}); "
                f"{_EXPECTED}."
            ) from error
        if fault := _fault(item):
            raise TrompeError(f"Item {row} of the data is {fault}; {_EXPECTED}.")
        found[row] = item
    _check_sizes([image for image, _ in found.values()])
    return found


def _check_sizes(images: Sequence[Tensor]) -> None:
    sizes = dict.fromkeys(image.shape for image in images)
    if len(sizes) > 1:
        shown = " and ".join(str(list(size)) for size in [*sizes][:2])
        raise TrompeError(f"The images of the data have several sizes, {shown}; {_EXPECTED}.")


def _no_data_set(data: Any) -> str | None:
    """What is given instead of something with a length that can be indexed."""
    name = type(data).__name__
    if isinstance(data, str | Path):
        return f"The data is the name '{data}'; give trompe.load_data('{data}', preprocessing)"
    if isinstance(data, DataLoader):
        return "The data is a DataLoader; give the data set that it loads, its attribute dataset"
    if isinstance(data, Tensor | np.ndarray) or (
        isinstance(data, tuple | list) and data and all(isinstance(d, Tensor) for d in data)
    ):
        return "The data is a tensor or several; wrap them: TensorDataset(images, classes)"
    if isinstance(data, IterableDataset) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        return f"The data is a {name}, which can't be indexed or has no length"
    return None


def _rows(data: Any) -> Sequence[int]:
    """All rows of what is in memory, else some that are evenly spread."""
    size = len(data)
    if isinstance(data, list | tuple) or size <= LOOKED_AT:
        return range(size)
    return [size * i // LOOKED_AT for i in range(LOOKED_AT - 1)] + [size - 1]


def _fault(item: Any) -> str | None:
    """What an item is, if it is not an image and something."""
    if isinstance(item, Mapping):
        return f"a dict of {', '.join(map(str, item))}"
    if not isinstance(item, tuple | list) or len(item) != 2:
        several = isinstance(item, tuple | list)
        return f"a {type(item).__name__} of {len(item)}" if several else _described(item)
    image = item[0]
    if not (isinstance(image, Tensor) and image.is_floating_point() and image.dim() == 3):
        return f"({_described(image)}, ...)"
    if not image.isfinite().all():
        return "an image with values that are NaN or infinite"
    return None


def _described(thing: Any) -> str:
    if isinstance(thing, Tensor | np.ndarray):
        return f"{type(thing).__name__} {list(thing.shape)} of {thing.dtype}"
    return f"{type(thing).__name__} {thing!r:.60}"


def known_labels(data: Any) -> Any:
    """All labels, where they can be had without the images."""
    if isinstance(data, TensorDataset):
        return data.tensors[1]
    if isinstance(data, Subset):
        labels = known_labels(data.dataset)
        return None if labels is None else [labels[i] for i in data.indices]
    for name in ("labels", "targets"):
        given: Any = getattr(data, name, None)
        if hasattr(given, "__len__") and len(given) == len(data):
            return given
    return None


def as_classes(labels: Any) -> np.ndarray[Any, Any]:
    """The labels as an array of whole numbers.

    Raises
    ------
    TrompeError
        If one of them is something else.
    """
    one_type = isinstance(labels, Tensor | np.ndarray)
    for row, label in enumerate(labels[:1] if one_type else labels):
        if not _is_whole(label):
            raise TrompeError(
                f"The data's labels are whole numbers, the classes; that of item {row} is "
                f"{_described(label)}."
            )
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else [int(n) for n in labels])


def _is_whole(label: Any) -> bool:
    if isinstance(label, Tensor):
        kind = label.dtype
        return label.dim() == 0 and not (
            kind.is_floating_point or kind.is_complex or kind == torch.bool
        )
    if isinstance(label, np.ndarray):
        return label.ndim == 0 and label.dtype.kind in "iu"
    return isinstance(label, int | np.integer) and not isinstance(label, bool)
