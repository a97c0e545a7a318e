"""Relevance as a need: the pass is recorded on a tape, and sent back for each composite once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from trompe.explainers.needs import Explained, Need, Recorded, Service
from trompe.explainers.relevance.composites import COMPOSITES, Composite
from trompe.explainers.relevance.propagate import Observer, propagate
from trompe.explainers.relevance.record import Value
from trompe.explainers.relevance.tape import Tape
from trompe.explainers.sites import Site


class RelevanceService(Service[Tensor]):
    """Records from the sites on, and propagates from the explained score back to them."""

    def __init__(self, recorded: Recorded, wanted: Sequence[tuple[Need[Tensor], Site]]) -> None:
        super().__init__(recorded, wanted)
        folds = any(isinstance(need, Relevance) and need.fold for need, _ in wanted)
        # Folding reads the inputs of BatchNorms, which no rule does.
        self.tape = Tape(recorded.model, keep=("batch_norm",) if folds else ())
        self._values: dict[Site, Value] = {}

    def around(self) -> AbstractContextManager[Any]:
        """The tape."""
        return self.tape

    def aside(self) -> AbstractContextManager[Any]:
        """The tape doesn't follow."""
        return self.tape.paused()

    def tapped(self, site: Site, tensor: Tensor, live: Tensor) -> None:
        """Follow what goes on in the tensor's place."""
        if site in self.sites:
            self._values[site] = self.tape.start(tensor, live)
        else:
            self.tape.rename(tensor, live)

    def find(self, need: Need[Tensor], site: Site, explained: Explained) -> Tensor:
        """Relevance as ``[N, C, h, w]``."""
        assert isinstance(need, Relevance)
        arrived = explained.once((self, need), lambda: self.propagated(need, explained))
        return self.recorded.grids[site](arrived[self._values[site]])

    def propagated(self, need: Relevance, explained: Explained) -> dict[Value, Tensor]:
        """Relevance at every site."""
        output = self.recorded.output
        shares = explained.scalar.shares(output, of_one=need.of_one)
        return propagate(
            self.tape,
            self.tape.value(output),
            _contrasted(shares) if need.contrastive else shares,
            need.composite or COMPOSITES.build("attn-lrp" if self.tape.attends else "heo2019"),
            set(self._values.values()),
            fold=need.fold,
            observer=need.observer,
        )


@dataclass(frozen=True)
class Relevance(Need[Tensor]):
    """Relevance at the explainer's site, which starts as the explained score.

    Attributes
    ----------
    composite
        Chooses the rules; None for the one that the network's kind takes.
    fold
        Treat each BatchNorm as part of the layer next to it.
    observer
        Called after every operation of the reverse pass.
    of_one
        Start as 1, whatever the score: rules are linear in relevance, so that all are shares of it.
    contrastive
        Take from each output the mean of what all others start with (Gu et al. 2018).
    """

    service: ClassVar[type[Service[Tensor]]] = RelevanceService

    composite: Composite | None = None
    fold: bool = False
    observer: Observer | None = None
    of_one: bool = False
    contrastive: bool = False


def _contrasted(shares: Tensor) -> Tensor:
    others = shares.sum(1, keepdim=True) - shares
    return shares - others / max(1, shares.shape[1] - 1)
