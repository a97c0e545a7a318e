"""Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from trompe.explainers.explainer import Explainer
from trompe.explainers.gradients.need import Gradient
from trompe.explainers.needs import Explained, Need
from trompe.explainers.sites import Site
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
    label: ClassVar[str] = "Grad-CAM"
    needs: ClassVar[Sequence[Need[Any]]] = (Gradient(),)
    layer: str | nn.Module | None = None

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Weigh the channels by their mean gradient. Signed: the ReLU belongs to `heatmap`."""
        activation, gradient = explained.of(Gradient(), site)
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1)

    def heatmap(self, maps: Tensor) -> Tensor:
        """ReLU, then divide by the maximum per image."""
        return by_maximum(maps)
