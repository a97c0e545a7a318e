"""Models of one's own, by ``package.module:factory`` or ``path/file.py:factory``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError
from trompe.models.messages import did_you_mean, unknown_weights


def build(
    name: str, pretrained: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocessing]:
    """Return the model that a factory makes, and the preprocessing it states, if any.

    The factory is a class or function. The code of its module is run: name only what you
    trust. Modules beside the file, or in the working directory, can be imported.

    Raises
    ------
    TrompeError
        If there is no such factory, it cannot be called, or it does not return a module.
    """
    if pretrained is not None:
        raise unknown_weights(name, pretrained, [])
    target, _, attribute = name.rpartition(":")
    is_file = target.endswith(".py")
    with _importable(Path(target).resolve().parent if is_file else Path.cwd()):
        module = _module(target, is_file)
        factory = _factory(module, attribute, name)
        model = factory(**_arguments(factory, name, num_classes))
    if not isinstance(model, nn.Module):
        raise TrompeError(
            f"{name} returns a {type(model).__name__}; it must return a torch.nn.Module."
        )
    for owner in (model, module):
        preprocessing = getattr(owner, "preprocessing", None)
        if isinstance(preprocessing, Preprocessing):
            return model, preprocessing
    return model, Preprocessing()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in `folder` be imported, after all others of the same name."""
    entry = str(folder)
    if entry in sys.path:
        yield
        return
    sys.path.append(entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _module(target: str, is_file: bool) -> ModuleType:
    try:
        return _run(Path(target)) if is_file else importlib.import_module(target)
    except Exception as error:
        raise TrompeError(
            f"{target!r} cannot be imported ({type(error).__name__}: {error}); give an importable "
            "package.module:factory or an existing path/file.py:factory."
        ) from error


def _run(path: Path) -> ModuleType:
    """Import a file that is in no package; dataclasses, for one, need it in sys.modules."""
    loader = SourceFileLoader(f"trompe_model_{path.stem}", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def _factory(module: ModuleType, attribute: str, name: str) -> Callable[..., Any]:
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory) or isinstance(factory, nn.Module):
        callables = [key for key, value in vars(module).items() if callable(value)]
        raise TrompeError(
            f"{name} names no class or function{did_you_mean(attribute, callables)}; "
            "give one that makes the model."
        )
    return factory


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
