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
        reads the patches, as their mean does. Several count as their mean. None to find it.

    Raises
    ------
    TrompeError
        If a layer is named.
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
        grid = self._grid(model, image, watch.layers)
        return replace(self, tokens=_tokens_read(output, watch.layers[-1].output, grid))

    def attribute(self, site: Site, explained: Explained) -> Tensor:
        """Follow all layers, and read the rows of the tokens that are read."""
        layers = explained.of(self.need, site)
        recorded = explained.recorded
        grid = self._grid(recorded.model, recorded.images, layers)
        assert grid.tokens is not None
        flow = self.flow(layers)
        rows = flow[:, : self.tokens] if self.tokens else flow[:, grid.tokens[0] :]
        return grid(rows.mean(1)[..., None])[:, 0]

    @abstractmethod
    def flow(self, layers: Sequence[Layer]) -> Tensor:
        """How much each token has of each token at the beginning ``[N, T, T]``."""

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
        for layer in layers:
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
