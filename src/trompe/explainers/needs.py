"""What explainers need from a forward pass: objects that tap it and find something in it after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor

from trompe.explainers.sites import Site

if TYPE_CHECKING:
    from trompe.explainers.recording import Explained, Recorded

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
