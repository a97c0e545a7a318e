"""Which networks, and models wrapped in which way, each explainer works with.

    python docs/results/works_with.py

writes ``works-with.csv`` beside it. Networks have random weights; a map works if it is finite and
has a gradient in the network's parameters.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torchvision import models

import trompe
from trompe.base.messages import first_sentence
from trompe.explainers import parse_explainer

TABLE = Path(__file__).with_name("works-with.csv")
EXPLAINERS = ("grad-cam", "simple-grad", "simple-grad-t", "smooth-grad:samples=2")
EXPLAINERS += ("integrated-gradients:steps=2", "lrp", "lrp-t")
WORKS = "works"
Make = Callable[[], nn.Module]


class Checkpointed(nn.Module):
    """Runs its network again in backward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.network, images, use_reentrant=False)


class Told(nn.Module):
    """Returns a dict of logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(images)}


def small() -> nn.Module:
    """The network that is wrapped."""
    torch.manual_seed(0)
    return trompe.load_model("embedded-resnet").model


def _changed(change: Callable[[nn.Module], object]) -> Make:
    def make() -> nn.Module:
        network = small()
        change(network)
        return network

    return make


def _scripted(network: nn.Module) -> None:
    network.layer1 = torch.jit.script(network.layer1)


WRAPPED: dict[str, Make] = {
    "plain": small,
    "torch.compile": lambda: torch.compile(small()),
    "DataParallel": lambda: nn.DataParallel(small()),
    "AveragedModel": lambda: AveragedModel(small()),
    "activation checkpointing": lambda: Checkpointed(small()),
    "a scripted submodule": _changed(_scripted),
    "pruned": _changed(lambda m: prune.l1_unstructured(m.layer4[0].conv1, "weight", 0.3)),
    "weight norm": _changed(lambda m: parametrizations.weight_norm(m.fc)),
    "a dict of logits": lambda: Told(small()),
    "one logit": _changed(lambda m: setattr(m, "fc", nn.Linear(m.fc.in_features, 1))),
    "dynamic quantisation": lambda: quantize_dynamic(small(), {nn.Linear}),
}
"""What can be done to a model, as functions that do it to a small one."""

NETWORKS: dict[str, tuple[Make, int]] = {
    **{
        name: (lambda name=name: lively(models.get_model(name, weights=None).eval(), 64), 64)
        for name in (
            *("alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "densenet121"),
            *("mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5"),
            *("efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t"),
        )
    },
    **{
        name: (lambda name=name, side=side: lively(models.get_model(name).eval(), side), side)
        for name, side in (("googlenet", 96), ("vit_b_16", 224), ("maxvit_t", 224))
    },
    **{
        f"timm:{name}": (
            lambda name=name, side=side: lively(timm.create_model(name).eval(), side),
            side,
        )
        for name, side in (
            *(("efficientnet_lite0", 64), ("ghostnet_050", 64), ("repvgg_a0", 64)),
            *(("dla34", 64), ("convmixer_768_32", 64), ("poolformer_s12", 64)),
            *(("deit_tiny_patch16_224", 224), ("mixer_s32_224", 224)),
        )
    },
}
"""Networks, each with a size of image that it takes."""


@torch.no_grad()
def lively(network: nn.Module, side: int) -> nn.Module:
    """The network with logits that are not all but 0, as random weights leave them.

    BatchNorm's statistics are those of a batch, and weights that begin as 0 are drawn.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    for name, weight in network.named_parameters():
        if not weight.any() and name.endswith("weight"):
            nn.init.normal_(weight, std=0.1)
    images = torch.randn(8, 3, side, side)
    if norms:
        network(images)
    return network.eval()


def outcome(make: Make, spec: str, side: int) -> str:
    """`WORKS`, or why the explainer refuses the model."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, side, side)
    model = make().eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = parse_explainer(spec)(model, images)
            if not maps.requires_grad:
                return "values only, without a gradient in the parameters"
            maps.square().sum().backward()
    except trompe.TrompeError as error:
        return first_sentence(error)
    moved = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    return WORKS if bool(maps.isfinite().all()) and moved else "WRONG"


def rows(named: dict[str, tuple[Make, int]]) -> list[dict[str, str]]:
    """One row for each model and explainer."""
    return [
        {"model": name, "explainer": spec.partition(":")[0], "outcome": outcome(make, spec, side)}
        for name, (make, side) in named.items()
        for spec in EXPLAINERS
    ]


def wrapped(*names: str) -> dict[str, tuple[Make, int]]:
    """Those of `WRAPPED`, all by default, with their size of image."""
    return {name: (WRAPPED[name], 32) for name in names or WRAPPED}


if __name__ == "__main__":
    found = rows({**wrapped(), **NETWORKS})
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
