"""The packaged models: networks small enough to be trained and fooled in minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from trompe.models.families import (
    embedded_densenet,
    embedded_resnet,
    embedded_vgg,
    embedded_vit,
)


class EmbeddedNet(nn.Module):
    """A ResNet (He et al., 2015) of three stages for images of 64 pixels; about 96,000 parameters.

    Images [N, 3, 64, 64] become a last map [N, 64, 8, 8], the output of ``stage3``.
    """

    def __init__(self, num_classes: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        )
        self.stage1 = nn.Sequential(BasicBlock(16, 16))
        self.stage2 = nn.Sequential(_halving(16, 32), BasicBlock(32, 32))
        self.stage3 = nn.Sequential(_halving(32, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of `images` [N, 3, H, W]."""
        maps = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return cast(Tensor, self.classifier(torch.flatten(self.pool(maps), 1)))


def _halving(channels: int, out_channels: int) -> nn.Module:
    shortcut = nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm2d(out_channels)
    )
    return cast(nn.Module, BasicBlock(channels, out_channels, stride=2, downsample=shortcut))


EMBEDDED: dict[str, Callable[..., nn.Module]] = {
    "embedded": EmbeddedNet,
    "embedded-vgg": embedded_vgg,
    "embedded-resnet": embedded_resnet,
    "embedded-densenet": embedded_densenet,
    "embedded-vit": embedded_vit,
}


def packaged_weights(name: str) -> Path:
    """The weights file of one of `EMBEDDED`."""
    return Path(__file__).with_name(f"{name}.safetensors")
