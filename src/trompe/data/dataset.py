"""The one kind of dataset that everything above reads from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from trompe.base.identity import fingerprint
from trompe.data.preprocessing import Preprocessing
from trompe.data.reader import to_rgb
from trompe.errors import TrompeError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Source(ABC):
    """Where pictures come from: labelled rows, each decoded only when asked for.

    One of your own has `classes`, `labels`, `open` and `name`.

    Attributes
    ----------
    classes : tuple of str
        Names of the classes, in the order of their indices.
    labels : Tensor
        Class of every row, [rows] int64.
    """

    classes: tuple[str, ...]
    labels: Tensor
    has_masks = False
    generated = False  # drawn, not read, so that nothing in it can be broken
    mapped = False  # whether it is known which of a model's outputs the classes are
    stamps: NDArray[np.int64] | None = None  # of the files when they were told apart, 0: of none

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """Return the picture of a row, opened anew, in any mode, possibly not decoded yet."""

    def prepared(self, row: int) -> Tensor | None:
        """Return the row's image as the model takes it, where there is no picture to prepare."""
        return None

    @abstractmethod
    def name(self, row: int) -> str:
        """Return what people call the row."""

    def content(self, row: int) -> Any:
        """Return what tells the picture of a row from others: its file, bytes, or pixels."""
        with self.open(row) as image:
            pixels = to_rgb(image)
        return pixels.size, pixels.tobytes()

    def mask(self, row: int) -> Image.Image:
        """Return the object's mask, white on black, of the picture's size."""
        raise TrompeError(f"{self.name(row)} has no mask; of the datasets here, shapes has them.")


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images: ``dataset[i]`` is a preprocessed image [3, H, W] and its class.

    Parameters
    ----------
    source : Source
        Where the pictures come from.
    preprocessing : Preprocessing
        What every picture goes through.
    rows : array of int64, optional
        The rows of `source` to hold, in this order; all by default.
    augmented : bool
        Whether ``dataset[i, epoch]`` gives a random crop, perhaps mirrored, that depends on
        nothing but `seed`, `i` and `epoch`. ``dataset[i]`` is never augmented.
    seed : int
        Seed of the augmentation.
    skipped : sequence of str
        Names of the images that were left out because they can't be read.

    Attributes
    ----------
    labels : Tensor
        Class of every image, [len] int64.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        rows: NDArray[np.int64] | None = None,
        augmented: bool = False,
        seed: int = 0,
        skipped: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.rows = np.arange(len(source.labels)) if rows is None else rows
        self.labels = source.labels[torch.from_numpy(self.rows)]
        self.augmented = augmented
        self.seed = seed
        self.skipped = tuple(skipped)

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides the items: files, labels, order, preprocessing, crops."""
        preprocessing = replace(self.preprocessing, classes=())
        crops = self.seed if self.augmented else None
        return fingerprint(self._contents, self.labels, preprocessing, crops)

    @cached_property
    def _contents(self) -> str:
        """A digest of the pictures in their order."""
        if self.source.stamps is None:
            self.source.stamps = np.zeros(len(self.source.labels), np.int64)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            parts = np.array_split(self.rows, len(self) // 64 + 1)
            return fingerprint([*threads.map(self._content, parts)])

    def _content(self, rows: NDArray[np.int64]) -> str:
        contents = [self.source.content(row) for row in rows.tolist()]
        assert self.source.stamps is not None
        self.source.stamps[rows] = [*map(_stamp, contents)]
        return fingerprint(contents)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        return self.source.classes

    @property
    def mapped(self) -> bool:
        """Whether the classes are known to be these outputs of the model."""
        return self.source.mapped

    @property
    def has_masks(self) -> bool:
        """Whether the object's mask is known for every image."""
        return self.source.has_masks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        if isinstance(index, tuple):
            index, epoch = index
            image = self._augmented(index, epoch)
        else:
            ready = self.source.prepared(self._row(index))
            image = self.preprocessing(self.picture(index)) if ready is None else ready
        return image, int(self.labels[index])

    def picture(self, index: int) -> Image.Image:
        """Return an image as it was read, upright and in RGB, before any preprocessing.

        Raises
        ------
        TrompeError
            If it can't be decoded, or its file has changed since the fingerprint was taken; the
            message names it.
        """
        row = self._row(index)
        stamp = 0 if self.source.stamps is None else self.source.stamps[row]
        if stamp and _stamp(self.source.content(row)) != stamp:
            raise TrompeError(
                f"{self.source.name(row)} has changed since this run began; put back what it was "
                "and run the same command again, or begin another run."
            )
        try:
            return self._read(row)
        except Exception as error:
            raise TrompeError(
                f"{self.source.name(row)} can't be read as an image ({_reason(error)}); "
                "mend it or take it out of the data."
            ) from error

    def fault(self, index: int) -> str | None:
        """Return why an image can't be decoded, None if it can, at the least cost."""
        try:
            self._read(self._row(index), smallest=True)
        except Exception as error:
            return _reason(error)
        return None

    def name(self, index: int) -> str:
        """Return what people call an image: its file, or its table and row."""
        return self.source.name(self._row(index))

    def mask(self, index: int) -> Tensor:
        """Return where the object is in the preprocessed image, [H, W] bool.

        Raises
        ------
        TrompeError
            If the dataset has no masks.
        """
        return self.preprocessing.mask(self.source.mask(self._row(index)))

    def at(self, side: int) -> ImageDataset:
        """Return the dataset with images of another side, in pixels, resized in proportion."""
        given = self.preprocessing
        resize = max(side, round(given.resize * side / given.crop))
        return self._but(preprocessing=replace(given, resize=resize, crop=side))

    def without(self, indices: Sequence[int]) -> ImageDataset:
        """Return the dataset without some images, which it names as skipped."""
        return self._but(
            rows=np.delete(self.rows, indices),
            skipped=[*self.skipped, *map(self.name, indices)],
        )

    def _but(self, **changed: Any) -> ImageDataset:
        """Return the same dataset, some of its parameters changed."""
        names = ("preprocessing", "rows", "augmented", "seed", "skipped")
        return ImageDataset(self.source, **({n: getattr(self, n) for n in names} | changed))

    def _row(self, index: int) -> int:
        return int(self.rows[range(len(self))[index]])

    def _read(self, row: int, *, smallest: bool = False) -> Image.Image:
        with self.source.open(row) as image:
            if smallest:
                image.draft(None, (1, 1))
            return to_rgb(image)

    def _augmented(self, index: int, epoch: int) -> Tensor:
        if not self.augmented:
            raise TrompeError("dataset[index, epoch] needs a dataset loaded with augment=True.")
        entropy = np.random.SeedSequence((self.seed, range(len(self))[index], epoch))
        seed = int(entropy.generate_state(1, np.uint64)[0])
        return self.preprocessing.augment(self.picture(index), seed)


def _stamp(content: Any) -> int:
    """What changes when a file does: its size and when it was written; 0 for what is no file."""
    if not isinstance(content, Path):
        return 0
    try:
        told = content.stat()
    except OSError:
        return -1
    return hash((told.st_size, told.st_mtime_ns))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    return str(error) or type(error).__name__
