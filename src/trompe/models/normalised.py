"""BatchNorm that is folded into the convolution before it, so that a network has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError
from trompe.models.copying import copied


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy whose logits in evaluation mode are the same, with fewer BatchNorms.

    Each one that follows a convolution in an `nn.Sequential` is folded into it and taken out; what
    comes after is numbered anew, so that torchvision's ``vgg19_bn`` becomes ``vgg19``.

    Parameters
    ----------
    model
        Any network; it is not changed.

    Raises
    ------
    TrompeError
        If it has no such BatchNorm, or one that has no statistics of its own.

    Examples
    --------
    >>> fold_batch_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
    )
    """
    model = copied(model)
    count = 0
    for sequence in [m for m in model.modules() if type(m) is nn.Sequential]:
        left: list[tuple[str, nn.Module]] = []
        for name, module in sequence.named_children():
            before = left[-1][1] if left else None
            if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                _fold(before, module)
                count += 1
            else:
                left.append((name, module))
        numbered = all(name.isdigit() for name, _ in left)
        sequence._modules = {str(i) if numbered else n: m for i, (n, m) in enumerate(left)}
    if not count:
        raise TrompeError(
            "There is no BatchNorm right after a convolution in an nn.Sequential to be folded."
        )
    return model


def scale_and_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation mode multiplies each channel with, and then adds."""
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


@torch.no_grad()
def _fold(layer: nn.Conv2d, norm: Any) -> None:
    """Let a convolution compute what it and the BatchNorm after it do in evaluation mode."""
    if norm.running_mean is None:
        raise TrompeError("A BatchNorm without statistics of its own can't be folded.")
    statistics = (norm.running_mean, norm.running_var)
    scale, shift = scale_and_shift(*statistics, norm.weight, norm.bias, norm.eps)
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(shift))
    layer.weight.mul_(scale[:, None, None, None])
    layer.bias.mul_(scale).add_(shift)


class Normalised(nn.Module):
    """A convolution, and a BatchNorm of what it computes."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels, device=convolution.weight.device)

    def forward(self, images: Tensor) -> Tensor:
        """The normalised output of the convolution."""
        normalised: Tensor = self.norm(self.convolution(images))
        return normalised


@contextmanager
def normalised(model: nn.Module) -> Iterator[None]:
    """Put a BatchNorm after every convolution of ``model`` while the block lasts.

    Then they are folded into the convolutions: modules, names and parameters are those from before.

    Raises
    ------
    TrompeError
        If the model normalises already, or a convolution has no bias to fold into.
    """
    places = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Conv2d)
    ]
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise TrompeError("The model has BatchNorm already; leave batch_norm out.")
    if not places or any(layer.bias is None for *_, layer in places):
        raise TrompeError(
            "BatchNorm can only be put into a model of convolutions that have a bias, to fold it "
            "into at the end; leave batch_norm out."
        )
    wrapped = {layer: Normalised(layer) for *_, layer in places}
    for parent, name, layer in places:
        setattr(parent, name, wrapped[layer])
    try:
        yield
    finally:
        for layer, both in wrapped.items():
            _fold(layer, both.norm)
        for parent, name, layer in places:
            setattr(parent, name, layer)
