"""Classifiers of torchvision, by the name and the weight enum it gives them."""

from __future__ import annotations

import pickle
from typing import Any

from torch import nn
from torchvision import models

from trompe.base.messages import did_you_mean, first_sentence
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models.embedded import EMBEDDED
from trompe.models.messages import unknown_weights
from trompe.models.weights import fit_weights

CLASSIFIERS = models.list_models(module=models)


def build(
    name: str, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Return torchvision's model `name` and the preprocessing of its weights.

    Without `pretrained`, the preprocessing is that of the default weights. With another
    `num_classes` than the weights have, the last layer is new. GoogLeNet and Inception come
    without their auxiliary heads, and always with torchvision's input transform, which their
    pretrained weights need and a weights file cannot ask for.

    Raises
    ------
    TrompeError
        If there is no such classifier or weight enum, or its file cannot be had or read.
    """
    if name not in CLASSIFIERS:
        raise _unknown(name)
    enum = models.get_model_weights(name)
    key = "DEFAULT" if pretrained is None else pretrained.removeprefix(f"{enum.__name__}.")
    if key not in enum.__members__:
        raise unknown_weights(name, key, list(enum.__members__))
    entry = enum[key]

    config: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        config |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    if pretrained and name.startswith("vit_"):
        config["image_size"] = entry.meta["min_size"][0]
    model: nn.Module = models.get_model(name, **config)
    if pretrained:
        fit_weights(model, _fetched(entry), str(entry), new_head=True)
    names = entry.meta["categories"]
    known = num_classes in (None, len(names))
    return model, _preprocessing(entry.transforms(), tuple(names) if known else ())


def _unknown(name: str) -> TrompeError:
    if name in models.list_models():
        return TrompeError(f"{name} of torchvision is no image classifier; take resnet50, say.")
    return TrompeError(
        f"There is no model {name!r}{did_you_mean(name, [*CLASSIFIERS, *EMBEDDED])}; give the "
        "name of a torchvision classifier, timm:NAME, transformers:NAME_OR_PATH, "
        "package.module:factory, path/file.py:factory, a folder of `trompe card`, or embedded."
    )


def _fetched(entry: Any) -> dict[str, Any]:
    """Return the state dict of a weight enum's entry, downloaded unless torch.hub has it."""
    try:
        state: dict[str, Any] = entry.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise TrompeError(
            f"The weights {entry} cannot be taken from {entry.url} "
            f"({first_sentence(error)}); give a weights file instead."
        ) from error
    return state


def _preprocessing(transforms: Any, classes: tuple[str, ...]) -> Preprocessing:
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        classes=classes,
    )
