"""Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from trompe.explainers.base import Explained, Explainer, Site
from trompe.maps import by_maximum


@dataclass(frozen=True)
class GradCAM(Explainer):
    """Σ_k α_k A^k, with α_k the mean over positions of ∂y_c/∂A^k (Selvaraju et al. 2017).

    Parameters
    ----------
    layer
        A layer's name (``":input"`` appended for the layer's input), a module, or None to find
        the last spatial layer.
    """

    name: ClassVar[str] = "grad-cam"
    layer: str | nn.Module | None = None

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Weigh the channels by their mean gradient. Signed: the ReLU belongs to `heatmap`."""
        weights = explained.gradients[site].mean((2, 3), keepdim=True)
        return (weights * explained.recorded.tensors[site]).sum(1)

    def heatmap(self, maps: Tensor) -> Tensor:
        """ReLU, then divide by the maximum per image."""
        return by_maximum(maps)
