"""Records the tensor operations of a forward pass, whatever kind of module runs them.

The tape listens at the level of the functions that PyTorch itself dispatches
(``TorchFunctionMode``), so a functional ReLU, ``+``, ``torch.cat`` and an ``nn.Module`` look the
same to it. It follows the tensors derived from its start values and ignores the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType, TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from trompe.errors import TrompeError
from trompe.explainers.relevance.operations import KINDS, VALUES_NOT_READ, WEIGHTED
from trompe.maps import full_precision
from trompe.models.hooks import can_be_hooked, hooked

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# Operations whose result is never negative, and those that keep non-negative inputs so.
_NONNEGATIVE = {
    "relu",
    "relu6",
    "sigmoid",
    "hardsigmoid",
    "softmax",
    "softplus",
    "abs",
    "square",
    "exp",
}
_KEEPS_SIGN = {
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "sum"),
    *("add", "mul", "cat", "concat", "stack", "dropout", "flatten", "reshape", "view", "permute"),
    *("transpose", "getitem", "chunk", "split", "squeeze", "unsqueeze", "contiguous", "clone"),
}

# Operations that take no more than the form of a tensor.
_FORM_ONLY = {
    *(f"new_{how}" for how in ("zeros", "ones", "full", "empty", "tensor")),
    *(f"{how}_like" for how in ("zeros", "ones", "full", "empty", "rand", "randn")),
}

_LAYER = ("input", "weight", "bias")


@dataclass(eq=False)
class Value:
    """What stands for a tensor of the forward pass: its form, and what is known of its numbers."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    origin: str = ""
    nonnegative: bool = False

    def empty(self, like: Tensor) -> Tensor:
        """A tensor of this form with the dtype and device of ``like`` and no numbers."""
        return torch.empty_strided(self.shape, self.stride, dtype=like.dtype, device=like.device)


