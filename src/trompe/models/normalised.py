"""BatchNorm put into a network that has none, while it is trained, and folded away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trompe.errors import TrompeError


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

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """The convolution, which now computes what both do in evaluation mode."""
        norm: Any = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.convolution.weight.mul_(scale[:, None, None, None])
        bias: Any = self.convolution.bias
        bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
        return self.convolution


@contextmanager
def normalised(model: nn.Module) -> Iterator[None]:
    """Put a BatchNorm after every convolution of ``model`` while the block lasts.

    Then they are folded into the convolutions, exactly: the modules and their names are those from
    before, and so are the logits in evaluation mode, up to rounding.

    Raises
    ------
    TrompeError
        If the model normalises already, or a convolution has no bias to fold into.

    Examples
    --------
    >>> from torchvision.models import vgg11
    >>> model = vgg11(num_classes=10)
    >>> with normalised(model):
    ...     print(type(model.features[0]).__name__)
    Normalised
    >>> print(type(model.features[0]).__name__)
    Conv2d
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
        folded = {layer: both.folded() for layer, both in wrapped.items()}
        for parent, name, layer in places:
            setattr(parent, name, folded[layer])
