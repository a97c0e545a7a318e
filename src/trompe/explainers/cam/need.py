"""The activation alone: what maps without gradients read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trompe.explainers.needs import Explained, Need, Recorded, Service
from trompe.explainers.sites import Site
from trompe.maps import full_precision


class ActivationService(Service[Tensor]):
    """Keeps a copy of the tensor at each site."""

    def __init__(self, recorded: Recorded, wanted: Sequence[tuple[Need[Tensor], Site]]) -> None:
        super().__init__(recorded, wanted)
        self._kept: dict[Site, Tensor] = {}

    def tap(self, site: Site, tensor: Tensor) -> Tensor:
        """Keep a copy, which nothing changes in place."""
        self._kept[site] = tensor.clone()
        return tensor

    def find(self, need: Need[Tensor], site: Site, explained: Explained) -> Tensor:
        """The tensor as ``[N, C, h, w]``, never in half precision."""
        _ = self.recorded.output
        return full_precision(self.recorded.grids[site](self._kept[site]))


@dataclass(frozen=True)
class Activation(Need[Tensor]):
    """The tensor at the explainer's site."""

    service: ClassVar[type[Service[Tensor]]] = ActivationService
