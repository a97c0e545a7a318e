"""By which explainers a manipulated model is judged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers import LRP, Explainer, GradCAM, SimpleGrad


def default_judges(
    model: nn.Module,
    sample: Tensor,
    attacked: Sequence[Explainer],
    chosen: Sequence[Explainer] | None = None,
) -> list[Explainer]:
    """Explainers to evaluate with, each tried once on one image."""
    others = [GradCAM(), SimpleGrad(layer=None), LRP(layer=None)] if chosen is None else chosen
    judges = dict.fromkeys([*attacked, *(e.resolve(model, sample) for e in others)])
    for explainer in list(judges):
        try:
            with torch.no_grad():
                explainer(model, sample, 0)
        except TrompeError as error:
            if chosen is not None or explainer in attacked:
                raise
            warnings.warn(f"{explainer} is left out of the evaluation: {error}", stacklevel=3)
            del judges[explainer]
    return list(judges)
