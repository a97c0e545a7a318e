"""pytorch-grad-cam (Gildenblat 2021): its maps as explainers, explainers by its conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytorch_grad_cam
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers import EXPLAINERS, Explainer, Recording
from trompe.explainers.foreign.library import ForeignExplainer, Scalars
from trompe.explainers.sites import Site
from trompe.models.layers import get_layer


class ExplainerCAM(BaseCAM):  # type: ignore[misc]
    """An explainer used as the classes of pytorch-grad-cam are.

    ``ExplainerCAM(model, [model.layer4[-1]], LRP())(images, [ClassifierOutputTarget(281)])`` gives
    heatmaps ``[N, H, W]`` of float32 in [0, 1], at the size of the images. As there, the model is
    put in evaluation mode, and the maps of several target layers are averaged.

    Parameters
    ----------
    model
        The classifier.
    target_layers
        Modules whose output is explained; None for the explainer's own layer.
    explainer
        What explains them, or its text.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module] | None = None,
        explainer: Explainer | str = "grad-cam",
    ) -> None:
        super().__init__(model, [])
        read: Explainer = EXPLAINERS.read(explainer)
        self.target_layers = list(target_layers or ())
        self.explainers = [replace(read, layer=layer) for layer in self.target_layers]
        self.explainers = self.explainers or [read]

    def forward(
        self,
        input_tensor: Tensor,
        targets: Sequence[ClassifierOutputTarget] | None = None,
        eigen_smooth: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Explain the targets, or the predicted classes.

        Raises
        ------
        TrompeError
            If a target is no `ClassifierOutputTarget`, or maps should be smoothed by eigenvectors.
        """
        if eigen_smooth:
            raise TrompeError(
                "Only pytorch-grad-cam's own methods know eigen_smooth; leave it out."
            )
        images = input_tensor.to(self.device)
        with torch.no_grad(), Recording(self.model, self.explainers) as forward:
            self.outputs = forward(images)
            heatmaps = forward.heatmaps(_classes(targets))
        size = self.get_target_width_height(images)
        scaled = [scale_cam_image(maps.cpu().numpy(), size)[:, None] for maps in heatmaps]
        cams: npt.NDArray[np.float32] = self.aggregate_multi_layers(scaled)
        return cams


def _classes(targets: Sequence[ClassifierOutputTarget] | None) -> Tensor | None:
    if targets is None:
        return None
    for target in targets:
        if not isinstance(target, ClassifierOutputTarget):
            raise TrompeError(
                f"trompe explains the logit of a class; give ClassifierOutputTarget(class), not "
                f"{type(target).__name__}."
            )
    return torch.tensor([target.category for target in targets])


@dataclass(frozen=True)
class CAMExplainer(ForeignExplainer):
    """One of pytorch-grad-cam's methods: see `ForeignExplainer`.

    ``CAMExplainer(method="EigenCAM")``; maps are scaled to [0, 1] and resized to the image, as the
    library does.
    """

    name: ClassVar[str] = "pytorch-grad-cam"
    library: ClassVar[str] = "pytorch-grad-cam"
    methods: ClassVar[Mapping[str, Any]] = {
        name: kind
        for name, kind in vars(pytorch_grad_cam).items()
        if isinstance(kind, type) and issubclass(kind, BaseCAM)
    }
    call: ClassVar[str] = "__call__"
    given: ClassVar[frozenset[str]] = frozenset(
        ("self", "model", "target_layers", "input_tensor", "targets", "method")
    )

    def explain(self, model: Scalars, images: Tensor, chosen: Tensor, site: Site) -> Tensor:
        """Explain at the output of the layer."""
        if site.side == "input":
            raise TrompeError(f"pytorch-grad-cam explains outputs; give layer={site.name}.")
        to_make, to_call = (self.options_of(f) for f in (self.kind.__init__, self.kind.__call__))
        targets = [ClassifierOutputTarget(int(c)) for c in chosen]
        with self.kind(model, [get_layer(model.model, site.name)], **to_make) as cam:
            maps = cam(images, targets, **to_call)
        return torch.from_numpy(maps).to(images.device)
