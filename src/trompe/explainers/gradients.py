"""Explanations that are gradients of the class score, or averages of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers.base import INPUT, Explained, Explainer, Site
from trompe.maps import min_max


@dataclass(frozen=True)
class SimpleGrad(Explainer):
    """|∂y_c/∂A| summed over channels (Simonyan et al. 2014; SimpleGrad_T in the paper at a layer).

    Parameters
    ----------
    layer
        ``"input"``, a layer's name (``":input"`` appended for the layer's input), a module, or
        None to find the last spatial layer.
    """

    name: ClassVar[str] = "simple-grad"
    layer: str | nn.Module | None = INPUT

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Sum the gradient's magnitude over channels."""
        return explained.gradients[site].abs().sum(1)


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """|mean over noisy copies of ∂y_c/∂A| summed over channels (Smilkov et al. 2017).

    The noise is added to the image, wherever the gradient is taken, and depends on ``seed`` and
    the batch's shape alone.

    Parameters
    ----------
    layer
        As in `SimpleGrad`.
    samples
        Number of noisy copies, one pass each.
    sigma
        Standard deviation of the noise as a share of each image's range (maximum - minimum).
    seed
        Seed of the noise.
    """

    name: ClassVar[str] = "smooth-grad"
    reads: ClassVar[Literal["gradients", "relevance", "logits"]] = "logits"
    layer: str | nn.Module | None = INPUT
    samples: int = 16
    sigma: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.sigma < 0:
            raise TrompeError("smooth-grad needs samples of at least 1 and sigma of at least 0.")

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Average the gradient over noisy copies."""
        images = explained.recorded.images
        spread = images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True)
        generator = torch.Generator().manual_seed(self.seed)
        total: Tensor | float = 0.0
        for _ in range(self.samples):
            noise = torch.randn(images.shape, generator=generator).to(images)
            noisy = images + self.sigma * spread * noise
            total = total + explained.gradient_of(noisy, site) / self.samples
        assert isinstance(total, Tensor)
        return total.abs().sum(1)


def _replaced(replacement: Tensor, _: Tensor) -> Tensor:
    return replacement


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """(A - A') · ∫ ∂y_c/∂A along the line from A' to A, summed over channels, signed.

    Sundararajan et al. 2017, by Gauss-Legendre quadrature. At a layer the line is drawn between
    the activations of the baseline and of the image.

    Parameters
    ----------
    layer
        As in `SimpleGrad`.
    steps
        Points of the quadrature, one pass each.
    baseline
        Value of the baseline image in normalised units; 0 is the mean colour.
    """

    name: ClassVar[str] = "integrated-gradients"
    reads: ClassVar[Literal["gradients", "relevance", "logits"]] = "logits"
    layer: str | nn.Module | None = INPUT
    steps: int = 16
    baseline: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TrompeError("integrated-gradients needs at least 1 step.")

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Integrate the gradient from the baseline to the image."""
        images = explained.recorded.images
        baseline = torch.full_like(images, self.baseline)
        if site.name == INPUT:
            start, end = baseline, images
        else:
            start = explained.activation(baseline, site)
            end = explained.activation(images, site)
        points, weights = np.polynomial.legendre.leggauss(self.steps)
        total: Tensor | float = 0.0
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            between = start + float(point) * (end - start)
            gradient = (
                explained.gradient_of(between, site)
                if site.name == INPUT
                else explained.gradient_of(images, site, partial(_replaced, between))
            )
            total = total + float(weight) * gradient
        return ((end - start) * total).sum(1)

    def heatmap(self, maps: Tensor) -> Tensor:
        """Magnitude, then min-max per image."""
        return min_max(maps.abs())
