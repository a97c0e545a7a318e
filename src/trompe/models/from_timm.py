"""Models of timm, by ``timm:NAME``."""

from __future__ import annotations

import logging
import math
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from trompe.base.messages import did_you_mean
from trompe.data.classes import imagenet_classes
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models.messages import unknown_weights

_log = logging.getLogger(__name__)


def build(
    name: str, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Return timm's model ``timm:NAME`` (or ``timm:NAME.TAG``) and its preprocessing.

    With another `num_classes` than the pretrained weights have, the last layer is new.

    Raises
    ------
    TrompeError
        If timm has no such model or weights, or they cannot be fetched.
    """
    known = name.removeprefix("timm:")
    if not timm.is_model(known):
        raise TrompeError(
            f"timm has no model {known!r}{did_you_mean(known, timm.list_models())}; "
            "trompe list models 'timm:*' lists them."
        )
    if pretrained not in (None, "pretrained"):
        raise unknown_weights(name, pretrained, ["pretrained"])
    try:
        model: Any = timm.create_model(known, pretrained=bool(pretrained), num_classes=num_classes)
    except (OSError, RuntimeError) as error:
        raise TrompeError(
            f"timm cannot make {known} ({error}); choose another name or tag, or a weights file."
        ) from error
    if pretrained and num_classes not in (None, model.pretrained_cfg["num_classes"]):
        _log.info("%s: pretrained, but for a new last layer of %s classes", name, num_classes)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return model, _preprocessing(name, config, _classes(model))


def origin(name: str) -> tuple[str | None, str | None]:
    """The name on the Hub and the licence of the pretrained weights, as far as timm knows them."""
    known = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    return (known.hf_hub_id, known.license) if known else (None, None)


def _classes(model: Any) -> tuple[str, ...]:
    """Names of the outputs, where timm has them; WordNet ids for the large sets of ImageNet."""
    subset = infer_imagenet_subset(model)
    names = model.pretrained_cfg.get("label_names") or ()
    if not names and subset == "imagenet-1k":
        names = imagenet_classes()
    elif not names and subset:
        names = ImageNetInfo(subset).label_names()  # type: ignore[no-untyped-call]
    return tuple(names) if len(names) == model.num_classes else ()


def _preprocessing(name: str, config: dict[str, Any], classes: tuple[str, ...]) -> Preprocessing:
    crop = config["input_size"][-1]
    if config["crop_mode"] != "center":
        _log.warning(
            "%s: timm evaluates it with crop mode %s; here, the centre is cropped",
            name,
            config["crop_mode"],
        )
    return Preprocessing(
        resize=math.floor(crop / config["crop_pct"]),
        crop=crop,
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        classes=classes,
    )
