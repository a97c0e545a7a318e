"""Narrow, shallow members of the paper's three families, for images of 64 pixels."""

from __future__ import annotations

from torch import nn
from torchvision.models import DenseNet, VisionTransformer
from torchvision.models.vgg import VGG, make_layers
from torchvision.models.vision_transformer import ConvStemConfig


def embedded_vgg(num_classes: int = 8) -> nn.Module:
    """VGG without BatchNorm (Simonyan and Zisserman, 2014); ``features.11`` reads [N, 64, 8, 8]."""
    model: nn.Module = VGG(make_layers([16, "M", 32, "M", 64, "M", 64, 64, "M"]), num_classes)
    model.avgpool = nn.Identity()
    model.classifier = nn.Sequential(
        nn.Linear(64 * 4 * 4, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, num_classes)
    )
    return model


def embedded_resnet(num_classes: int = 8) -> nn.Module:
    """ResNet of bottlenecks (He et al., 2015); ``layer4.1`` reads [N, 128, 8, 8]."""
    import timm  # takes seconds, and few need it

    model: nn.Module = timm.create_model(
        "resnet50",
        num_classes=num_classes,
        layers=(1, 1, 1, 2),
        channels=(8, 16, 32, 32),
        output_stride=16,
    )
    model.maxpool = nn.Identity()
    return model


def embedded_densenet(num_classes: int = 8) -> nn.Module:
    """DenseNet (Huang et al., 2016); ``features.denseblock3.denselayer4`` reads [N, 56, 8, 8]."""
    model: nn.Module = DenseNet(
        8, (2, 3, 4), num_init_features=16, bn_size=4, num_classes=num_classes
    )
    model.get_submodule("features").pool0 = nn.Identity()
    return model


def embedded_vit(num_classes: int = 8) -> nn.Module:
    """Vision transformer (Dosovitskiy et al., 2020) behind convolutions (Xiao et al., 2021).

    Its tokens are a class and 8 × 8 positions.
    """
    stem = [ConvStemConfig(channels, 3, 2) for channels in (16, 32, 64)]
    model: nn.Module = VisionTransformer(
        64, 8, 4, 4, 64, 128, num_classes=num_classes, conv_stem_configs=stem
    )
    return model
