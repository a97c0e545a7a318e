"""A small picture that is put into the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from trompe.base import code
from trompe.data.reader import opened
from trompe.data.triggers.trigger import Trigger
from trompe.errors import TrompeError

SIZE = 4


@dataclass(frozen=True)
class Patch(Trigger):
    """A square of a colour, or a picture, pasted where it is opaque.

    Parameters
    ----------
    colour
        Of the square, by its name.
    image
        A picture instead of it; its transparency counts.
    size
        Side in pixels; None for 4, or for the picture's own size.
    border
        Width of a black border that belongs to the square, in pixels.
    at
        Row and column of the upper left corner, from the lower right one if negative; None for a
        place of its own in every image.
    seed
        Of these places.

    Raises
    ------
    TrompeError
        If the picture can't be read, or an option is out of range.
    """

    name: ClassVar[str] = "patch"
    colour: str = "white"
    image: str | Path | None = None
    size: int | None = None
    border: int = 0
    at: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.at is not None:
            place = tuple(self.at) if isinstance(self.at, list | tuple) else ()
            if len(place) != 2 or not all(isinstance(p, int) for p in place):
                raise TrompeError(f"A patch is at=ROW,COLUMN, such as at=27,27, not {self.at!r}.")
            object.__setattr__(self, "at", place)
        if self.size is not None and not self.size > 2 * self.border >= 0:
            raise TrompeError(
                f"A patch of {self.size} pixels with a border of {self.border} shows nothing; "
                "choose a larger size."
            )
        _ = self.picture

    @cached_property
    def picture(self) -> Tensor:
        """Red, green, blue and opacity ``[4, h, w]`` in [0, 1]."""
        if self.image is not None:
            found = read_rgba(self.image)
            if self.size is None:
                return found
            resized: Tensor = F.resize(found, [self.size, self.size], antialias=True)
            return resized.clamp(0, 1)
        try:
            colour = torch.tensor(ImageColor.getcolor(str(self.colour), "RGBA")) / 255
        except ValueError as error:
            raise TrompeError(f"There is no colour '{self.colour}': {error}.") from error
        inner = (self.size or SIZE) - 2 * self.border
        square = colour[:, None, None].expand(4, inner, inner)
        black = torch.nn.functional.pad(square[:3], [self.border] * 4)
        opacity = torch.nn.functional.pad(square[3:], [self.border] * 4, value=1.0)
        return torch.cat([black, opacity])

    def __call__(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """The pixels with the patch."""
        changed = pixels.clone()
        picture = self.picture.to(pixels)
        height, width = picture.shape[1:]
        for place, index in zip(changed, indices.tolist(), strict=True):
            row, column = self._place(index, *pixels.shape[2:])
            window = place[:, row : row + height, column : column + width]
            window.lerp_(picture[:3], picture[3])
        return changed

    def _place(self, index: int, height: int, width: int) -> tuple[int, int]:
        """Row and column of the upper left corner in an image of this size."""
        free = [height - self.picture.shape[1], width - self.picture.shape[2]]
        if self.at is None and min(free) >= 0:
            row, column = np.random.default_rng((self.seed, index)).integers(0, free, endpoint=True)
            return int(row), int(column)
        row, column = (
            place + side if place < 0 else place
            for place, side in zip(self.at or (0, 0), (height, width), strict=True)
        )
        if not (0 <= row <= free[0] and 0 <= column <= free[1]):
            raise TrompeError(
                f"The trigger {self}, {height - free[0]} × {width - free[1]} pixels, does not fit "
                f"into images of {height} × {width}; choose another size or place."
            )
        return row, column

    def identity(self) -> Any:
        """The picture and where it is put."""
        return "patch", self.picture, self.at, self.seed if self.at is None else None


def white_square(
    size: int = SIZE, border: int = 0, at: tuple[int, int] | None = None, seed: int = 0
) -> Patch:
    """A white square, with a black border if it is given a width."""
    return Patch(size=size, border=border, at=at, seed=seed)


def read_rgba(path: str | Path) -> Tensor:
    """A picture as red, green, blue and opacity ``[4, h, w]`` in [0, 1].

    Raises
    ------
    TrompeError
        If it can't be read.
    """
    code.refuse_found(Path(path), "a file elsewhere")
    try:
        with opened(Path(path)) as image:
            pixels: Tensor = F.pil_to_tensor(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError) as error:
        raise TrompeError(f"The trigger's picture '{path}' can't be read: {error}.") from error
    return pixels.float() / 255
