"""Models of one's own: by ``package.module:factory``, ``path/file.py:factory``, or registered."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from trompe.base.code import imported, own
from trompe.base.registry import Registry
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models.messages import unknown_weights

MODELS: Registry[nn.Module] = Registry("model", nn.Module, {})


def build(
    name: str, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Return the model that a factory makes, and the preprocessing it states, if any.

    The factory is a class or function, registered in `MODELS` or named by its code. The code of its
    module is run: name only what you trust. Modules beside the file, or in the working directory,
    can be imported.

    Raises
    ------
    TrompeError
        If there is no such factory, it cannot be called, or it does not return a module.
    """
    if pretrained is not None:
        raise unknown_weights(name, pretrained, [])
    if name in MODELS:
        return _made(name, MODELS[name], num_classes)
    named = own(name)
    if named is None or named.rest:
        raise TrompeError(
            f"{name.rpartition(':')[0]!r} cannot be imported; write package.module:factory or "
            "path/file.py:factory."
        )
    with imported(named) as (module, factory):
        return _made(name, factory, num_classes, module)


def _made(
    name: str, factory: Any, num_classes: int | None, module: ModuleType | None = None
) -> tuple[nn.Module, Preprocessing]:
    if not callable(factory) or isinstance(factory, nn.Module):
        raise TrompeError(f"{name} names no class or function; give one that makes the model.")
    model = factory(**_arguments(factory, name, num_classes))
    if not isinstance(model, nn.Module):
        raise TrompeError(
            f"{name} returns a {type(model).__name__}; it must return a torch.nn.Module."
        )
    for owner in (model, module or sys.modules.get(factory.__module__)):
        preprocessing = getattr(owner, "preprocessing", None)
        if isinstance(preprocessing, Preprocessing):
            return model, preprocessing
    return model, Preprocessing()


def _arguments(factory: Callable[..., Any], name: str, num_classes: int | None) -> dict[str, int]:
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        inspect.signature(factory).bind(**arguments)
    except (TypeError, ValueError) as error:
        given = f"num_classes={num_classes}" if arguments else "no arguments"
        raise TrompeError(
            f"{name} cannot be called with {given} ({error}); a factory takes num_classes or "
            "nothing, and defaults for the rest."
        ) from error
    return arguments
