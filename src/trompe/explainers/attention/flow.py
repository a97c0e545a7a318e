"""What explainers by attention have in common: which tokens are read, and where they lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.explainers.attention.need import Attended, Attention, Layer, Watch
from trompe.explainers.explainer import Explainer
from trompe.explainers.needs import Explained
from trompe.explainers.sites import INPUT, Site, run
from trompe.models.call import unwrapped
from trompe.models.grids import Grid, grid_of_tokens
from trompe.models.hooks import evaluation_mode


@dataclass(frozen=True)
class AttentionFlow(Explainer):
    """How much of each patch reaches the tokens that the classifier reads.

    Parameters
    ----------
    layer
        ``"input"``: all layers are followed, down to the image's patches.
    tokens
        How many class tokens the classifier reads, the first ones (2 of a distilled DeiT); 0 if it
        reads the patches, as their mean does. Several count as their mean. None to find it. Of a
        network that ends with one query to all tokens, that is what reads.

    Raises
    ------
    TrompeError
        If a layer is named, or ``tokens`` is below 0.
    """

    layer: str | nn.Module | None = INPUT
    tokens: int | None = None
    need: ClassVar[Attention] = Attention()

    def __post_init__(self) -> None:
        if self.layer != INPUT:
            raise TrompeError(
                f"{self.name} follows attention through all layers to the image and takes no "
                "layer; leave it out."
            )
        if self.tokens is not None and self.tokens < 0:
            raise TrompeError(f"{self.name} reads tokens of at least 0, not {self.tokens}.")

    @property
    def needs(self) -> tuple[Attention]:  # type: ignore[override]
        """Attention, layer by layer."""
        return (self.need,)

    def resolve(self, model: nn.Module, image: Tensor) -> Self:
        """Find the tokens that are read, with one image ``[1, 3, H, W]``.

        Raises
        ------
        TrompeError
            If the model has no attention of all tokens to all.
        """
        if self.tokens is not None:
            return self
        model, watch = unwrapped(model), Watch(graph=True)
        with evaluation_mode(model):
            output = run(model, image, {}, None, watch)
        grid, last = self._grid(model, image, watch.layers), watch.layers[-1]
        tokens = 0 if _is_query(last) else _tokens_read(output, last.output, grid)
        return replace(self, tokens=tokens)

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Follow all layers, and read the rows of the tokens that are read."""
        layers = explained.of(self.need, site)
        recorded = explained.recorded
        grid = self._grid(recorded.model, recorded.images, layers)
        shares = [self.shares(layer) for layer in layers]
        query = shares.pop() if _is_query(layers[-1]) else None
        flow = torch.eye(shares[0].shape[-1]).to(shares[0])
        for share in shares:
            flow = self.step(flow, share)
        return grid(self._rows(flow, query, grid).mean(1)[..., None])[:, 0]

    @abstractmethod
    def shares(self, layer: Layer) -> Tensor:
        """How much of each token each takes in a layer ``[N, T, T]``."""

    @abstractmethod
    def step(self, flow: Tensor, shares: Tensor) -> Tensor:
        """How much each token has of each patch after a layer, from that before it."""

    def _rows(self, flow: Tensor, query: Tensor | None, grid: Grid) -> Tensor:
        assert grid.tokens is not None
        before, *_ = grid.tokens
        if query is not None:
            return query @ flow
        if self.tokens and self.tokens > before:
            raise TrompeError(
                f"{self.name} is to read {self.tokens} tokens, but only {before} come before those "
                "of the image's patches."
            )
        return flow[:, : self.tokens] if self.tokens else flow[:, before:]

    def _grid(self, model: nn.Module, images: Tensor, layers: Sequence[Layer | Attended]) -> Grid:
        name = type(model).__name__
        if not layers:
            raise TrompeError(
                f"{name} has no attention for {self.name} to follow, as vision transformers have; "
                "choose another explainer, such as grad-cam."
            )
        count = layers[-1].probabilities.shape[-1]
        grid = grid_of_tokens(count, images.shape)
        wanted = (len(images), count, count)
        for layer in layers[:-1] if _is_query(layers[-1]) and len(layers) > 1 else layers:
            shape = tuple(layer.probabilities.shape)
            if grid is None or (shape[0], *shape[2:]) != wanted or len(shape) != 4:
                raise TrompeError(
                    f"{self.name} follows attention of all tokens of an image to all, from layer "
                    f"to layer, and {name} has attention {list(shape)} for images "
                    f"{list(images.shape)}, as within windows or to fewer tokens; choose another "
                    "explainer, such as grad-cam."
                )
        assert grid is not None
        return grid


def _is_query(layer: Layer | Attended) -> bool:
    """Whether one query attends to all tokens."""
    return layer.probabilities.shape[-2] == 1


def _tokens_read(output: Tensor, attended: Tensor, grid: Grid) -> int:
    """How many of the first tokens the output is computed from; 0 if from those of the grid."""
    assert grid.tokens is not None
    before, *_ = grid.tokens
    with torch.enable_grad():
        total = output.square().sum()
    (gradient,) = torch.autograd.grad(total, attended, allow_unused=True)
    read = [] if gradient is None else gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    if not read:  # of a head of zeros
        return min(before, 1)
    return 0 if read[-1] >= before else read[-1] + 1
