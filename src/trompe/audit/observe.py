"""What a model does with a probe: observed when evidence first asks for it, then kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trompe.audit.probe import EXPLAINED, PARTS, Probe
from trompe.errors import TrompeError
from trompe.explainers import Explainer, Recording
from trompe.models import evaluation_mode
from trompe.models.call import placed

Maps = dict[Explainer, Tensor]
T = TypeVar("T")


class Observations:
    """What a model does with a probe.

    An observation is a function of these observations: ``seen[noisy]`` is ``noisy(seen)``, computed
    once, without gradients and in evaluation mode, however many kinds of evidence ask for it.

    Parameters
    ----------
    model, probe
        Who is asked, and what is shown.
    explainers
        Those are used whose maps depend on the position.
    batch_size
        Images per batch.

    Raises
    ------
    TrompeError
        If an explainer can't explain the model, or none of them says anything about positions.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        explainers: Sequence[Explainer],
        *,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.probe = probe
        self.explainers = informative(model, probe, explainers)
        self.batch_size = batch_size
        self._kept: dict[Callable[[Observations], Any], Any] = {}

    def __getitem__(self, observation: Callable[[Observations], T]) -> T:
        if observation not in self._kept:
            with torch.no_grad(), evaluation_mode(self.model):
                self._kept[observation] = observation(self)
        found: T = self._kept[observation]
        return found

    @property
    def maps(self) -> Maps:
        """Heatmaps ``[N, h, w]`` in [0, 1] of the explained images and their classes."""
        return self[explained][1]

    @property
    def logits(self) -> Tensor:
        """Logits ``[N, K]`` of the explained images."""
        return self[explained][0]

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """The images that are taken apart ``[M, 3, H, W]``, and their classes ``[M]``."""
        return self.probe.parts, self.probe.classes[:PARTS]

    def batches(self, count: int) -> Iterator[slice]:
        """Slices of ``count`` images, a batch each."""
        size = self.batch_size
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def explain(
        self, images: Tensor, classes: Tensor, model: nn.Module | None = None
    ) -> tuple[Tensor, Maps]:
        """Logits ``[n, K]`` and heatmaps ``[n, h, w]`` of images; of another ``model`` if given."""
        model = model or self.model
        logits, maps = [], []
        for batch in self.batches(len(images)):
            with Recording(model, self.explainers) as forward:
                logits.append(forward(placed(images[batch], model)).float().cpu())
                maps.append([m.float().cpu() for m in forward.heatmaps(classes[batch])])
        return torch.cat(logits), joined(self.explainers, maps)


def explained(seen: Observations) -> tuple[Tensor, Maps]:
    """Logits and heatmaps of the images that are explained."""
    return seen.explain(seen.probe.explained, seen.probe.classes[:EXPLAINED])


def joined(explainers: Sequence[Explainer], batches: list[list[Tensor]]) -> Maps:
    """The maps of batches, each a list by explainer, as one tensor by explainer."""
    whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    return dict(zip(explainers, whole, strict=True)) if batches else {}


@torch.no_grad()
def informative(
    model: nn.Module, probe: Probe, explainers: Sequence[Explainer]
) -> tuple[Explainer, ...]:
    """The explainers, resolved, each once, whose raw maps are not the same at all positions.

    A gradient at the layer before an average pooling is; no fooling makes it so.
    """
    images, classes = placed(probe.images[:8], model), probe.classes[:8]
    with evaluation_mode(model), Recording(model, explainers) as forward:
        forward(images)
        raw = forward.maps(classes)
        resolved = [e.resolve(model, images[:1]) for e in explainers]
    spread = [(m.amax((1, 2)) - m.amin((1, 2))) / m.abs().amax((1, 2)) for m in raw]
    used = [e for e, s in zip(resolved, spread, strict=True) if float(s.nanmedian()) > 1e-4]
    if not used:
        raise TrompeError(
            "None of the explainers says anything about positions: their maps are constant. Give "
            "other explainers, or an earlier layer, as in grad-cam:layer=layer3."
        )
    return tuple(dict.fromkeys(used))
