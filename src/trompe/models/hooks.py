"""Modules watched and held in a mode, by several threads at a time if need be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_lock = threading.Lock()
_held: dict[nn.Module, tuple[int, bool]] = {}  # how often, and the mode from before


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in evaluation mode; at exit, give each its own mode back.

    A module that several threads hold gets it back when the last of them is done.
    """
    modules = [module for module in model.modules() if hasattr(module, "training")]
    with _lock:
        for module in modules:
            count, training = _held.get(module, (0, module.training))
            _held[module] = (count + 1, training)
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                count, training = _held.pop(module)
                if count > 1:
                    _held[module] = (count - 1, training)
                else:
                    module.training = training


@contextmanager
def hooked(
    module: nn.Module,
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
    always: bool = False,
) -> Iterator[None]:
    """Call ``before(module, args, kwargs)`` and ``after(module, args, kwargs, output)``.

    They see the calls of this thread alone. What they return, unless None, stands for
    ``(args, kwargs)`` and for the output; ``after`` is called after an exception too if ``always``.
    """
    owner = threading.get_ident()

    def own(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: function(*given) if threading.get_ident() == owner else None

    handles = []
    with _lock:  # PyTorch numbers hooks without one
        if before is not None:
            handles.append(module.register_forward_pre_hook(own(before), with_kwargs=True))
        if after is not None:
            handles.append(
                module.register_forward_hook(own(after), with_kwargs=True, always_call=always)
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def can_be_hooked(module: nn.Module) -> bool:
    """Whether calls of the module can be seen: those inside TorchScript can't."""
    return not isinstance(module, torch.jit.ScriptModule)
