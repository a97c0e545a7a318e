"""Class activation maps that weigh by the gradient in other ways than Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trompe.explainers.cam.grad_cam import GradientCAM


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    """Σ_k w_k A^k, with w_k = Σ_ij relu(g) g² / (2 g² + g³ Σ_ij A^k + 1e-6) and g = ∂y_c/∂A^k.

    Chattopadhay et al. 2018, equations 7 and 19, without the factor exp(y_c) of the whole map; the
    1e-6 is pytorch-grad-cam's.

    Parameters
    ----------
    layer
        As in `GradCAM`.
    """

    name: ClassVar[str] = "grad-cam++"
    label: ClassVar[str] = "Grad-CAM++"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The positive gradients, weighed and summed."""
        total = activation.sum((2, 3), keepdim=True)
        positive, square = gradient.relu(), gradient.square()
        share = square / (2 * square + total * gradient * square + 1e-6)
        return (share * positive).sum((2, 3), keepdim=True)


@dataclass(frozen=True)
class XGradCAM(GradientCAM):
    """Σ_k w_k A^k, with w_k = Σ_ij g A^k / Σ_ij A^k and g = ∂y_c/∂A^k (Fu et al. 2020).

    A channel whose activations sum to 0 has no such mean, and no weight.

    Parameters
    ----------
    layer
        As in `GradCAM`.
    """

    name: ClassVar[str] = "xgrad-cam"
    label: ClassVar[str] = "XGrad-CAM"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The mean gradient of each channel, by activation."""
        total = activation.sum((2, 3), keepdim=True)
        weighed = (gradient * activation).sum((2, 3), keepdim=True)
        return weighed / torch.where(total == 0, torch.inf, total)


@dataclass(frozen=True)
class LayerCAM(GradientCAM):
    """Σ_k relu(∂y_c/∂A^k) A^k, each position by its own gradient (Jiang et al. 2021).

    Parameters
    ----------
    layer
        As in `GradCAM`.
    """

    name: ClassVar[str] = "layer-cam"
    label: ClassVar[str] = "Layer-CAM"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The positive gradient."""
        return gradient.relu()


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """Σ_k (∂y_c/∂A^k) A^k, each position by its own gradient (Draelos and Carin 2020).

    Parameters
    ----------
    layer
        As in `GradCAM`.
    """

    name: ClassVar[str] = "hires-cam"
    label: ClassVar[str] = "HiRes-CAM"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The gradient."""
        return gradient
