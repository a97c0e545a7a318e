"""Image classifiers of transformers, by ``transformers:NAME_OR_PATH``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging as their_logging

from trompe.base.messages import listed
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError, printable
from trompe.models.messages import unknown_weights

_log = logging.getLogger(__name__)
_THEIRS = (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError)


def build(
    name: str, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Return a classifier of the Hub or of a folder, and the preprocessing of its image processor.

    Its weights are read from safetensors only, and no code beside them is run. With another
    `num_classes` than they have, the last layer is new.

    Raises
    ------
    TrompeError
        If there is no such model, it is no image classifier, or its weights can't be had or read.
    """
    known = name.removeprefix("transformers:")
    if pretrained not in (None, "pretrained"):
        raise unknown_weights(name, pretrained, ["pretrained"])
    with _explained(known), _fewer_words():
        config = _config(known)
        is_new = num_classes not in (None, config.num_labels)
        if is_new:
            config.num_labels = num_classes
        if pretrained is None:
            model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
            return model, _preprocessing(name, known, config)
        model, found = AutoModelForImageClassification.from_pretrained(
            known,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=is_new,
            output_loading_info=True,
        )
        preprocessing = _preprocessing(name, known, config)
    missing = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if missing and num_classes is None:
        raise TrompeError(
            f"{known} has no weights of {listed('tensors', sorted(missing))}; give num_classes / "
            "--num-classes to train a new last layer, or another model."
        )
    if missing:
        _log.info("%s: pretrained, but for a new last layer of %s classes", name, num_classes)
    return model, preprocessing


def of_config(folder: Path) -> nn.Module:
    """An untrained classifier of the configuration in a folder; no code beside it is run.

    Raises
    ------
    TrompeError
        If it is none of an image classifier.
    """
    with _explained(str(folder)), _fewer_words():
        model: nn.Module = AutoModelForImageClassification.from_config(
            _config(folder), trust_remote_code=False
        )
    return model


def _config(known: str | Path) -> Any:
    """The configuration of that name; a kernel in it, whose code would be run, is left out."""
    config = AutoConfig.from_pretrained(known, trust_remote_code=False)
    config._attn_implementation = None
    return config


@contextmanager
def _explained(known: str) -> Iterator[None]:
    """Turn what transformers says of a model that it can't make into one sentence."""
    try:
        yield
    except _THEIRS as error:
        said = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
        raise TrompeError(
            f"transformers can't make an image classifier of {known!r} ({said}); give its name on "
            "the Hub, or a folder written by save_pretrained, with weights in safetensors."
        ) from error


@contextmanager
def _fewer_words() -> Iterator[None]:
    """Keep back warnings of what is checked here: weights that are new."""
    before = their_logging.get_verbosity()
    their_logging.set_verbosity_error()
    try:
        yield
    finally:
        their_logging.set_verbosity(before)


def _preprocessing(name: str, known: str, config: Any) -> Preprocessing:
    """What the image processor does, as far as resizing, cropping and normalising can say it."""
    names = tuple(config.id2label[i] for i in range(config.num_labels))
    classes = () if names[0] == "LABEL_0" else names
    try:
        processor = AutoImageProcessor.from_pretrained(known, trust_remote_code=False)
        size = processor.size
        edge = size.shortest_edge or size.height
    except (OSError, ValueError, AttributeError):
        side = getattr(config, "image_size", 224)
        side = side if isinstance(side, int) else side[0]
        _log.warning(
            "%s has no image processor that is known; taking ImageNet's, at %s",
            printable(name),
            side,
        )
        return Preprocessing(resize=side * 8 // 7, crop=side, classes=classes)
    share = getattr(processor, "crop_pct", None)
    crop = processor.crop_size.height if processor.do_center_crop else edge
    resize = int(edge / share) if share and edge < 384 else edge
    scale = round(255 * (processor.rescale_factor if processor.do_rescale else 1), 6)
    mean, std = (processor.image_mean, processor.image_std)
    if not processor.do_normalize:
        mean, std = [0.0] * 3, [1.0] * 3
    preprocessing = Preprocessing(
        resize=max(resize, crop),
        crop=crop,
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        interpolation=Image.Resampling(processor.resample).name.lower(),
        classes=classes,
    )
    if not _is_same(processor, preprocessing):
        _log.warning(
            "%s: its image processor frames or scales images in another way; here, the shorter "
            "side is resized to %s, and the centre of %s cropped",
            printable(name),
            preprocessing.resize,
            preprocessing.crop,
        )
    return preprocessing


def _is_same(processor: Any, preprocessing: Preprocessing) -> bool:
    """Whether both make nearly the same of a picture that is no square."""
    across, down = np.meshgrid(np.arange(96), np.arange(64))
    picture = Image.fromarray(np.stack((across * 2, down * 3, across + down), 2).astype(np.uint8))
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing(picture)
    return theirs.shape == ours.shape and bool((theirs - ours).abs().mean() < 0.02 * ours.std())
