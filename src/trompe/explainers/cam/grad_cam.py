"""Grad-CAM, and what all class activation maps have in common."""

from __future__ import annotations

from abc import abstractmethod
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
class ClassActivationMap(Explainer):
    """Σ_k w_k A^k: the channels of a layer, weighed.

    Parameters
    ----------
    layer
        A layer's name (``":input"`` appended for the layer's input), a module, or None to find
        the last spatial layer.
    """

    layer: str | nn.Module | None = None

    def heatmap(self, maps: Tensor) -> Tensor:
        """ReLU, then divide by the maximum per image."""
        return by_maximum(maps)


@dataclass(frozen=True)
class GradientCAM(ClassActivationMap):
    """A map whose weights are made of activations and gradients alone."""

    needs: ClassVar[Sequence[Need[Any]]] = (Gradient(),)

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Weigh and sum the channels. Signed: the ReLU belongs to `heatmap`."""
        activation, gradient = explained.of(Gradient(), site)
        return (self.weights(activation, gradient) * activation).sum(1)

    @abstractmethod
    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Weights ``[N, C, 1, 1]``, or ``[N, C, h, w]``, from tensors of that form."""


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    """Σ_k α_k A^k, with α_k the mean over positions of ∂y_c/∂A^k (Selvaraju et al. 2017).

    Parameters
    ----------
    layer
        A layer's name (``":input"`` appended for the layer's input), a module, or None to find
        the last spatial layer.
    """

    name: ClassVar[str] = "grad-cam"
    label: ClassVar[str] = "Grad-CAM"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The mean gradient of each channel."""
        return gradient.mean((2, 3), keepdim=True)
