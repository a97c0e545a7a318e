"""One forward pass per batch that several explainers read."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers.needs import Explained, Need, Recorded
from trompe.explainers.registry import EXPLAINERS
from trompe.explainers.sites import Site
from trompe.explainers.targets import Explainable
from trompe.models.call import both_classes, unwrapped


class Explaining(Protocol):
    """What a recording asks of an explainer."""

    @property
    def needs(self) -> Sequence[Need[Any]]:
        """What it takes from the pass."""

    def resolve(self, model: nn.Module, image: Tensor) -> Self:
        """Name the layer."""

    def site(self, model: nn.Module) -> Site:
        """Where it looks."""

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Raw maps from the pass."""

    def heatmap(self, maps: Tensor) -> Tensor:
        """Maps in [0, 1]."""


class Recording:
    """One model, one or several explainers, one forward pass per batch.

    ``with GradCAM().record(model) as forward:`` gives a callable that stands for the model in a
    training step: ``logits = forward(images)``, then ``forward.maps(classes)`` as often as wanted.
    The model runs in whatever mode it is in. Leaving the block frees what was recorded.

    Parameters
    ----------
    model
        The classifier.
    explainers
        One explainer or its text (`maps` returns a tensor), or a sequence (it returns a tuple).
    """

    def __init__(
        self, model: nn.Module, explainers: Explaining | str | Sequence[Explaining | str]
    ) -> None:
        self.model = unwrapped(model)
        self._single = isinstance(explainers, str) or not isinstance(explainers, Sequence)
        given: Any = (explainers,) if self._single else explainers
        self._explainers: tuple[Explaining, ...] = tuple(map(EXPLAINERS.read, given))
        self._recorded: Recorded | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._recorded = None

    def __call__(self, images: Tensor) -> Tensor:
        """Run the model once on ``images`` ``[N, 3, H, W]`` and return its logits ``[N, K]``."""
        recorded = self.prepare(images)
        logits = both_classes(recorded.output)
        return logits if recorded.differentiable else logits.detach()

    def prepare(self, images: Tensor) -> Recorded:
        """Take ``images`` to explain; the model runs on them once something asks for it."""
        self._recorded = None
        check_images(images)
        self._explainers = tuple(e.resolve(self.model, images[:1]) for e in self._explainers)
        self._sites = tuple(e.site(self.model) for e in self._explainers)
        wanted = [
            (need, site)
            for explainer, site in zip(self._explainers, self._sites, strict=True)
            for need in explainer.needs
        ]
        self._recorded = Recorded(self.model, images, wanted)
        return self._recorded

    def maps(self, classes: Explainable = None) -> Any:
        """Raw maps ``[N, h, w]`` of ``classes`` (``[N]``, one int, None for the predicted), or of
        another target.
        """
        if self._recorded is None:
            raise TrompeError("There is nothing to explain yet: call forward(images) first.")
        explained = Explained(self._recorded, classes)
        with torch.inference_mode(False), torch.set_grad_enabled(self._recorded.differentiable):
            maps = tuple(
                explainer.attribute(site, explained)
                for explainer, site in zip(self._explainers, self._sites, strict=True)
            )
        return maps[0] if self._single else maps

    def heatmaps(self, classes: Explainable = None) -> Any:
        """Like `maps`, brought to [0, 1] by each explainer's `heatmap`."""
        maps = self.maps(classes)
        if self._single:
            return self._explainers[0].heatmap(maps)
        return tuple(e.heatmap(m) for e, m in zip(self._explainers, maps, strict=True))


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images ``[N, C, H, W]`` of floating-point numbers.

    Raises
    ------
    TrompeError
        If it is something else, or empty.
    """
    if not isinstance(images, Tensor):
        raise TrompeError(
            f"Images are a tensor [N, C, H, W], not {type(images).__name__}; "
            "torch.as_tensor makes one of an array."
        )
    if images.dim() != 4:
        hint = "; images[None] is a batch of one" if images.dim() == 3 else ""
        raise TrompeError(f"Images are a batch [N, C, H, W], not {list(images.shape)}{hint}.")
    if not images.is_floating_point():
        raise TrompeError(
            f"Images are of floating-point numbers, normalised as the model expects, not "
            f"{images.dtype}."
        )
    if not images.numel():
        raise TrompeError(f"There is nothing to explain in images {list(images.shape)}.")
