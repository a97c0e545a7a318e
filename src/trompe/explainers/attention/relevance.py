"""Attention weighed by its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trompe.explainers.attention.flow import AttentionFlow
from trompe.explainers.attention.need import Attention, Layer


@dataclass(frozen=True)
class AttentionRelevance(AttentionFlow):
    """R ← R + Ā R from R = I, with Ā the mean over heads of relu(∂y_c/∂A ⊙ A) of each layer
    (Chefer et al. 2021).

    Their equations 5 and 6, of "Generic Attention-model Explainability".

    Parameters
    ----------
    layer, tokens
        As in `AttentionFlow`.
    """

    name: ClassVar[str] = "attention-relevance"
    label: ClassVar[str] = "Attention relevance"
    need: ClassVar[Attention] = Attention(gradient=True)

    def shares(self, layer: Layer) -> Tensor:
        """The mean over heads of what speaks for the score."""
        assert layer.gradient is not None
        return (layer.probabilities * layer.gradient).relu().mean(1)

    def step(self, flow: Tensor, shares: Tensor) -> Tensor:
        """Add what the layer brings."""
        return flow + shares @ flow
