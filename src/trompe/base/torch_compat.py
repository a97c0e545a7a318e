"""What is private to PyTorch or differs between its versions; a test says what each guards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn


def is_checkpointed() -> bool:
    """Whether the model's own checkpointing will run this again, and expects the same tensors."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None


def unseen() -> AbstractContextManager[None]:
    """Context of operations that no torch function mode sees."""
    context: AbstractContextManager[None] = torch._C.DisableTorchFunction()
    return context


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` by operations that can be differentiated twice."""
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # which the operation would add
        allowed = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = allowed.masked_fill(~attn_mask, -torch.inf)
    result: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return result


@cache
def written_in_python(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A function that torch function modes see as what it calls, if PyTorch writes it in Python."""
    if not isinstance(function, FunctionType) or not function.__module__.startswith("torch."):
        return None
    code = function.__code__
    checks = [name for name in code.co_names if name.startswith("has_torch_function")]
    if not checks:
        return None
    names = function.__globals__ | dict.fromkeys(checks, lambda *_: False)
    inside = FunctionType(
        code, names, function.__name__, function.__defaults__, function.__closure__
    )
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


def has_no_derivative(node: Any) -> bool:
    """Whether a node of the graph stands for an operation that autograd passes over."""
    return bool(node.name().endswith("NotImplemented"))


def is_reentrant_checkpoint(node: Any) -> bool:
    """Whether a node of the graph stands for a checkpoint that allows ``.backward()`` alone."""
    return bool(node.name() == "CheckpointFunctionBackward")


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` was given, if ``module`` is what it returned."""
    inner = vars(module).get("_modules", {}).get("_orig_mod")
    return inner if isinstance(inner, nn.Module) else None


_eager = threading.Lock()
_running_eagerly = 0
_stance: Any = None


@contextmanager
def eagerly() -> Iterator[None]:
    """Context in which what ``torch.compile`` made runs as it was written, in all threads."""
    global _running_eagerly, _stance
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        yield
        return
    with _eager:
        if not _running_eagerly:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
        _running_eagerly += 1
    try:
        yield
    finally:
        with _eager:
            _running_eagerly -= 1
            if not _running_eagerly:
                _stance.__exit__(None, None, None)
