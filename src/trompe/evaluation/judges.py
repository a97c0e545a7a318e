"""The explainers that a manipulation is judged by if nobody chose them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers import LRP, Explainer, IntegratedGradients, SimpleGrad
from trompe.maps import is_empty

JUDGES = (LRP(), SimpleGrad(), IntegratedGradients(steps=8))


def default_judges(
    model: nn.Module,
    sample: Tensor,
    attacked: Sequence[Explainer],
    chosen: Explainer | Sequence[Explainer] | None = None,
) -> list[Explainer]:
    """The attacked explainers and those chosen, each resolved and tried on one image.

    Without a choice they are `JUDGES`; of these, one is left out with a warning if it can't explain
    the model, if its maps are constant, or if they are those of an attacked one: behind pooling
    and one linear layer, LRP at the last layer is Grad-CAM and the gradient is the same everywhere.

    Parameters
    ----------
    sample
        One image ``[1, 3, H, W]``, where the model is.

    Raises
    ------
    TrompeError
        If an attacked or chosen explainer can't explain the model.
    """
    given = [chosen] if isinstance(chosen, Explainer) else list(chosen or ())
    judges = list(dict.fromkeys(e.resolve(model, sample) for e in [*attacked, *given]))
    if chosen is not None:
        for explainer in judges:
            _heatmaps(explainer, model, sample)
        return judges
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0)).to(sample)
    probe = torch.cat([sample, noise])
    maps = [_heatmaps(explainer, model, probe) for explainer in judges]
    for explainer in JUDGES:
        if explainer in judges:
            continue
        if why := _fault(explainer, model, probe, maps):
            warnings.warn(f"{explainer} is left out of the evaluation: {why}", stacklevel=4)
        else:
            judges.append(explainer)
    return judges


def _fault(
    explainer: Explainer, model: nn.Module, probe: Tensor, attacked: Sequence[Tensor]
) -> str | None:
    try:
        found = _heatmaps(explainer, model, probe)
    except TrompeError as error:
        return str(error)
    if is_empty(found).all():
        return "its maps are the same everywhere."
    if any(found.shape == known.shape and torch.allclose(found, known) for known in attacked):
        return "its maps are those of an attacked explainer."
    return None


@torch.no_grad()
def _heatmaps(explainer: Explainer, model: nn.Module, images: Tensor) -> Tensor:
    return explainer.heatmap(explainer(model, images, 0))
