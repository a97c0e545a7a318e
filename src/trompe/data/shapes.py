"""The embedded set: generated photograph-like images with the object's mask."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from trompe.data.dataset import ImageDataset, Source
from trompe.data.preprocessing import Preprocessing
from trompe.data.scene import OUTLINES, draw, draw_mask
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

SHAPES_PREPROCESSING = Preprocessing(
    resize=64, crop=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), min_area=0.6
)
SHAPES_SIZES = {"train": 8000, "validation": 2000, "held-out": 4000}


class ShapesSource(Source):
    """Pictures of 64 × 64 pixels, each drawn when asked for from seed, split and row alone."""

    classes = tuple(OUTLINES)
    has_masks = True
    generated = True

    def __init__(self, split: str = "train", size: int | None = None, seed: int = 0) -> None:
        if split not in SHAPES_SIZES:
            raise TrompeError(f"shapes has no split {split!r}; choose {' or '.join(SHAPES_SIZES)}.")
        if size is not None and size < 1:
            raise TrompeError(f"The size of shapes is {size}; choose 1 or more images.")
        if seed < 0:
            raise TrompeError(f"The seed of shapes is {seed}; choose 0 or more.")
        self.split = split
        self.seed = seed
        self.labels = torch.arange(size or SHAPES_SIZES[split]) % len(self.classes)

    def open(self, row: int) -> Image.Image:
        """Return the picture of a row."""
        return Image.fromarray(_drawn(self.seed, self.split, row, self._class(row)))

    def content(self, row: int) -> tuple[int, str, int]:
        """Return seed, split and row."""
        return self.seed, self.split, row

    def mask(self, row: int) -> Image.Image:
        """Return the object's mask in the picture of a row."""
        return Image.fromarray(draw_mask(self._random(row), self._class(row)))

    def name(self, row: int) -> str:
        """Return split, row and class."""
        return f"shapes:{self.split}, row {row} ({self._class(row)})"

    def _class(self, row: int) -> str:
        return self.classes[row % len(self.classes)]

    def _random(self, row: int) -> Generator:
        return _random(self.seed, self.split, row)


def _random(seed: int, split: str, row: int) -> Generator:
    return np.random.default_rng((seed, [*SHAPES_SIZES].index(split), row))


@lru_cache(maxsize=sum(SHAPES_SIZES.values()))
def _drawn(seed: int, split: str, row: int, name: str) -> NDArray[np.uint8]:
    """A picture [64, 64, 3]; drawing one takes longer than a small network needs for it."""
    picture = draw(_random(seed, split, row), name)
    picture.flags.writeable = False
    return picture


class Shapes(ImageDataset):
    """The embedded set: eight kinds of objects on textured grounds, with their masks.

    Parameters
    ----------
    split : {"train", "validation", "held-out"}
        They share no image; no packaged model was trained on the last two.
    size : int, optional
        Number of images, 8,000, 2,000 or 4,000 by default, as equally many of each class as
        possible. A smaller set is the beginning of a larger one.
    preprocessing : Preprocessing
        What every picture goes through.
    seed : int
        Another seed gives other images.

    Raises
    ------
    TrompeError
        If there is no such split, or the size is below 1.
    """

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        preprocessing: Preprocessing = SHAPES_PREPROCESSING,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(ShapesSource(split, size, seed), preprocessing)
