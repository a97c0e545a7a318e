"""Records the tensor operations of a forward pass, whatever kind of module runs them.

The tape listens at the level of the functions that PyTorch itself dispatches
(``TorchFunctionMode``), so a functional ReLU, ``+``, ``torch.cat`` and an ``nn.Module`` look the
same to it. It follows the tensors derived from its start values and ignores the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trompe.errors import TrompeError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# Operations whose result is never negative, and those that keep non-negative inputs so.
_NONNEGATIVE = {"relu", "sigmoid", "hardsigmoid", "softmax", "softplus", "abs", "square", "exp"}
_KEEPS_SIGN = {
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "sum"),
    *("add", "mul", "cat", "concat", "stack", "dropout", "flatten", "reshape", "view", "permute"),
    *("transpose", "getitem", "chunk", "split", "squeeze", "unsqueeze", "contiguous", "clone"),
}


@dataclass(eq=False)
class Value:
    """A tensor as it was when the forward pass produced it."""

    tensor: Tensor
    nonnegative: bool = False


@dataclass(eq=False)
class Operation:
    """One output of one recorded call.

    ``args`` and ``kwargs`` are the call's, with a `Value` where a followed tensor stood;
    ``index`` picks the output of a function that returns several; ``path`` is the module that
    made the call.
    """

    function: Callable[..., Any]
    args: Args
    kwargs: Kwargs
    inputs: tuple[Value, ...]
    output: Value
    index: int | None
    path: str

    @property
    def name(self) -> str:
        """The function's name without the marks of an in-place or reflected form."""
        return _name(self.function)

    def tensors(self) -> list[Tensor]:
        """The input tensors in the order of ``inputs``."""
        return [value.tensor for value in self.inputs]

    def run(self, *tensors: Tensor) -> Tensor:
        """Call the function again, out of place, with ``tensors`` for the inputs."""
        known = dict(zip(self.inputs, tensors, strict=True))
        args, kwargs = _substitute((self.args, self.kwargs), lambda leaf: known.get(leaf, leaf))
        result = self.function(*args, **kwargs)
        picked: Tensor = result if self.index is None else result[self.index]
        return picked


