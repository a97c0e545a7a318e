"""Data of one's own, by name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from trompe.base import code
from trompe.base.registry import Registry
from trompe.data.dataset import Source
from trompe.data.images import as_classes, check_images, known_labels
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError

SOURCES: Registry[Any] = Registry("data source", object, {})


def is_own(spec: str) -> bool:
    """Whether a text names a registered source of data, or code that makes one."""
    if spec.partition(":")[0] in SOURCES:
        return True
    named = code.own(spec)
    if named is None or Path(spec).exists():
        return False
    if "." in named.module or Path(f"{named.module}.py").is_file():
        return True
    found = find_spec(named.module)
    return found is not None and found.origin is not None


def read_own(spec: str, preprocessing: Preprocessing) -> Source:
    """What a class or function of one's own makes: a `Source`, or a data set.

    Parameters
    ----------
    spec
        A registered name, ``path/file.py:Name`` or ``package.module:Name``, and options for it, as
        in ``torchvision.datasets:CIFAR10:root=data``. The code of the module is run.
    preprocessing
        What pictures go through; tensors have been through it.

    Raises
    ------
    TrompeError
        If the name comes from someone else, nothing can be made by it, or something else is made.
    """
    made = SOURCES.build(spec)
    return made if isinstance(made, Source) else Items(made, spec, preprocessing)


class Items(Source):
    """A data set of (picture, class), or of (tensor, class) with images that are preprocessed.

    Raises
    ------
    TrompeError
        If its items are something else.
    """

    def __init__(self, data: Any, name: str, preprocessing: Preprocessing) -> None:
        self.data = data
        self.preprocessing = preprocessing
        self._name = name
        self.generated = not _holds_pictures(data)
        if self.generated:
            check_images(data)
        if not len(data):
            raise TrompeError(f"{name} makes a data set without items.")
        labels = known_labels(data)
        if labels is None:
            labels = [data[row][1] for row in range(len(data))]
        self.labels = torch.from_numpy(as_classes(labels)).long()
        if int(self.labels.min()) < 0:
            raise TrompeError(f"{name} has the class {int(self.labels.min())}; classes start at 0.")
        count = int(self.labels.max()) + 1
        names = tuple(map(str, getattr(data, "classes", ())))
        self.classes = names if len(names) >= count else tuple(map(str, range(count)))

    def open(self, row: int) -> Image.Image:
        """Return the picture of a row, that of a tensor with 8 bits."""
        image = self.data[row][0]
        if isinstance(image, Tensor):
            shown: Image.Image = F.to_pil_image(self.preprocessing.denormalise(image))
            return shown
        copy: Image.Image = image.copy()
        return copy

    def prepared(self, row: int) -> Tensor | None:
        """Return the row's tensor, if the data holds tensors."""
        return self.data[row][0] if self.generated else None

    def content(self, row: int) -> Any:
        """Return the tensor or the picture's pixels."""
        image = self.prepared(row)
        return super().content(row) if image is None else image

    def name(self, row: int) -> str:
        """Return the name of the data and the index."""
        return f"{self._name}, item {row}"


def _holds_pictures(data: Any) -> bool:
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__") and len(data)):
        return False
    first = data[0]
    return isinstance(first, tuple | list) and len(first) == 2 and isinstance(first[0], Image.Image)
