"""The layers of a model: the one to explain at, any by its name, and their mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trompe.base.messages import did_you_mean
from trompe.errors import TrompeError

_LEFT_OUT = re.compile("Pool|Drop|Identity|Flatten|StochasticDepth")


class _Output(NamedTuple):
    """What one call of a module returned; a version counts the in-place changes of a tensor."""

    name: str
    module: nn.Module
    tensor: Tensor
    version: int
    is_input: bool


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in evaluation mode; at exit, give each its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def find_layer(model: nn.Module, image: Tensor) -> str:
    """Return the name of the last layer of a convolutional network that returns a map.

    It is the module that completes last, in a forward pass in evaluation mode, among those that
    return a map [N, C, h, w] with h × w > 1: ``layer4`` of a ResNet, ``features.35`` of VGG19,
    ``features`` of DenseNet121. Left out are pooling, dropout, identity and flatten modules,
    and containers that merely return what a pooling module computed. Of nested modules that
    return the very same tensor, the outermost is taken. The model is left as it was.

    Parameters
    ----------
    model : nn.Module
        The classifier.
    image : Tensor
        One image [1, 3, H, W], normalised.

    Raises
    ------
    TrompeError
        If `image` has another shape, or if no map is left at the end of the model, as in a
        vision transformer, which goes on with tokens.
    """
    if image.ndim != 4 or len(image) != 1:
        raise TrompeError(f"A layer is found with one image [1, 3, H, W], not {list(image.shape)}.")
    outputs = _outputs(model, image)
    pooled: set[tuple[int, int]] = set()
    found = None
    for name, module, tensor, version, is_input in outputs:
        if _is_left_out(module):
            if not is_input:
                pooled.add((id(tensor), version))
        elif _is_map(tensor, image):
            if (id(tensor), version) not in pooled:
                found = name
        elif _is_tokens(tensor) and any(module.children()):
            found = None
    if found is None:
        raise TrompeError(
            f"{type(model).__name__} ends without a layer that returns a map [N, C, h, w] of more "
            "than one position, as convolutional networks have; explain it at the input, or name "
            "a layer."
        )
    return found


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of `model` called `name`, with or without DataParallel's ``module.``.

    Raises
    ------
    TrompeError
        If there is none; close names are suggested.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    for known in (name, f"module.{name}", name.removeprefix("module.")):
        if known and known in modules:
            return modules[known]
    raise TrompeError(
        f"{type(model).__name__} has no layer {name!r}{did_you_mean(name, modules)}; "
        "list all with [name for name, _ in model.named_modules()]."
    )


def _outputs(model: nn.Module, image: Tensor) -> list[_Output]:
    """Return the tensors that the modules below `model` return, in order of completion.

    All are kept until the end, so that no two share an id.
    """
    outputs: list[_Output] = []

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            is_input = any(output is arg for arg in args)
            outputs.append(_Output(name, module, output, output._version, is_input))

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for name, module in model.named_modules():
            if module is not model:
                stack.enter_context(module.register_forward_hook(partial(record, name)))
        model(image.clone())
    return outputs


def _is_left_out(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(_LEFT_OUT.search(kind.__name__) for kind in kinds) and not [*module.parameters()]


def _is_map(tensor: Tensor, image: Tensor) -> bool:
    """Whether `tensor` has positions, and no more of them than the image (else channels last)."""
    if tensor.ndim != 4 or tensor.shape[2:].numel() == 1:
        return False
    return all(side <= limit for side, limit in zip(tensor.shape[2:], image.shape[2:], strict=True))


def _is_tokens(tensor: Tensor) -> bool:
    return tensor.ndim == 3 and tensor.shape[1] > 1
