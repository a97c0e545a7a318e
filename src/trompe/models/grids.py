"""How what a layer returns lies over the image: channels first, channels last, or as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isqrt

from torch import Size, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# A class token, none, one for distillation too, four registers too, registers alone.
TOKENS_BEFORE = (1, 0, 2, 5, 4)


@dataclass(frozen=True)
class Grid:
    """Brings a layer's output or a gradient of its shape to ``[N, C, h, w]``.

    Attributes
    ----------
    order
        The dimensions of ``[N, C, h, w]`` in the output, or of tokens once they are a grid.
    tokens
        Of tokens, how many come before those of the grid, and its height and width.
    """

    order: tuple[int, int, int, int] = (0, 1, 2, 3)
    tokens: tuple[int, int, int] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor as ``[N, C, h, w]``; one that has this form already, itself."""
        if self.tokens is not None:
            before, *sides = self.tokens
            tensor = tensor[:, before:].reshape(len(tensor), *sides, -1)
        return tensor if self.order == (0, 1, 2, 3) else tensor.permute(self.order)


CHANNELS_FIRST = Grid()
CHANNELS_LAST = Grid((0, 3, 1, 2))


def grid_of(
    tensor: Tensor, images: Size, module: nn.Module | None = None, layout: str | None = None
) -> Grid | None:
    """How a tensor computed from images ``[N, C, H, W]`` lies over them; None if it does not.

    A tensor of four dimensions has its channels first, unless only the other order has the
    proportions of the images; where both have, the kind of ``module`` that computed it decides.
    A layout that is given counts instead: ``"first"`` or ``"last"`` for the channels' place, or
    how many tokens come before those of the grid.
    """
    if len(tensor) != images[0] or (layout and tensor.dim() != (3 if layout.isdigit() else 4)):
        return None
    if layout in ("first", "last"):
        return CHANNELS_FIRST if layout == "first" else CHANNELS_LAST
    if tensor.dim() == 4:
        _, channels, height, width = tensor.shape
        first, last = _fits(height, width, images), _fits(channels, height, images)
        if not (first or last) and _sides(channels * height, images):  # windows, each of tokens
            return None
        is_first = not last or (first and _is_first(tensor, module))
        return CHANNELS_FIRST if is_first else CHANNELS_LAST
    if tensor.dim() == 3:
        known = TOKENS_BEFORE if layout is None else (int(layout),)
        return grid_of_tokens(tensor.shape[1], images, known)
    return None


def grid_of_tokens(count: int, images: Size, known: tuple[int, ...] = TOKENS_BEFORE) -> Grid | None:
    """How so many tokens ``[N, T, C]``, of them ``known`` before a grid, lie over images."""
    for before in known:
        if sides := _sides(count - before, images):
            return Grid((0, 3, 1, 2), (before, *sides))
    return None


def _sides(count: int, images: Size) -> tuple[int, int] | None:
    """Height and width of a grid of so many positions, more than one, over the images."""
    height, width = images[2:]
    rows = isqrt(max(0, count) * height // width)
    for sides in ((r, count // r) for r in (rows, rows + 1) if r and count % r == 0):
        if count > 1 and _fits(*sides, images):
            return sides
    return None


def _fits(height: int, width: int, images: Size) -> bool:
    """Whether one stride divides the images into so many positions, rounded down or up."""
    sides = ((images[2], height), (images[3], width))
    return all(1 <= count <= side for side, count in sides) and any(
        max(side / (count + 1 - up) for side, count in sides)
        < min(side / (count - up) if count > up else inf for side, count in sides)
        for up in (0, 1)
    )


def _is_first(tensor: Tensor, module: nn.Module | None) -> bool:
    if tensor.stride(1) == 1 and tensor.shape[1] > 1:  # only memory is laid out channels last
        return True
    parts = list(module.modules()) if module is not None else []
    if any(isinstance(part, _ConvNd | _NormBase) for part in parts):
        return True
    return not any(type(part) in (nn.Linear, nn.LayerNorm) for part in parts)
