"""Relevance-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from trompe.explainers.cam.grad_cam import ClassActivationMap
from trompe.explainers.cam.need import Activation
from trompe.explainers.needs import Explained, Need
from trompe.explainers.relevance.composites import Composite, find_composite
from trompe.explainers.relevance.need import Relevance
from trompe.explainers.sites import Site


@dataclass(frozen=True)
class RelevanceCAM(ClassActivationMap):
    """Σ_k α_k A^k, with α_k the mean over positions of the relevance of A^k (Lee et al. 2021).

    The relevance is contrastive: it starts as the logit of the class, and as minus that logit, in
    equal shares, at all other classes.

    Parameters
    ----------
    layer
        As in `GradCAM`.
    composite
        The rules, as in `LRP`; ``"z-plus"``, the paper's, is z⁺ wherever there are weights.

    Raises
    ------
    TrompeError
        If there is no such composite, or its file can't be used.
    """

    name: ClassVar[str] = "relevance-cam"
    label: ClassVar[str] = "Relevance-CAM"
    composite: str | Path | Composite = "z-plus"

    def __post_init__(self) -> None:
        _ = self.rules

    @cached_property
    def rules(self) -> Composite:
        """The composite, read."""
        return find_composite(self.composite)

    def identity(self) -> Any:
        """What the composite says decides, not where it was found."""
        kind, options = super().identity()
        return kind, options | {"composite": self.rules}

    @property
    def needs(self) -> tuple[Need[Any], ...]:  # type: ignore[override]
        """The activation and its relevance."""
        return Activation(), Relevance(self.rules, contrastive=True)

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Weigh the channels by their mean relevance. Signed: the ReLU belongs to `heatmap`."""
        activation, relevance = (explained.of(need, site) for need in self.needs)
        found: Tensor = (relevance.mean((2, 3), keepdim=True) * activation).sum(1)
        return found
