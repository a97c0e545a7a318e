"""From a picture as people store it to the tensor a model expects, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, log, sqrt
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trompe.data.reader import to_grey, to_rgb
from trompe.errors import TrompeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_LOG_RATIO = log(4 / 3)


@dataclass(frozen=True)
class Preprocessing:
    """What a model's images go through: resize, centre crop, scale to [0, 1], normalise.

    Parameters
    ----------
    resize : int
        Length of the shorter side after resizing, in pixels.
    crop : int
        Side of the square cut from the centre, in pixels; at most `resize`.
    mean, std : tuple of float
        Per channel (red, green, blue), for pixel values in [0, 1].
    interpolation : str
        ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``, antialiased.
    min_area : float
        Smallest share of the image that a random crop of `augment` keeps, in (0, 1]. 0.08 suits
        photographs; of images of 32 or 64 pixels, keep 0.6 or more.
    classes : tuple of str
        Names of the model's outputs, in their order, where they are known.

    Raises
    ------
    TrompeError
        If a value is out of its range.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    min_area: float = 0.08
    classes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise TrompeError(
                f"The crop of {self.crop} pixels does not fit into an image resized to "
                f"{self.resize}; choose 1 <= crop <= resize."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise TrompeError(
                f"mean {self.mean} and std {self.std} need three numbers each (red, green, "
                "blue), those of std above 0."
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise TrompeError(
                f"There is no interpolation {self.interpolation!r}; choose one of "
                f"{', '.join(_INTERPOLATIONS)}."
            )
        if not 0 < self.min_area <= 1:
            raise TrompeError(f"min_area is {self.min_area}; choose a share in (0, 1].")

    def __call__(self, image: Image.Image) -> Tensor:
        """Return `image`, of any mode and size, as a normalised tensor [3, crop, crop]."""
        return self._tensor(self.view(image))

    def view(self, image: Image.Image) -> Image.Image:
        """Return the part of `image` that the model sees, RGB, crop × crop pixels."""
        return self._framed(to_rgb(image))

    def augment(self, image: Image.Image, seed: int) -> Tensor:
        """Return a random crop of `image`, resized and perhaps mirrored, [3, crop, crop].

        The same `seed` (not negative) gives the same crop; the global random state is neither
        read nor changed. Area and aspect ratio are drawn as in Szegedy et al. (2015).
        """
        image = to_rgb(image)
        rng = np.random.default_rng(seed)
        top, left, height, width = _random_box(rng, image.height, image.width, self.min_area)
        cut = F.resized_crop(image, top, left, height, width, [self.crop, self.crop], self._mode)
        return self._tensor(F.horizontal_flip(cut) if rng.random() < 0.5 else cut)

    def mask(self, mask: Image.Image) -> Tensor:
        """Return `mask` resized and cropped as the image it belongs to, [crop, crop] bool."""
        grey = Image.fromarray((to_grey(mask) * 255).round().astype(np.uint8))
        return cast(Tensor, F.pil_to_tensor(self._framed(grey)))[0] >= 128

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return `pixels` [..., 3, H, W] of values in [0, 1] as the model expects them."""
        return cast(Tensor, F.normalize(pixels, list(self.mean), list(self.std)))

    def denormalise(self, images: Tensor) -> Tensor:
        """Return normalised `images` [..., 3, H, W] with values in [0, 1] again."""
        mean = images.new_tensor(self.mean)[:, None, None]
        std = images.new_tensor(self.std)[:, None, None]
        return (images * std + mean).clamp(0, 1)

    @property
    def _mode(self) -> InterpolationMode:
        return InterpolationMode(self.interpolation)

    def _framed(self, image: Image.Image) -> Image.Image:
        resized = F.resize(image, [self.resize], self._mode)
        return cast(Image.Image, F.center_crop(resized, [self.crop]))

    def _tensor(self, image: Image.Image) -> Tensor:
        return self.normalise(F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True))


def _random_box(
    rng: np.random.Generator, height: int, width: int, min_area: float
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part of an image."""
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1)
        ratio = exp(rng.uniform(-_LOG_RATIO, _LOG_RATIO))
        h, w = round(sqrt(area / ratio)), round(sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
