"""Class activation maps that take no gradient, and have none in the model's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trompe.explainers.cam.grad_cam import ClassActivationMap
from trompe.explainers.cam.need import Activation
from trompe.explainers.gradients.need import ExtraPasses
from trompe.explainers.needs import Explained, Need
from trompe.explainers.sites import Site
from trompe.maps import min_max


@dataclass(frozen=True)
class ScoreCAM(ClassActivationMap):
    """Σ_k w_k A^k, with w the softmax over k of y_c for the image masked by A^k (Wang et al. 2020).

    The masks are the channels, resized to the image and stretched to [0, 1]; each takes a pass.

    Parameters
    ----------
    layer
        As in `GradCAM`.
    """

    name: ClassVar[str] = "score-cam"
    label: ClassVar[str] = "Score-CAM"
    differentiable: ClassVar[bool] = False
    needs: ClassVar[Sequence[Need[Any]]] = (Activation(), ExtraPasses())

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Weigh the channels by the scores of the images that they mask."""
        images = explained.recorded.images.detach()
        activation = explained.of(Activation(), site).detach()
        passes = explained.of(ExtraPasses(), site)
        masks = F.interpolate(activation, images.shape[2:], mode="bilinear", align_corners=True)
        scores = [
            passes.score(images * min_max(mask)[:, None].to(images)) for mask in masks.unbind(1)
        ]
        weights = torch.stack(scores, 1).softmax(1)
        return (weights[:, :, None, None] * activation).sum(1)


@dataclass(frozen=True)
class EigenCAM(ClassActivationMap):
    """A v, with v the first principal component of the positions' features (Muhammad, Yeasin 2020).

    The same for all classes. Features are centred, and v, which has no sign of its own, is the one
    whose map is largest where it is positive.

    Parameters
    ----------
    layer
        As in `GradCAM`.
    """

    name: ClassVar[str] = "eigen-cam"
    label: ClassVar[str] = "Eigen-CAM"
    differentiable: ClassVar[bool] = False
    class_discriminative: ClassVar[bool] = False
    needs: ClassVar[Sequence[Need[Any]]] = (Activation(),)

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Project the features of all positions."""
        activation = explained.of(Activation(), site).detach()
        features = activation.flatten(2).mT
        features = features - features.mean(1, keepdim=True)
        component = torch.linalg.svd(features, full_matrices=False).Vh[:, :1]
        maps = (features @ component.mT).unflatten(1, activation.shape[2:])[..., 0]
        turned = maps.amin((1, 2), keepdim=True).abs() > maps.amax((1, 2), keepdim=True).abs()
        return torch.where(turned, -maps, maps)
