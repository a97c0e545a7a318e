"""Quantus (Hedström et al. 2023): explainers for its metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trompe.errors import TrompeError
from trompe.explainers import EXPLAINERS, Explainer
from trompe.maps import resize


def explain_func(
    model: nn.Module,
    inputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    explainer: str | Explainer = "grad-cam",
    device: str | None = None,
    **others: Any,
) -> npt.NDArray[Any]:
    """Explain as Quantus' metrics ask for it.

    ``metric(..., explain_func=explain_func, explain_func_kwargs={"explainer": "lrp-t"})``.

    Parameters
    ----------
    model
        The classifier.
    inputs
        Images ``[N, 3, H, W]``, or one without N.
    targets
        Class of each image.
    explainer
        An explainer, or its text as on the command line.
    device
        Where to compute; that of the model if None.

    Returns
    -------
    ndarray
        Raw signed maps ``[N, 1, H, W]``, resized to the images; Quantus normalises them itself.

    Raises
    ------
    TrompeError
        If the explainer is unknown, or there are more arguments.
    """
    if others:
        raise TrompeError(
            f"explain_func knows explainer and device, not {', '.join(others)}; write options into "
            "the explainer, as in 'lrp:composite=epsilon-plus'."
        )
    if device is not None:
        model = model.to(device)
    parameter = next(model.parameters())
    images = torch.as_tensor(np.asarray(inputs)).to(parameter)
    images = images[None] if images.dim() == 3 else images
    classes = np.asarray(targets).reshape(-1)
    with torch.no_grad():
        maps = EXPLAINERS.read(explainer)(model, images, classes)
    return resize(maps, (images.shape[2], images.shape[3]))[:, None].cpu().numpy()
