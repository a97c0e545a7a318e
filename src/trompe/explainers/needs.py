"""What explainers need from one forward pass, what serves it, and the pass itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from trompe.base import torch_compat
from trompe.errors import TrompeError
from trompe.explainers import targets
from trompe.explainers.sites import Site, run
from trompe.explainers.targets import Explainable, Scalar
from trompe.explainers.twice import TwiceDifferentiable
from trompe.maps import full_precision
from trompe.models.grids import Grid

T = TypeVar("T")


class Need(Generic[T]):
    """Something that an explainer takes from the forward pass; a frozen dataclass.

    Attributes
    ----------
    service
        The class that serves all needs of this class in one pass.
    """

    service: ClassVar[type[Service[Any]]]


class Service(ABC, Generic[T]):
    """Serves every need of one class in one forward pass, for all explainers that share it.

    Parameters
    ----------
    recorded
        The pass: its ``model``, ``images``, and whether it is ``differentiable``.
    wanted
        The needs, each with the site that its explainer looks at.
    """

    def __init__(self, recorded: Recorded, wanted: Sequence[tuple[Need[T], Site]]) -> None:
        self.recorded = recorded
        self.wanted = wanted

    @property
    def sites(self) -> set[Site]:
        """Where to tap the pass; by default where the explainers look."""
        return {site for _, site in self.wanted}

    def around(self) -> AbstractContextManager[Any]:
        """A context for the pass, such as a ``TorchFunctionMode`` that sees its operations."""
        return nullcontext()

    def aside(self) -> AbstractContextManager[Any]:
        """A context for what services compute in the middle of the pass, which is no part of it."""
        return nullcontext()

    def tap(self, site: Site, tensor: Tensor) -> Tensor:
        """Take the tensor at one of `sites`; what is returned goes on through the model.

        Of a layer that runs several times every call is tapped; the last is the one explained.
        """
        return tensor

    def tapped(self, site: Site, tensor: Tensor, live: Tensor) -> None:
        """See, at any service's site, the tensor and what goes on in its place."""

    @abstractmethod
    def find(self, need: Need[T], site: Site, explained: Explained) -> T:
        """What ``need`` asks for at ``site``, for the classes that are explained."""


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

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context for what is computed in the middle of the pass and is no part of it."""
        with torch_compat.unseen(), ExitStack() as stack:
            for service in self._services.values():
                stack.enter_context(service.aside())
            yield

    @cached_property
    def output(self) -> Tensor:
        """What the model returns ``[N, K]``; it runs now unless it has."""
        services = list(self._services.values())

        def tap(site: Site, tensor: Tensor, grid: Grid) -> Tensor:
            self.grids[site] = grid
            live = tensor
            with self.aside():
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
    """A scalar per image, on one recorded forward pass; shared by all explainers of a batch."""

    def __init__(self, recorded: Recorded, target: Explainable) -> None:
        self.recorded = recorded
        self.target = targets.read(target)
        self._found: dict[Hashable, Any] = {}

    def of(self, need: Need[T], site: Site) -> T:
        """What an explainer that looks at ``site`` needs."""
        return self.recorded.service(need).find(need, site, self)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returns, kept under ``key`` for all explainers of this target."""
        if key not in self._found:
            self._found[key] = compute()
        found: T = self._found[key]
        return found

    @cached_property
    def scalar(self) -> Scalar:
        """The explained scalar as a function of the output ``[N, K]``."""
        return self.target.on(self.recorded.output)

    @property
    def classes(self) -> Tensor:
        """The explained classes ``[N]``.

        Raises
        ------
        TrompeError
            If the target is something else than the logit of a class.
        """
        if not isinstance(self.target, targets.Class):
            raise TrompeError(
                f"This explainer explains the logit of a class, not {self.target}; take another "
                "explainer, or let this one use 'score_in' instead of 'classes'."
            )
        return self.scalar.chosen

    def score_in(self, output: Tensor) -> Tensor:
        """The explained scalar ``[N]`` in the output ``[N, K]`` of any pass on these images."""
        own = not self.target.takes_predicted
        return (self.target.on(output) if own else self.scalar)(output)

    @property
    def score(self) -> Tensor:
        """The explained scalar ``[N]``; never in half precision."""
        return full_precision(self.scalar(self.recorded.output))
