"""Load a classifier by name, with its weights and its preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trompe.base.code import refuse_found, written_by_others
from trompe.data.preprocessing import Preprocessing
from trompe.data.shapes import SHAPES_PREPROCESSING
from trompe.errors import TrompeError
from trompe.models import from_factory, from_torchvision
from trompe.models.embedded import EMBEDDED, packaged_weights
from trompe.models.folder import CONFIG, WEIGHTS, read_folder
from trompe.models.messages import unknown_weights
from trompe.models.weights import SUFFIXES, fit_weights, read_weights


class LoadedModel(NamedTuple):
    """A classifier, images [N, 3, H, W] to logits [N, classes], and what its images go through."""

    model: nn.Module
    preprocessing: Preprocessing

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{type(self.model).__name__} of {count:,} parameters, {self.preprocessing}"


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
        ``embedded-resnet``, ``embedded-densenet``, ``embedded-vit``, the packaged models; or a
        folder that ``trompe card`` wrote, of which no code is run.
    weights : str or Path, optional
        A ``.safetensors`` file or one of PyTorch's, read without executing anything in it; an
        entry of torchvision's weight enum (``DEFAULT``, ``IMAGENET1K_V2``); ``pretrained`` for
        timm and transformers; ``random``. By default, packaged models and folders have their own,
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

    Examples
    --------
    >>> model, preprocessing = load_model("embedded")
    >>> model(torch.zeros(1, 3, preprocessing.crop, preprocessing.crop)).shape
    torch.Size([1, 8])
    """
    if num_classes is not None and num_classes < 1:
        raise TrompeError(f"num_classes is {num_classes}; a classifier needs 1 or more.")
    if weights is None:
        weights = _own_weights(name)
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
    return (_own_weights(name) if weights is None else weights) == "random"


def _own_weights(name: str) -> str | Path:
    if name in EMBEDDED:
        return packaged_weights(name)
    if is_folder(name):
        read_folder(Path(name))
        return Path(name) / WEIGHTS
    return "pretrained" if name.startswith("transformers:") else "random"


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
        made: tuple[nn.Module, Preprocessing] = _transformers().build(name, pretrained, num_classes)
        return made
    if name.endswith(".py"):
        raise TrompeError(f"{name} needs the name of its class or function: {name}:NAME.")
    if ":" in name or name in from_factory.MODELS:
        return from_factory.build(name, pretrained, num_classes)
    if is_folder(name):
        return _handed_on(Path(name), pretrained, num_classes)
    return from_torchvision.build(name, pretrained, num_classes)


def is_folder(name: str) -> bool:
    """Whether a model's name is that of a folder; the names of known models come first."""
    known = name in EMBEDDED or name in from_torchvision.CLASSIFIERS
    return not known and Path(name).is_dir()


def _handed_on(
    folder: Path, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    if pretrained:
        raise unknown_weights(str(folder), pretrained, [])
    refuse_found(folder, "a folder elsewhere")
    told = read_folder(folder)
    if told.model.startswith("transformers:"):
        return _transformers().of_config(folder), told.preprocessing
    with written_by_others(f"'{folder / CONFIG}'"):
        model, _ = _build(told.model, None, num_classes or told.num_classes)
    return model, told.preprocessing


def _transformers() -> Any:
    try:
        from trompe.models import from_transformers
    except ModuleNotFoundError as error:
        raise TrompeError(
            "transformers is not installed; get it with pip install 'trompe[transformers]'."
        ) from error
    return from_transformers


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