@dataclass(eq=False)
class Operation:
    """One output of one recorded call.

    Attributes
    ----------
    name
        The function's name without the marks of an in-place or reflected form.
    function, args, kwargs
        The call, with a `Value` where a followed tensor stood.
    inputs, output
        The followed values.
    tensors
        The numbers of ``inputs`` as they were, if the operation's rule reads them; of a linear
        layer, those of ``output`` as well.
    index
        Picks the output of a function that returns several.
    path
        The module that made the call.
    depth
        How many layers with weights ran before, in the whole network.
    """

    name: str
    function: Callable[..., Any]
    args: Args
    kwargs: Kwargs
    inputs: tuple[Value, ...]
    tensors: list[Tensor]
    output: Value
    index: int | None
    path: str
    depth: int

    @property
    def kind(self) -> str:
        """The kind of operation that composites choose a rule by, or ``""``."""
        return KINDS.get(self.name, "")

    def __str__(self) -> str:
        return describe(self.name, self.path)

    @property
    def computed(self) -> Tensor | None:
        """The numbers of ``output``, if they are kept."""
        return self.tensors[-1] if len(self.tensors) > len(self.inputs) else None

    def layer(self) -> tuple[Tensor, Tensor | None, Callable[..., Tensor]]:
        """Of a layer with weights: weight, bias and ``apply(input, weight, bias)``."""
        given = dict(zip(_LAYER, self.args, strict=False)) | self.kwargs
        rest = self.args[len(_LAYER) :]
        geometry = {key: value for key, value in given.items() if key not in _LAYER}

        def apply(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = self.function(input, weight, bias, *rest, **geometry)
            return result

        return given["weight"], given.get("bias"), apply

    def run(self, *tensors: Tensor) -> Tensor:
        """Call the function again, out of place, with ``tensors`` for the inputs."""
        known = dict(zip(self.inputs, tensors, strict=True))
        args, kwargs = _substitute((self.args, self.kwargs), lambda leaf: known.get(leaf, leaf))
        result = self.function(*args, **kwargs)
        picked: Tensor = result if self.index is None else result[self.index]
        return picked


class Tape(TorchFunctionMode):
    """Context in which a model's forward pass is recorded from the start values on.

    What is recorded runs in full precision, also under ``torch.autocast``: relevance is divided by
    small sums of large terms, which would be lost to rounding.

    Parameters
    ----------
    model
        The module that will run; its module names are used in messages and by composites.
    keep
        Names of operations whose inputs are kept, even if no rule reads their numbers.
    """

    def __init__(self, model: nn.Module, keep: Collection[str] = ()) -> None:
        super().__init__()
        self._not_read = VALUES_NOT_READ.difference(keep)
        self.operations: list[Operation] = []
        self.depth = 0
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._hooks = ExitStack()
        self._paused = False
        self._live = WeakTensorKeyDictionary()
        self._readers: dict[int, list[tuple[Operation, int]]] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run operations that are not part of the model."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def start(self, tensor: Tensor, live: Tensor) -> Value:
        """Follow ``live`` from here on, in place of ``tensor``, which has the same numbers."""
        value = self._lookup(tensor)
        if value is None:
            value = _value(tensor, nonnegative=bool((tensor >= 0).all()))
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
        for module in filter(can_be_hooked, self._names):
            self._hooks.enter_context(
                hooked(module, before=self._enter_module, after=self._leave_module, always=True)
            )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.close()
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
        name, depth = operation_name(func), self.depth
        if KINDS.get(name) in WEIGHTED:
            self.depth += 1
        found = {leaf: v for leaf in _leaves((args, kwargs)) if (v := self._lookup(leaf))}
        if not found or name in _FORM_ONLY:
            return func(*args, **kwargs)

        tensors = {value: leaf for leaf, value in found.items()}
        call: tuple[Args, Kwargs] = _substitute((args, kwargs), lambda leaf: found.get(leaf, leaf))
        path = self._stack[-1] if self._stack else ""
        reads = name not in self._not_read
        in_place = _is_in_place(func, args, kwargs)
        if in_place:
            target = next(_leaves((args, kwargs)))
            before = target.clone() if reads or self._is_read(target) else target
            self._replace(target, before)
            tensors = {v: before if leaf is target else leaf for v, leaf in tensors.items()}
            call = _substitute(call, lambda leaf: before if leaf is target else leaf)
        versions = [tensor._version for tensor in found]
        device = next(iter(found)).device.type
        if torch.is_autocast_enabled(device):
            # What changes in place keeps its dtype.
            lifted = (args, kwargs) if in_place else _substitute((args, kwargs), _lift)
            with torch.autocast(device, enabled=False):
                result = func(*lifted[0], **lifted[1])
        else:
            result = func(*args, **kwargs)
        if not in_place and versions != [tensor._version for tensor in found]:
            raise TrompeError(
                f"{describe(name, path)} changes its input in place in a way that can't be "
                "followed; use the out-of-place form."
            )
        nonnegative = _is_nonnegative(name, *call, tuple(tensors))
        for index, tensor in _outputs(result):
            if not tensor.is_floating_point():
                continue
            if in_place or not any(tensor is leaf for leaf in found):
                output = self._follow(tensor, _value(tensor, name, nonnegative))
                held = list(tensors.values()) if reads else []
                if KINDS.get(name) == "linear":
                    held.append(tensor)
                operation = Operation(
                    name, func, *call, tuple(tensors), held, output, index, path, depth
                )
                self.operations.append(operation)
                for position, read in enumerate(held):
                    self._readers.setdefault(_address(read), []).append((operation, position))
        return result

    def _enter_module(self, module: nn.Module, *_: Any) -> None:
        self._stack.append(self._names[module])

    def _leave_module(self, *_: Any) -> None:
        self._stack.pop()

    def _follow(self, tensor: Tensor, value: Value) -> Value:
        self._live[tensor] = (value, tensor._version)
        return value

    def _lookup(self, leaf: Tensor) -> Value | None:
        if leaf not in self._live:
            return None
        value, version = self._live[leaf]
        if leaf._version != version:
            raise TrompeError(
                "A tensor above the explained layer was changed in place through a view of it, "
                "which can't be followed; use the out-of-place form in the model."
            )
        return cast(Value, value)

    def _is_read(self, tensor: Tensor) -> bool:
        return _address(tensor) in self._readers

    def _replace(self, tensor: Tensor, copy: Tensor) -> None:
        """Let rules read ``copy`` where they would have read the memory of ``tensor``."""
        for operation, position in self._readers.pop(_address(tensor), []):
            read = operation.tensors[position]
            operation.tensors[position] = copy if read is tensor else read.clone()


def _value(tensor: Tensor, origin: str = "", nonnegative: bool = False) -> Value:
    return Value(tensor.shape, tensor.stride(), tensor.dtype, origin, nonnegative)


def describe(name: str, path: str) -> str:
    """Name an operation for a message: its function and the module that called it."""
    where = f"module '{path}'" if path else "the model's own forward"
    return f"The operation '{name}' in {where}"


def operation_name(function: Callable[..., Any]) -> str:
    """A function's name without the underscores of an in-place or reflected form."""
    return getattr(function, "__name__", str(function)).strip("_")


def _is_nonnegative(name: str, args: Args, kwargs: Kwargs, inputs: tuple[Value, ...]) -> bool:
    if name == "hardtanh":
        return bool((args[1] if len(args) > 1 else kwargs.get("min_val", -1)) >= 0)
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
        position = _inplace_position(function)
        if position is not None and position < len(args):
            return bool(args[position])
    return bool(kwargs.get("inplace"))


@cache
def _inplace_position(function: FunctionType) -> int | None:
    names = list(inspect.signature(function).parameters)
    return names.index("inplace") if "inplace" in names else None


def _lift(tensor: Tensor) -> Tensor:
    return full_precision(tensor) if tensor.is_floating_point() else tensor


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
