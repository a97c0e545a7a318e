"""Two classes side by side in one frame: what active fooling is trained and measured on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from trompe.data.dataset import ImageDataset, Source
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray


class PairSource(Source):
    """Composites of one image of each of two classes of a dataset; see `Pairs`."""

    def __init__(self, dataset: ImageDataset, c1: int, c2: int, size: int | None, seed: int):
        if c1 == c2:
            raise TrompeError(f"Both classes of the pairs are {c1}; choose two different ones.")
        if seed < 0:
            raise TrompeError(f"The seed of the pairs is {seed}; choose 0 or more.")
        first, second = _members(dataset, c1), _members(dataset, c2)
        size = min(len(first), len(second)) if size is None else size
        if size < 1:
            raise TrompeError(f"The number of pairs is {size}; choose 1 or more.")
        random = [np.random.default_rng((seed, part)) for part in range(3)]
        self.dataset = dataset
        self.classes = dataset.classes
        self.labels = torch.full((size,), c1)
        self.first_is_left = random[0].random(size) < 0.5
        self._first = _rounds(first, size, random[1])
        self._second = _rounds(second, size, random[2])

    def open(self, row: int) -> Image.Image:
        """Return the composite, of the size that the preprocessed images have."""
        side = self.dataset.preprocessing.crop
        middle = side // 2
        left, right = self._sides(row)
        frame = Image.new("RGB", (side, side))
        frame.paste(self._window(left, middle), (0, 0))
        frame.paste(self._window(right, side - middle), (middle, 0))
        return frame

    def content(self, row: int) -> Any:
        """Return what the left and the right image are, and what they go through."""
        rows = (int(self.dataset.rows[index]) for index in self._sides(row))
        preprocessing = replace(self.dataset.preprocessing, classes=())
        return [*map(self.dataset.source.content, rows), preprocessing]

    def name(self, row: int) -> str:
        """Return the names of the left and of the right image."""
        return " | ".join(map(self.dataset.name, self._sides(row)))

    def _sides(self, row: int) -> tuple[int, int]:
        first, second = int(self._first[row]), int(self._second[row])
        return (first, second) if self.first_is_left[row] else (second, first)

    def _window(self, index: int, width: int) -> Image.Image:
        """Return a part of a preprocessed image, around the object if its mask is known."""
        view = self.dataset.preprocessing.view(self.dataset.picture(index))
        centre = view.width / 2
        if self.dataset.has_masks and (mask := self.dataset.mask(index)).any():
            centre = float(mask.nonzero()[:, 1].double().mean()) + 0.5
        start = min(max(round(centre - width / 2), 0), view.width - width)
        return view.crop((start, 0, start + width, view.height))


class Pairs(ImageDataset):
    """Composites of one image of class `c1` and one of class `c2` of a dataset, side by side.

    A half is as wide as half a preprocessed image and shows its middle, or the surroundings of
    the object where the dataset has masks. Which class is left and which images meet is random
    but depends on nothing except `seed`. Every image of a class is used once before one is used
    again, and fewer pairs are the beginning of more.

    Parameters
    ----------
    dataset : ImageDataset
        Where the images come from.
    c1, c2 : int
        The classes; `c1` is the label of every pair.
    size : int, optional
        Number of pairs; by default that of the images of the rarer class.
    seed : int
        0 or more.

    Raises
    ------
    TrompeError
        If the classes are equal, aren't in the dataset or have no image in it.
    """

    def __init__(
        self, dataset: ImageDataset, c1: int, c2: int, *, size: int | None = None, seed: int = 0
    ) -> None:
        self._pairs = PairSource(dataset, c1, c2, size, seed)
        preprocessing = dataset.preprocessing
        super().__init__(self._pairs, replace(preprocessing, resize=preprocessing.crop))

    def side(self, index: int) -> Literal["left", "right"]:
        """Return on which side the image of `c1` is."""
        return "left" if self._pairs.first_is_left[self._row(index)] else "right"


def _members(dataset: ImageDataset, index: int) -> NDArray[np.int64]:
    classes = dataset.classes
    if not 0 <= index < len(classes):
        known = [f"{i} {name}" for i, name in enumerate(classes)]
        shown = known if len(known) <= 20 else [*known[:10], "…", known[-1]]
        raise TrompeError(
            f"There is no class {index}; choose 0 to {len(classes) - 1}: {', '.join(shown)}."
        )
    members = np.flatnonzero(dataset.labels.numpy() == index)
    if not len(members):
        raise TrompeError(
            f"The dataset has no image of class {index} ({classes[index]}); choose another "
            "class or more images."
        )
    return members


def _rounds(members: NDArray[np.int64], size: int, random: Generator) -> NDArray[np.int64]:
    """Return `size` members, all in random order, then all again in another, and so on."""
    rounds = [random.permutation(members) for _ in range(-(-size // len(members)))]
    return np.concatenate(rounds)[:size]
