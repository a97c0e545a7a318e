"""Small members of five families, built from torchvision's own classes."""

from functools import partial

import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers

from tests.models.unseen import unseen


class SmallVGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers([4, "M", 6, 6, "M", 8])
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(32, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        shortcut = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.layer3 = nn.Sequential(BasicBlock(8, 8))
        self.layer4 = nn.Sequential(BasicBlock(8, 12, 2, shortcut), BasicBlock(12, 12))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.stem(x)))
        x = self.layer4(self.layer3(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def densenet() -> nn.Module:
    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=5)


def mobilenet() -> nn.Module:
    block = partial(InvertedResidualConfig, dilation=1, width_mult=0.5)
    blocks = [block(16, 3, 16, 16, True, "RE", 1), block(16, 3, 32, 32, True, "HS", 2)]
    return MobileNetV3([*blocks, block(32, 3, 48, 32, True, "HS", 1)], 24, num_classes=5)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 2)], 0.0, 0.5, 5)


SMALL = {
    "vgg": SmallVGG,
    "resnet": SmallResNet,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "convnext": convnext,
    "unseen": lambda: unseen(5),
}


def randomise_batch_norms(model: nn.Module) -> None:
    """Statistics and affine parameters that are not trivial."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)


def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small model with fixed weights; biases and BatchNorm statistics are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = SMALL[name]()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.uniform_(parameter, -0.2, 0.2)
        randomise_batch_norms(model)
    return model.to(dtype).eval()


def images(count: int = 3, side: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3)).to(dtype)
