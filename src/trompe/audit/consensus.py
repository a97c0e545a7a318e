"""A heatmap to use instead: what several explainers say together, on an image and near it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trompe.audit.evidence.noise import NOISE
from trompe.audit.removal import GRID, on_grid
from trompe.explainers import Explainer, IntegratedGradients, Recording, SimpleGrad, SmoothGrad
from trompe.maps import ranks
from trompe.models import evaluation_mode
from trompe.models.call import placed

AT_INPUT: tuple[Explainer, ...] = (
    SimpleGrad(),
    SmoothGrad(samples=8),
    IntegratedGradients(steps=8),
)
"""What is merged by default: a lie through one explainer at a layer takes its others along."""


@torch.no_grad()
def consensus(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | int | None = None,
    *,
    explainers: Sequence[Explainer] = AT_INPUT,
    samples: int = 4,
    sigma: float = NOISE,
    seed: int = 0,
) -> Tensor:
    """The median over explainers of a cell's mean rank over noisy copies of the image.

    As long as fewer than half of the explainers lie, the median is one that an honest one gives or
    one between two such.

    Parameters
    ----------
    model, images, classes
        As for an explainer; the images ``[N, 3, H, W]``.
    explainers
        An odd number, at the input or at different layers.
    samples, sigma, seed
        Copies, the standard deviation of their noise as a share of the image's own, its seed. The
        first copy is the image itself.

    Returns
    -------
    Tensor
        ``[N, g, g]`` in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    total: Tensor | float = 0.0
    with evaluation_mode(model):
        for sample in range(samples):
            noise = torch.randn(images.shape, generator=generator) if sample else 0.0
            spread = sigma * images.std((1, 2, 3), keepdim=True)
            with Recording(model, explainers) as forward:
                logits = forward(placed(images + spread * noise, model))
                classes = logits.argmax(1) if classes is None else classes
                maps = forward.heatmaps(classes)
            total = total + torch.stack([_rank(on_grid(m)) for m in maps]) / samples
    assert isinstance(total, Tensor)
    return total.median(0).values.cpu()


def _rank(maps: Tensor) -> Tensor:
    """Ranks from 0 to 1, as maps."""
    return ((ranks(maps) - 1) / (GRID * GRID - 1)).float().view_as(maps)
