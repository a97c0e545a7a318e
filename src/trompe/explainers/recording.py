"""One forward pass that several explainers read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import Tensor, nn

from trompe.base import torch_compat
from trompe.errors import TrompeError
from trompe.explainers import targets
from trompe.explainers.needs import Need, Service
from trompe.explainers.sites import Site, run
from trompe.explainers.targets import Classes
from trompe.explainers.twice import TwiceDifferentiable
from trompe.maps import full_precision
from trompe.models.call import both_classes, unwrapped
from trompe.models.grids import Grid

if TYPE_CHECKING:
    from trompe.explainers.explainer import Explainer

T = TypeVar("T")


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
        One explainer (`maps` returns a tensor) or a sequence of them (it returns a tuple).
    """

    def __init__(self, model: nn.Module, explainers: Explainer | Sequence[Explainer]) -> None:
        self.model = unwrapped(model)
        self._single = not isinstance(explainers, Sequence)
        self._explainers = (explainers,) if not isinstance(explainers, Sequence) else explainers
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

    def maps(self, classes: Classes = None) -> Any:
        """Raw maps ``[N, h, w]`` of ``classes`` (``[N]``, one int, or None for the predicted)."""
        if self._recorded is None:
            raise TrompeError("There is nothing to explain yet: call forward(images) first.")
        explained = Explained(self._recorded, classes)
        with torch.inference_mode(False), torch.set_grad_enabled(self._recorded.differentiable):
            maps = tuple(
                explainer.attribute(site, explained)
                for explainer, site in zip(self._explainers, self._sites, strict=True)
            )
        return maps[0] if self._single else maps

    def heatmaps(self, classes: Classes = None) -> Any:
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


class Recorded:
    """One forward pass, once its output is asked for, and what serves the needs of explainers.

    Parameters
    ----------
    model, images
        What runs, and on what.
    wanted
        The needs, each with the site that its explainer looks at.

    Attributes
    ----------
    differentiable
        Whether maps shall have a graph.
    twice
        The context of passes whose gradients are differentiated; None if none is.
    grids
        By site, how the tensor there lies over the images.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, wanted: Sequence[tuple[Need[Any], Site]]
    ) -> None:
        self.model = model
        self.images = images
        self.differentiable = torch.is_grad_enabled() and (
            images.requires_grad or any(p.requires_grad for p in model.parameters())
        )
        self.twice = TwiceDifferentiable() if self.differentiable else None
        self.grids: dict[Site, Grid] = {}
        self._services: dict[type[Service[Any]], Service[Any]] = {
            kind: kind(self, [(n, site) for n, site in wanted if n.service is kind])
            for kind in dict.fromkeys(need.service for need, _ in wanted)
        }

    def service(self, need: Need[T]) -> Service[T]:
        """What serves ``need``.

        Raises
        ------
        TrompeError
            If no explainer of this pass has declared such a need.
        """
        if need.service not in self._services:
            raise TrompeError(
                f"{need} is asked for but not declared; an explainer names in 'needs' what it "
                "takes from the forward pass."
            )
        return self._services[need.service]

    @cached_property
    def output(self) -> Tensor:
        """What the model returns ``[N, K]``; it runs now unless it has."""
        services = list(self._services.values())

        def tap(site: Site, tensor: Tensor, grid: Grid) -> Tensor:
            self.grids[site] = grid
            live = tensor
            with torch_compat.unseen():
                for service in services:
                    if site in service.sites:
                        live = service.tap(site, live)
                for service in services:
                    service.tapped(site, tensor, live)
            return live

        taps = {site: tap for service in services for site in service.sites}
        contexts = [service.around() for service in services]
        return run(self.model, self.images, taps, self.twice, *contexts)


class Explained:
    """A class per image, on one recorded forward pass; shared by all explainers of a batch."""

    def __init__(self, recorded: Recorded, classes: Classes) -> None:
        self.recorded = recorded
        self._given = classes
        self._found: dict[Hashable, Any] = {}

    def of(self, need: Need[T], site: Site) -> T:
        """What an explainer that looks at ``site`` needs."""
        return self.recorded.service(need).find(need, site, self)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returns, kept under ``key`` for all explainers of these classes."""
        if key not in self._found:
            self._found[key] = compute()
        found: T = self._found[key]
        return found

    @cached_property
    def classes(self) -> Tensor:
        """The explained classes ``[N]``."""
        return targets.check_classes(self._given, self.recorded.output)

    def score_in(self, output: Tensor) -> Tensor:
        """The explained scalar ``[N]`` in the output ``[N, K]`` of any pass on these images."""
        given = self._given is not None
        classes = targets.check_classes(self._given, output) if given else self.classes
        return targets.score(output, classes)

    @property
    def score(self) -> Tensor:
        """The explained scalar ``[N]``; never in half precision."""
        return full_precision(targets.score(self.recorded.output, self.classes))
