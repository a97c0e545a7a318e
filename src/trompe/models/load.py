"""Load a classifier by name, with its weights and its preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from trompe.data.preprocessing import Preprocessing
from trompe.data.shapes import SHAPES_PREPROCESSING
from trompe.errors import TrompeError
from trompe.models import from_factory, from_torchvision
from trompe.models.embedded import EMBEDDED, packaged_weights
from trompe.models.messages import unknown_weights
from trompe.models.weights import SUFFIXES, fit_weights, read_weights


class LoadedModel(NamedTuple):
    """A classifier, images [N, 3, H, W] to logits [N, classes], and what its images go through."""

    model: nn.Module
    preprocessing: Preprocessing


def load_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    *,
    seed: int = 0,
) -> LoadedModel:
    """Load a classifier, on the CPU and in evaluation mode.

    Parameters
    ----------
    name : str
        ``resnet50`` or another of torchvision's classifiers; ``timm:NAME``;
        ``transformers:NAME_OR_PATH``, an image classifier of the Hub or a folder;
        ``package.module:factory`` or ``path/file.py:factory``, a class or function, called with
        ``num_classes`` if that is given, whose code is run, or the registered name of one; or
        ``embedded``, ``embedded-vgg``,
        ``embedded-resnet``, ``embedded-densenet``, ``embedded-vit``, the packaged models.
    weights : str or Path, optional
        A ``.safetensors`` file or one of PyTorch's, read without executing anything in it; an
        entry of torchvision's weight enum (``DEFAULT``, ``IMAGENET1K_V2``); ``pretrained`` for
        timm and transformers; ``random``. By default, packaged models have their packaged weights,
        those of transformers the ones they are named with, all others random ones. If named
        weights are for another number of classes, the last layer is new.
    num_classes : int, optional
        Number of classes, if it is not the model's own.
    seed : int
        Seed of whatever is random in the weights; the global random state stays as it is.

    Returns
    -------
    LoadedModel
        The model, and the preprocessing of the weights: from torchvision's enum (the default
        one without an enum), from timm's data configuration, from transformers' image
        processor, from the attribute ``preprocessing`` of the factory's model or module, else
        ImageNet's 256/224. The names of the model's outputs, where they are known, are
        ``preprocessing.classes``.

    Raises
    ------
    TrompeError
        If the name is unknown, or the weights are not there, not safe or do not fit.
    """
    if num_classes is not None and num_classes < 1:
        raise TrompeError(f"num_classes is {num_classes}; a classifier needs 1 or more.")
    if weights is None:
        own = "random" if from_nothing(name) else "pretrained"
        weights = packaged_weights(name) if name in EMBEDDED else own
    is_file = Path(weights).suffix in SUFFIXES or (weights != "random" and Path(weights).is_file())
    state = read_weights(Path(weights)) if is_file else None
    pretrained = None if is_file or weights == "random" else str(weights)
    with _seeded(seed):
        model, preprocessing = _build(name, pretrained, num_classes)
    if state is not None:
        fit_weights(model, state, str(weights))
    return LoadedModel(model.eval(), preprocessing)


def from_nothing(name: str, weights: str | Path | None = None) -> bool:
    """Whether `load_model` would give this model random weights."""
    if weights is None:
        return name not in EMBEDDED and not name.startswith("transformers:")
    return weights == "random"


def _build(
    name: str, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    if name in EMBEDDED:
        if pretrained:
            raise unknown_weights(name, pretrained, [])
        chosen = {} if num_classes is None else {"num_classes": num_classes}
        return EMBEDDED[name](**chosen), SHAPES_PREPROCESSING
    if name.startswith("timm:"):
        from trompe.models import from_timm  # takes seconds, and few need it

        return from_timm.build(name, pretrained, num_classes)
    if name.startswith("transformers:"):
        try:
            from trompe.models import from_transformers
        except ModuleNotFoundError as error:
            raise TrompeError(
                "transformers is not installed; get it with pip install 'trompe[transformers]'."
            ) from error
        return from_transformers.build(name, pretrained, num_classes)
    if name.endswith(".py"):
        raise TrompeError(f"{name} needs the name of its class or function: {name}:NAME.")
    if ":" in name or name in from_factory.MODELS:
        return from_factory.build(name, pretrained, num_classes)
    return from_torchvision.build(name, pretrained, num_classes)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
