"""Averages of gradients of the class score, from passes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers.explainer import Explainer
from trompe.explainers.gradients.need import ExtraPasses
from trompe.explainers.needs import Explained, Need
from trompe.explainers.sites import IMAGES, INPUT, Site
from trompe.maps import min_max


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """|mean over noisy copies of ∂y_c/∂A| summed over channels (Smilkov et al. 2017).

    The noise is added to the image, wherever the gradient is taken. It depends on ``seed`` and the
    image's shape alone: an image has one map, in whatever batch.

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
    label: ClassVar[str] = "SmoothGrad"
    needs: ClassVar[Sequence[Need[Any]]] = (ExtraPasses(),)
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
        passes = explained.of(ExtraPasses(), site)
        generator = torch.Generator().manual_seed(self.seed)
        total: Tensor | float = 0.0
        for _ in range(self.samples):
            noise = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32)
            noisy = images + self.sigma * spread * noise.to(images)
            total = total + passes.gradient(noisy) / self.samples
        assert isinstance(total, Tensor)
        return passes.grid(total).abs().sum(1)


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
    label: ClassVar[str] = "IntegratedGradients"
    needs: ClassVar[Sequence[Need[Any]]] = (ExtraPasses(),)
    layer: str | nn.Module | None = INPUT
    steps: int = 16
    baseline: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TrompeError("integrated-gradients needs at least 1 step.")

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Integrate the gradient from the baseline to the image."""
        images = explained.recorded.images
        passes = explained.of(ExtraPasses(), site)
        baseline, call = torch.full_like(images, self.baseline), None
        if site == IMAGES:
            start, end = baseline, images
        else:
            start, _ = passes.activation(baseline)
            end, call = passes.activation(images)
        points, weights = np.polynomial.legendre.leggauss(self.steps)
        total: Tensor | float = 0.0
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            between = start + float(point) * (end - start)
            gradient = (
                passes.gradient(between)
                if site == IMAGES
                else passes.gradient(images, between, call=call)
            )
            total = total + float(weight) * gradient
        return passes.grid((end - start) * total).sum(1)

    def heatmap(self, maps: Tensor) -> Tensor:
        """Magnitude, then min-max per image."""
        return min_max(maps.abs())


SmoothGrad_T = partial(SmoothGrad, layer=None)
IntegratedGradients_T = partial(IntegratedGradients, layer=None)
"""At the last spatial layer."""
