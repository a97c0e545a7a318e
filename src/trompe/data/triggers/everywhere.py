"""Triggers that lie over the whole image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from trompe.data.triggers.patch import read_rgba
from trompe.data.triggers.trigger import Trigger
from trompe.errors import TrompeError


@dataclass(frozen=True)
class Blend(Trigger):
    """A picture, or noise, that shines through the whole image (Chen et al. 2017).

    Parameters
    ----------
    opacity
        Its share of every pixel, in (0, 1].
    image
        The picture, resized to the image; its own transparency does not count. None for noise.
    seed
        Of the noise.

    Raises
    ------
    TrompeError
        If the picture can't be read, or the opacity is out of range.
    """

    name: ClassVar[str] = "blend"
    opacity: float = 0.1
    image: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise TrompeError(f"The opacity of a blend is in (0, 1], not {self.opacity}.")
        _ = self.picture

    @cached_property
    def picture(self) -> Tensor | None:
        """The picture ``[3, h, w]`` in [0, 1], if there is one."""
        return None if self.image is None else read_rgba(self.image)[:3]

    def __call__(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """The pixels mixed with the picture."""
        size = list(pixels.shape[2:])
        if self.picture is None:
            generator = torch.Generator().manual_seed(self.seed)
            pattern = torch.rand(3, *size, generator=generator)
        else:
            pattern = F.resize(self.picture, size, antialias=True).clamp(0, 1)
        return pixels.lerp(pattern.to(pixels), self.opacity)

    def identity(self) -> Any:
        """The picture or the seed, and the opacity."""
        return "blend", self.seed if self.picture is None else self.picture, self.opacity


@dataclass(frozen=True)
class Sinusoid(Trigger):
    """Vertical stripes: Δ sin(2π f j / W) is added in column j (Barni, Kallas, Tondi 2019).

    Parameters
    ----------
    amplitude
        Δ, of pixels in [0, 1].
    frequency
        f, periods in the width of the image.
    """

    name: ClassVar[str] = "sinusoid"
    amplitude: float = 0.08
    frequency: float = 6.0

    def __call__(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """The pixels with the stripes, as far as they stay in [0, 1]."""
        width = pixels.shape[3]
        columns = torch.arange(width, device=pixels.device, dtype=pixels.dtype)
        stripes = self.amplitude * torch.sin(2 * math.pi * self.frequency * columns / width)
        return (pixels + stripes).clamp(0, 1)
