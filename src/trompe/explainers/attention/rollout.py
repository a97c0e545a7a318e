"""Attention rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trompe.explainers.attention.flow import AttentionFlow
from trompe.explainers.attention.need import Layer


@dataclass(frozen=True)
class Rollout(AttentionFlow):
    """Ã_L ··· Ã_1, with Ã = (A + I) / 2 for the mean attention A of a layer's heads (Abnar and
    Zuidema 2020).

    Half is the residual connection. It is the same for all classes.

    Parameters
    ----------
    layer, tokens
        As in `AttentionFlow`.
    """

    name: ClassVar[str] = "rollout"
    label: ClassVar[str] = "Rollout"
    class_discriminative: ClassVar[bool] = False

    def shares(self, layer: Layer) -> Tensor:
        """The mean over heads."""
        return layer.probabilities.mean(1)

    def step(self, flow: Tensor, shares: Tensor) -> Tensor:
        """Half of what was attended to, half of the token itself."""
        return (shares + torch.eye(shares.shape[-1]).to(shares)) / 2 @ flow
