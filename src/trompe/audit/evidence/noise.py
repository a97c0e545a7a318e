"""Whether the map stands what the eye does not see."""

from __future__ import annotations

import torch
from torch import Tensor

from trompe.audit.evidence.base import Evidence, compared
from trompe.audit.observe import Maps, Observations

NOISE = 0.1  # standard deviation of the noise added to an image, as a share of the image's own


def with_noise(images: Tensor, seed: int = 0) -> Tensor:
    """Images with a little Gaussian noise, the same pattern on all."""
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
    return images + NOISE * images.std((1, 2, 3), keepdim=True) * noise


def noisy(seen: Observations) -> Maps:
    """Heatmaps of the parts with noise on them ``[M, h, w]``."""
    images, classes = seen.parts
    return seen.explain(with_noise(images), classes)[1]


class Noise(Evidence):
    """Rank correlation of the map with that of the image under a little noise."""

    name = "noise"
    question = "Does the map stand a little noise on the image?"
    suspicious = "low"

    def measure(self, seen: Observations) -> Maps:
        """The correlation of every part."""
        return compared(seen.maps, seen[noisy])
