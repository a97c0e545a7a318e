"""Captum (Kokhlikyan et al. 2020): its attributions as explainers, explainers as attributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import captum.attr
import numpy as np
import torch
from captum.attr import Attribution, NeuronAttribution
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers import EXPLAINERS, Explainer
from trompe.explainers.foreign.library import ForeignExplainer, Scalars, parameters
from trompe.explainers.sites import Site
from trompe.models.layers import get_layer


class ExplainerAttribution(Attribution):  # type: ignore[misc]
    """An explainer behind Captum's interface.

    Parameters
    ----------
    model
        The classifier.
    explainer
        What explains it, or its text. Its maps can be differentiated here as well.

    Raises
    ------
    TrompeError
        If ``model`` is a function that is no module.
    """

    def __init__(self, model: nn.Module, explainer: Explainer | str) -> None:
        if not isinstance(model, nn.Module):
            raise TrompeError("trompe explains modules; give the model, not its forward function.")
        super().__init__(model)
        self.explainer: Explainer = EXPLAINERS.read(explainer)

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: int | list[int] | Tensor | None = None,
        additional_forward_args: None = None,
    ) -> Tensor | tuple[Tensor]:
        """Explain the target class.

        Parameters
        ----------
        inputs
            Images ``[N, 3, H, W]``, or a tuple of just them.
        target
            One class or one per image; None for the predicted classes.

        Returns
        -------
        Tensor or tuple of Tensor
            Raw maps ``[N, 1, h, w]``; ``LayerAttribution.interpolate`` resizes them.

        Raises
        ------
        TrompeError
            If there is more than one input, more to the forward pass, or no such class.
        """
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        if len(given) > 1 or additional_forward_args is not None:
            raise TrompeError("trompe explains models of one input, the images; wrap the model.")
        images = given[0]
        maps = self.explainer(self.forward_func, images, _classes(target))[:, None]
        return (maps,) if isinstance(inputs, tuple) else maps


def _classes(target: int | list[int] | Tensor | None) -> Tensor | int | None:
    if target is None or isinstance(target, int):
        return target
    classes = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
    if classes.dtype.kind not in "iu":
        raise TrompeError("target is a class, or a list or tensor of one per image.")
    return torch.from_numpy(classes.reshape(()) if classes.size == 1 else classes)


def _explains_a_class(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, Attribution)
        and not issubclass(kind, NeuronAttribution)
        and hasattr(kind, "attribute")
        and {"inputs", "target"} <= parameters(kind.attribute)
    )


@dataclass(frozen=True)
class CaptumExplainer(ForeignExplainer):
    """One of Captum's attributions, summed over channels: see `ForeignExplainer`.

    ``CaptumExplainer(method="Occlusion", options={"sliding_window_shapes": (3, 8, 8)})``.
    """

    name: ClassVar[str] = "captum"
    library: ClassVar[str] = "Captum"
    methods: ClassVar[Mapping[str, Any]] = {
        name: kind for name, kind in vars(captum.attr).items() if _explains_a_class(kind)
    }
    call: ClassVar[str] = "attribute"
    given: ClassVar[frozenset[str]] = frozenset(
        (
            *("self", "forward_func", "model", "layer", "device_ids", "inputs", "target", "method"),
            *("additional_forward_args", "attribute_to_layer_input", "return_convergence_delta"),
        )
    )

    def explain(self, model: Scalars, images: Tensor, chosen: Tensor, site: Site) -> Tensor:
        """Attribute, and sum over channels."""
        to_make, to_call = (self.options_of(f) for f in (self.kind.__init__, self.kind.attribute))
        if self.at_layer:
            to_make["layer"] = get_layer(model.model, site.name)
        if site.side == "input":
            to_call["attribute_to_layer_input"] = True
        found = self.kind(model, **to_make).attribute(images, target=chosen, **to_call)
        (attributions,) = found if isinstance(found, tuple) else (found,)
        summed: Tensor = attributions.sum(1)
        return summed
