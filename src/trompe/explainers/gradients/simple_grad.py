"""The gradient of the class score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from trompe.explainers.explainer import Explainer
from trompe.explainers.gradients.need import Gradient
from trompe.explainers.needs import Explained, Need
from trompe.explainers.sites import INPUT, Site


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
    label: ClassVar[str] = "SimpleGrad"
    needs: ClassVar[Sequence[Need[Any]]] = (Gradient(),)
    layer: str | nn.Module | None = INPUT

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Sum the gradient's magnitude over channels."""
        return explained.of(Gradient(), site).gradient.abs().sum(1)


SimpleGrad_T = partial(SimpleGrad, layer=None)
"""At the last spatial layer, as in the paper."""