class Tape(TorchFunctionMode):
    """Context in which a model's forward pass is recorded from the start values on.

    Parameters
    ----------
    model
        The module that will run; its module names are used in messages and by composites.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        self._paused = False
        self._memory: dict[int, list[Value]] = {}
        self._live: dict[int, tuple[Tensor, Value, int]] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run operations that are not part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def start(self, tensor: Tensor, kept: Tensor, live: Tensor) -> Value:
        """Follow ``live`` from here on, in place of ``tensor``.

        ``kept`` holds the same numbers and is never changed in place.
        """
        value = self._lookup(tensor) or Value(kept, nonnegative=bool((kept >= 0).all()))
        return self._follow(live, value)

    def rename(self, tensor: Tensor, live: Tensor) -> None:
        """Follow ``live`` in place of ``tensor``, if that is followed."""
        if (value := self._lookup(tensor)) is not None:
            self._follow(live, value)

    def value(self, tensor: Tensor) -> Value:
        """The recorded value of a tensor that the forward pass returned.

        Raises
        ------
        TrompeError
            If the tensor doesn't depend on a start value through recorded operations.
        """
        value = self._lookup(tensor)
        if value is None:
            raise TrompeError(
                "The model's output does not depend on the explained layer, so there is no "
                "relevance to send back; choose a layer that the output is computed from."
            )
        return value

    def __enter__(self) -> Self:
        for module in self._names:
            self._hooks += [
                module.register_forward_pre_hook(self._enter_module),
                module.register_forward_hook(self._leave_module, always_call=True),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Args = (),
        kwargs: Kwargs | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        followed = [leaf for leaf in _leaves((args, kwargs)) if self._lookup(leaf) is not None]
        if not followed:
            return func(*args, **kwargs)

        inputs = tuple(dict.fromkeys(value for t in followed if (value := self._lookup(t))))
        in_place = _is_in_place(func, args, kwargs)
        kept = self._substituted((args, kwargs))
        if in_place:
            target = next(_leaves((args, kwargs)))
            self._snapshot(target)
            kept = _substitute(kept, lambda leaf: leaf.clone() if leaf is target else leaf)
        versions = [tensor._version for tensor in followed]
        result = func(*args, **kwargs)
        path = self._stack[-1] if self._stack else ""
        if not in_place and versions != [tensor._version for tensor in followed]:
            raise TrompeError(
                f"{describe(func, path)} changes its input in place in a way that can't be "
                "followed; use the out-of-place form."
            )
        nonnegative = _is_nonnegative(func, *kept, inputs)
        for index, tensor in _outputs(result):
            if in_place or not any(tensor is t for t in followed):
                output = self._follow(tensor, Value(tensor, nonnegative))
                self.operations.append(Operation(func, *kept, inputs, output, index, path))
        return result

    def _substituted(self, call: tuple[Args, Kwargs]) -> tuple[Args, Kwargs]:
        substituted: tuple[Args, Kwargs] = _substitute(call, lambda t: self._lookup(t) or t)
        return substituted

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._names[module])

    def _leave_module(self, *_: Any) -> None:
        self._stack.pop()

    def _follow(self, tensor: Tensor, value: Value) -> Value:
        self._live[id(tensor)] = (tensor, value, tensor._version)
        self._memory.setdefault(_address(value.tensor), []).append(value)
        return value

    def _lookup(self, leaf: Any) -> Value | None:
        if not isinstance(leaf, Tensor) or id(leaf) not in self._live:
            return None
        _, value, version = self._live[id(leaf)]
        if leaf._version != version:
            raise TrompeError(
                "A tensor above the explained layer was changed in place through a view of it, "
                "which can't be followed; use the out-of-place form in the model."
            )
        return value

    def _snapshot(self, tensor: Tensor) -> None:
        """Keep the numbers of every value that shares memory with ``tensor``."""
        for value in self._memory.pop(_address(tensor), []):
            value.tensor = value.tensor.clone()


def describe(function: Callable[..., Any], path: str) -> str:
    """Name an operation for a message: its function and the module that called it."""
    where = f"module '{path}'" if path else "the model's own forward"
    return f"The operation '{_name(function)}' in {where}"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", str(function)).strip("_")


def _is_nonnegative(
    function: Callable[..., Any],
    args: Args,
    kwargs: Kwargs,
    inputs: tuple[Value, ...],
) -> bool:
    name = _name(function)
    if name == "hardtanh":
        return bool(kwargs.get("min_val", -1) >= 0)
    if name in ("add", "mul") and not all(isinstance(operand, Value) for operand in args):
        return False
    return name in _NONNEGATIVE or (
        name in _KEEPS_SIGN and all(value.nonnegative for value in inputs)
    )


def _is_in_place(function: Callable[..., Any], args: Args, kwargs: Kwargs) -> bool:
    name = getattr(function, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if isinstance(function, FunctionType):
        return bool(inspect.signature(function).bind(*args, **kwargs).arguments.get("inplace"))
    return bool(kwargs.get("inplace"))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _outputs(result: Any) -> Iterator[tuple[int | None, Tensor]]:
    if isinstance(result, Tensor):
        yield None, result
    elif isinstance(result, list | tuple):
        yield from ((i, item) for i, item in enumerate(result) if isinstance(item, Tensor))


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _leaves(branch)
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _leaves(branch)


def _substitute(tree: Any, change: Callable[[Any], Any]) -> Any:
    if type(tree) in (list, tuple):
        return type(tree)(_substitute(branch, change) for branch in tree)
    if isinstance(tree, dict):
        return {key: _substitute(branch, change) for key, branch in tree.items()}
    return change(tree) if isinstance(tree, Tensor | Value) else tree
