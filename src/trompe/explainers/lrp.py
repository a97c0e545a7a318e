"""Layer-wise relevance propagation as an explainer; the engine is in ``relevance/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from trompe import specs
from trompe.explainers.base import INPUT, Explained, Explainer, Site
from trompe.explainers.relevance import COMPOSITES
from trompe.maps import min_max


@dataclass(frozen=True)
class LRP(Explainer):
    """Relevance of the class logit at the input or at a layer, summed over channels, signed.

    Bach et al. 2015, with the rules of a composite.

    Parameters
    ----------
    layer
        ``"input"``, a layer's name (``":input"`` appended for the layer's input), a module, or
        None to find the last spatial layer (the paper's LRP_T). Only the part of the model above
        it is traversed.
    composite
        ``"heo2019"`` (the paper's), ``"epsilon"`` or ``"epsilon-plus"``.
    """

    name: ClassVar[str] = "lrp"
    reads: ClassVar[Literal["gradients", "relevance", "logits"]] = "relevance"
    layer: str | nn.Module | None = INPUT
    composite: str = "heo2019"

    def __post_init__(self) -> None:
        specs.check_name("LRP composite", self.composite, COMPOSITES)

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Propagate relevance to the site and sum over channels."""
        return explained.relevance(site, self.composite).sum(1)

    def heatmap(self, maps: Tensor) -> Tensor:
        """Clamp at 0, then min-max per image."""
        return min_max(maps.clamp(min=0))
