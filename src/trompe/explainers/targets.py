"""What is explained: the classes that are asked for, and the scalar that stands for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trompe.errors import TrompeError
from trompe.maps import full_precision
from trompe.models.call import both_classes

Classes = Tensor | np.ndarray[Any, Any] | Sequence[int] | int | None
"""Classes ``[N]`` of whole numbers, one for all images, or None for the predicted ones."""


def check_classes(classes: Classes, output: Tensor) -> Tensor:
    """Classes as ``[N]`` of int64 on the device of a model's output ``[N, K]``.

    Raises
    ------
    TrompeError
        If they are no whole numbers, one is out of range, or there is not one per image.
    """
    logits = both_classes(output)
    count, known = logits.shape
    if classes is None:
        return logits.detach().argmax(1)
    array = _array(classes)
    if array.dtype.kind not in "iu" and array.size:
        raise TrompeError(
            f"Classes are whole numbers from 0 to {known - 1}, not {array.tolist()!r:.40}; give a "
            "tensor, a list or an array of them, or one for all images."
        )
    if array.shape not in ((), (count,)):
        raise TrompeError(
            f"There are {count} images but the classes have shape {array.shape}; give one class "
            "per image, or one for all."
        )
    wrong = [int(c) for c in array.flat if not 0 <= c < known]
    if wrong:
        raise TrompeError(
            f"Class {wrong[0]} is out of range: the model has {known} classes (0 to {known - 1})."
        )
    return torch.from_numpy(np.broadcast_to(array, count).astype(np.int64)).to(logits.device)


def _array(classes: Any) -> np.ndarray[Any, Any]:
    if isinstance(classes, Tensor):
        classes = classes.detach().cpu()
        classes = (classes.double() if classes.is_floating_point() else classes).numpy()
    try:
        array: np.ndarray[Any, Any] = np.asarray(classes)
    except (TypeError, ValueError):  # lists of several lengths
        array = np.asarray(classes, dtype=object)
    return array


def score(output: Tensor, classes: Tensor) -> Tensor:
    """The explained scalar ``[N]`` of a model's output ``[N, K]``: the logit of each class.

    Of a binary head ``[N, 1]`` it is the logit for class 1 and minus the logit for class 0.
    """
    return of_each_class(output).gather(1, classes[:, None])[:, 0]


def of_each_class(output: Tensor) -> Tensor:
    """The scalar of each class ``[N, K]``; those of a binary head are minus its logit, and it."""
    return torch.cat((-output, output), 1) if output.shape[1] == 1 else output


def shares(output: Tensor, classes: Tensor, *, of_one: bool = False) -> Tensor:
    """How much each output ``[N, K]`` adds to the explained scalar; never in half precision.

    ``of_one``: to a 1 in its place.
    """
    explained = score(full_precision(output), classes)[:, None]
    explained = torch.ones_like(explained) if of_one else explained
    if output.shape[1] == 1:
        return explained
    zero = torch.zeros_like(full_precision(output))
    return zero.scatter(1, classes[:, None], explained)
