"""Whether the map needs what the model learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trompe.audit.evidence.base import Evidence, compared
from trompe.audit.observe import Maps, Observations
from trompe.errors import TrompeError
from trompe.models import copied, find_heads
from trompe.models.call import placed


@torch.no_grad()
def with_random_head(model: nn.Module, image: Tensor, seed: int = 0) -> nn.Module:
    """A copy whose last layers' weights are drawn anew (Adebayo et al., 2018: the first cascade).

    Drawn from a normal distribution of each tensor's own mean and standard deviation. Layers that
    share weights with a last one keep theirs.

    Parameters
    ----------
    image
        One image ``[1, 3, H, W]``, to see which layers are last.

    Raises
    ------
    TrompeError
        If no layer with weights makes the logits.
    """
    drawn = copied(model)
    generator = torch.Generator().manual_seed(seed)
    for head in find_heads(model, image):
        for name, module in drawn.get_submodule(head).named_modules():
            if not name or name.startswith("parametrizations"):
                for key, weight in [*module.named_parameters(recurse=False)]:
                    if weight.dim() > 1:
                        noise = torch.randn(weight.shape, generator=generator).to(weight)
                        setattr(module, key, nn.Parameter(noise * weight.std() + weight.mean()))
    return drawn


def randomised(seen: Observations) -> Maps:
    """Heatmaps of the parts under the model with random last layers ``[M, h, w]``.

    None of a model without such layers.
    """
    images, classes = seen.parts
    try:
        other = with_random_head(seen.model, placed(images[:1], seen.model))
    except TrompeError:
        return {}
    return seen.explain(images, classes, other)[1]


class Randomisation(Evidence):
    """Rank correlation of the map with that of the model with random last layers."""

    name = "randomisation"
    question = "Does the map need the model's last layer?"
    suspicious = "high"

    def measure(self, seen: Observations) -> Maps:
        """The correlation of every part."""
        return compared(seen.maps, seen[randomised])
