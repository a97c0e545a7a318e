"""Attention rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trompe.explainers.attention.flow import AttentionFlow
from trompe.explainers.attention.need import Layer


@dataclass(frozen=True)
class Rollout(AttentionFlow):
    """Ã_L ··· Ã_1 with Ã = (A + I) / 2, A a layer's attention, the mean of its heads.

    Abnar and Zuidema 2020; half is the residual connection. It is the same for all classes.

    Parameters
    ----------
    layer, tokens
        As in `AttentionFlow`.
    """

    name: ClassVar[str] = "rollout"
    label: ClassVar[str] = "Rollout"

    def flow(self, layers: Sequence[Layer]) -> Tensor:
        """The product of the layers."""
        first, *others = [layer.probabilities.mean(1) for layer in layers]
        identity = torch.eye(first.shape[-1]).to(first)
        product = (first + identity) / 2
        for attention in others:
            product = (attention + identity) / 2 @ product
        return product
