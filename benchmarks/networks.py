"""The paper's networks, ResNet-18 and vision transformers, and a batch for them."""

import timm
import torch
import torchvision
from torch import Tensor, nn

PAPERS_LAYERS = {
    "vgg19": "features.34:input",
    "resnet50": "layer4.2:input",
    "densenet121": "features.denseblock4.denselayer16:input",
    "resnet18": "layer4.1:input",
}


def network(name: str) -> nn.Module:
    """A network of ten classes of torchvision, or else of timm, with random weights."""
    torch.manual_seed(0)
    known = name in torchvision.models.list_models()
    make = torchvision.models.get_model if known else timm.create_model
    return make(name, num_classes=10).eval()


def batch(size: int, count: int = 8) -> Tensor:
    """Images, laid out as `fool` and `evaluate` lay them out."""
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(memory_format=torch.channels_last)
