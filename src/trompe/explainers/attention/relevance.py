"""Attention weighed by its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trompe.explainers.attention.flow import AttentionFlow
from trompe.explainers.attention.need import Attention, Layer


@dataclass(frozen=True)
class AttentionRelevance(AttentionFlow):
    """R ← R + Ā R from R = I, with Ā the mean over heads of relu(∂y_c/∂A ⊙ A) of each layer.

    Chefer, Gur and Wolf, ICCV 2021, equations 5 and 6.

    Parameters
    ----------
    layer, tokens
        As in `AttentionFlow`.
    """

    name: ClassVar[str] = "attention-relevance"
    label: ClassVar[str] = "Attention relevance"
    need: ClassVar[Attention] = Attention(gradient=True)

    def flow(self, layers: Sequence[Layer]) -> Tensor:
        """Add what each layer brings."""
        probabilities = layers[0].probabilities
        relevance = torch.eye(probabilities.shape[-1]).to(probabilities)
        for probabilities, gradient in layers:
            assert gradient is not None
            relevance = relevance + (probabilities * gradient).relu().mean(1) @ relevance
        return relevance
