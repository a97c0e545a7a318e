"""Gradients of the explained score: from the pass that all explainers share, or from others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from trompe.base import torch_compat
from trompe.errors import TrompeError
from trompe.explainers.needs import Explained, Need, Recorded, Service
from trompe.explainers.sites import Site, run
from trompe.explainers.twice import TwiceDifferentiable, gradients_between
from trompe.maps import full_precision
from trompe.models.graph import node_of, nodes_behind
from trompe.models.grids import Grid
from trompe.models.hooks import evaluation_mode


class Slope(NamedTuple):
    """The tensor A at a site and ∂score/∂A, both as ``[N, C, h, w]``."""

    activation: Tensor
    gradient: Tensor


class GradientService(Service[Slope]):
    """Keeps the tensors at all sites and takes the gradients in one backward pass."""

    def __init__(self, recorded: Recorded, wanted: Sequence[tuple[Need[Slope], Site]]) -> None:
        super().__init__(recorded, wanted)
        self._kept: dict[Site, Tensor] = {}

    def tap(self, site: Site, tensor: Tensor) -> Tensor:
        """Keep the tensor, and go on with a copy, so that nothing changes it in place."""
        self._kept[site] = _begun(tensor)
        return self._kept[site].clone()

    def find(self, need: Need[Slope], site: Site, explained: Explained) -> Slope:
        """The tensor, and its gradient in full precision."""
        gradients = explained.once(self, lambda: self._gradients(explained))
        grid = self.recorded.grids[site]
        return Slope(grid(self._kept[site]), grid(gradients[site]))

    def _gradients(self, explained: Explained) -> dict[Site, Tensor]:
        with torch.enable_grad():
            score = explained.score_in(self.recorded.output).sum()
        sites = sorted(self.sites, key=str)
        kept = {site: self._kept[site] for site in sites}
        return _gradients(score, kept, self.recorded.twice, retain_graph=True)


@dataclass(frozen=True)
class Gradient(Need[Slope]):
    """The tensor at the explainer's site and the gradient of the score in it."""

    service: ClassVar[type[Service[Slope]]] = GradientService


class Passes:
    """Extra passes in evaluation mode, which leave no trace in the model."""

    def __init__(self, recorded: Recorded, site: Site, explained: Explained) -> None:
        self.recorded = recorded
        self.site = site
        self.explained = explained
        self.grid = Grid()

    def gradient(
        self, images: Tensor, replacement: Tensor | None = None, *, call: int | None = None
    ) -> Tensor:
        """The score's gradient in what lies at the site, or in a replacement of it there.

        It has the form of the tensor at the site; `grid` brings it to ``[N, C, h, w]``.
        """
        kept: dict[Site, Tensor] = {}

        def tap(site: Site, tensor: Tensor) -> Tensor:
            if replacement is not None and torch_compat.is_checkpointed():
                raise TrompeError(
                    f"The model checkpoints its activations around layer '{self.site}' and would "
                    "run it again without those put in their place; switch its checkpoints off."
                )
            kept[self.site] = _begun(tensor if replacement is None else replacement)
            return kept[self.site].clone()

        output = self._run(
            images, self.site if call is None else replace(self.site, call=call), tap
        )
        with torch.enable_grad():
            score = self.explained.score_in(output).sum()
        return _gradients(score, kept, self.recorded.twice)[self.site]

    def score(self, images: Tensor) -> Tensor:
        """The explained scalar ``[N]``, without a graph; never in half precision."""
        with evaluation_mode(self.recorded.model):
            output = run(self.recorded.model, images, {}, None)
        return full_precision(self.explained.score_in(output))

    def activation(self, images: Tensor) -> tuple[Tensor, int]:
        """The tensor at the site, and the number of the module's call that it belongs to."""
        kept: list[Tensor] = []

        def tap(_: Site, tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor.clone()

        self._run(images, self.site, tap)
        return kept[-1], self.site.call or len(kept)

    def _run(self, images: Tensor, site: Site, tap: Callable[[Site, Tensor], Tensor]) -> Tensor:
        def keeping(site: Site, tensor: Tensor, grid: Grid) -> Tensor:
            self.grid = grid
            return tap(site, tensor)

        with evaluation_mode(self.recorded.model):
            return run(self.recorded.model, images, {site: keeping}, self.recorded.twice)


class ExtraPassesService(Service[Passes]):
    """Needs nothing of the shared pass."""

    @property
    def sites(self) -> set[Site]:
        """None."""
        return set()

    def find(self, need: Need[Passes], site: Site, explained: Explained) -> Passes:
        """Passes at the explainer's site."""
        return Passes(self.recorded, site, explained)


@dataclass(frozen=True)
class ExtraPasses(Need[Passes]):
    """Gradients and activations from passes on other images, or with other activations."""

    service: ClassVar[type[Service[Passes]]] = ExtraPassesService


def _begun(tensor: Tensor) -> Tensor:
    """The tensor, with a graph from here on."""
    torch.set_grad_enabled(True)
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


def _gradients(
    score: Tensor,
    kept: dict[Site, Tensor],
    twice: TwiceDifferentiable | None,
    *,
    retain_graph: bool | None = None,
) -> dict[Site, Tensor]:
    """Gradients of a score by site, never in half precision; one that is missing is no 0."""
    ends = {node_of(tensor) for tensor in kept.values()}
    behind = nodes_behind([node_of(score)] if score.requires_grad else [], ends.__contains__)
    if any(torch_compat.has_no_derivative(node) for node in behind):
        raise TrompeError(
            "The model has an operation between the explained layer and its output that autograd "
            "passes over, as those of quantised layers: its gradients would be 0 or wrong. Explain "
            "the model as it was before it was quantised."
        )
    if any(torch_compat.is_reentrant_checkpoint(node) for node in behind):
        raise TrompeError(
            "The model checkpoints its activations in a form whose gradients can't be taken; let "
            "it call torch.utils.checkpoint with use_reentrant=False, or no checkpoint at all."
        )
    found = (
        gradients_between(score, [*kept.values()], twice, retain_graph=retain_graph)
        if score.requires_grad
        else [None] * len(kept)
    )
    for site, gradient in zip(kept, found, strict=True):
        if gradient is None:
            raise TrompeError(
                f"The model's output does not depend on layer '{site}'; choose a layer that the "
                "output is computed from."
            )
    return {site: full_precision(g) for site, g in zip(kept, found, strict=True) if g is not None}
