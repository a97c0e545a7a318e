"""Records the tensor operations of a forward pass, whatever kind of module runs them.

The tape listens at the level of the functions that PyTorch itself dispatches
(``TorchFunctionMode``), so a functional ReLU, ``+``, ``torch.cat`` and an ``nn.Module`` look the
same to it. It follows the tensors derived from its start values and ignores the rest. What
PyTorch composes in Python of functions that have rules is recorded as these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from trompe.base import torch_compat
from trompe.errors import TrompeError
from trompe.explainers.relevance.gates import attends, gate
from trompe.explainers.relevance.operations import (
    KINDS,
    PRODUCTS,
    RULES,
    VALUES_NOT_READ,
    WEIGHTED,
    operation_name,
)
from trompe.explainers.relevance.record import (
    Args,
    Kwargs,
    Operation,
    Value,
    describe,
    leaves,
    substitute,
)
from trompe.maps import full_precision
from trompe.models.hooks import can_be_hooked, hooked

# Operations that take no more than the form of a tensor.
_FORM_ONLY = {
    *(f"new_{how}" for how in ("zeros", "ones", "full", "empty", "tensor")),
    *(f"{how}_like" for how in ("zeros", "ones", "full", "empty", "rand", "randn")),
}

# Operations that take no more than the form of their second tensor.
_FORM_OF_SECOND = {"expand_as", "view_as", "reshape_as", "type_as", "to", "sum_to_size"}

# Operations whose result, if nobody follows it, is no tensor of real numbers any more.
_LEAVING = {
    *("numpy", "array", "tolist", "item", "to", "type", "int", "long", "short", "char", "byte"),
    *("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic"),
}

# Operations recorded as those that they stand for.
_WRITTEN_OUT: dict[str, Callable[..., Any]] = {
    "addcmul": lambda input, tensor1, tensor2, *, value=1: input + tensor1 * tensor2 * value,
    "addcdiv": lambda input, tensor1, tensor2, *, value=1: input + tensor1 / tensor2 * value,
    "lerp": lambda input, end, weight: input * (1 - weight) + end * weight,
}

_IN_PLACE = re.compile(r"\w*[^_]_|__setitem__")


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

    Attributes
    ----------
    operations
        What was recorded, in order.
    depth
        How many layers with weights ran, in the whole network.
    attends
        Whether the network, in any part, mixes positions by attention.
    """

    def __init__(self, model: nn.Module, keep: Collection[str] = ()) -> None:
        super().__init__()
        self._not_read = VALUES_NOT_READ.difference(keep)
        self.operations: list[Operation] = []
        self.depth = 0
        self.attends = False
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._entered = ExitStack()
        self._paused = False
        self._live = WeakTensorKeyDictionary()
        self._lost = WeakTensorKeyDictionary()
        self._unseen = self._left = ""
        self._readers: dict[int, list[tuple[Operation, int]]] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run operations that are not part of the model, or that are recorded already."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def start(self, tensor: Tensor, live: Tensor) -> Value:
        """Follow ``live`` from here on, in place of ``tensor``, which has the same numbers."""
        value = self._lookup(tensor)
        if value is None:
            value = Value.of(tensor)
        return self._follow(live, replace(value, beside=False) if value.beside else value)

    def rename(self, tensor: Tensor, live: Tensor) -> None:
        """Follow ``live`` in place of ``tensor``, if that is followed."""
        if (value := self._lookup(tensor)) is not None:
            self._follow(live, value)

    def value(self, tensor: Tensor) -> Value:
        """The recorded value of a tensor that the forward pass returned.

        Raises
        ------
        TrompeError
            If the tensor doesn't depend on a start value, or through what can't be recorded.
        """
        self._refuse_unseen()
        value = self._lookup(tensor)
        if (value is None or value.beside) and self._left:
            raise TrompeError(
                f"{self._left} turns numbers into something that LRP can't follow, and the model's "
                "output is computed from that; explain a layer above it."
            )
        if value is None or value.beside:
            raise TrompeError(
                "The model's output does not depend on the explained layer, so there is no "
                "relevance to send back; choose a layer that the output is computed from."
            )
        return value

    def __enter__(self) -> Self:
        for module in filter(can_be_hooked, self._names):
            self._entered.enter_context(
                hooked(module, before=self._enter_module, after=self._leave_module, always=True)
            )
        self._entered.enter_context(_Unseen(self))
        self._entered.enter_context(self._listening())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered.close()
        if isinstance(exc, RuntimeError) and "TorchScript interpreter" in str(exc):
            # It can fail under a dispatch mode, whatever the mode does.
            self._unseen = self._unseen or describe("forward", self._path)
            self._refuse_unseen()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

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
        name = operation_name(func)
        known = name in KINDS or name in PRODUCTS or name in RULES
        if not known and (composed := _composed(func, name)) is not None:
            with self._listening():
                return composed(*args, **kwargs)
        with self.paused():
            return self._record(name, func, args, kwargs)

    def _record(self, name: str, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        path, depth = self._path, self.depth
        if KINDS.get(name) in WEIGHTED or (name in PRODUCTS and _has_weights(args, kwargs)):
            self.depth += 1
        given = args, {key: value for key, value in kwargs.items() if key != "out"}
        if name in _FORM_OF_SECOND:
            given = _first_alone(given)
        found = {leaf: v for leaf in leaves(given) if (v := self._lookup(leaf))}
        if not found or name in _FORM_ONLY:
            return func(*args, **kwargs)

        beside = all(value.beside for value in found.values())
        if name == "linear":  # of rows that are strided it is one product for each
            args, kwargs = substitute((args, kwargs), Tensor.contiguous)
        tensors = {value: leaf for leaf, value in found.items()}
        call: tuple[Args, Kwargs] = substitute(given, lambda leaf: found.get(leaf, leaf))
        reads = name not in self._not_read and not beside
        in_place = _is_in_place(func, args, kwargs)
        target = next(leaves((args, kwargs))) if in_place else kwargs.get("out")
        if target is not None:
            if target._base is not None and target not in self._live:
                self._lost[target._base] = describe(name, path)
            before = target.clone() if reads or self._is_read(target) else target
            self._replace(target, before)
            tensors = {v: before if leaf is target else leaf for v, leaf in tensors.items()}
            call = substitute(call, lambda leaf: before if leaf is target else leaf)
        versions = [tensor._version for tensor in found]
        if beside:
            result = func(*args, **kwargs)
        else:  # what changes in place keeps its dtype
            result = _call(func, args, kwargs, lifted=target is None)
        if target is None and not beside and versions != [tensor._version for tensor in found]:
            raise TrompeError(
                f"{describe(name, path)} changes its input in place in a way that can't be "
                "followed; use the out-of-place form."
            )
        if name in _LEAVING and not beside:
            self._left = describe(name, path)
        for index, tensor in _outputs(target if in_place and result is None else result):
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            same = [leaf for leaf in found if target is None and _is_same(leaf, tensor)]
            if same:
                self._follow(tensor, found[same[0]])
            else:
                output = self._follow(tensor, Value.of(tensor, name, beside=beside))
                held = list(tensors.values()) if reads else []
                if KINDS.get(name) in ("linear", "layer-norm") and not beside:
                    held.append(tensor)
                operation = Operation(
                    name, func, *call, tuple(tensors), held, output, index, path, depth, in_place
                )
                output.gate = gate(operation)
                self.attends = self.attends or attends(operation)
                if not beside:
                    self._keep(operation)
        return result

    def _keep(self, operation: Operation) -> None:
        self.operations.append(operation)
        for position, read in enumerate(operation.tensors):
            self._readers.setdefault(_address(read), []).append((operation, position))

    def note_unseen(self, name: str, args: Args) -> None:
        """Note an operation on followed tensors that no function of PyTorch's called."""
        if not self._paused:
            with self.paused():
                if any(self._is_followed(leaf) for leaf in leaves(args)):
                    self._unseen = self._unseen or describe(name, self._path)

    def _refuse_unseen(self) -> None:
        if self._unseen:
            raise TrompeError(
                f"{self._unseen} is called where LRP can't follow it, by TorchScript or an "
                "extension. Write this part of the model in plain PyTorch, or explain a layer "
                "above it."
            )

    @property
    def _path(self) -> str:
        return self._stack[-1] if self._stack else ""

    def _enter_module(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        self._stack.append(self._names[module])
        if len(self._stack) == 1:
            for leaf in leaves((args, kwargs)):
                if leaf not in self._live:
                    self._follow(leaf, Value.of(leaf, beside=True))

    def _leave_module(self, *_: Any) -> None:
        self._stack.pop()

    def _follow(self, tensor: Tensor, value: Value) -> Value:
        self._live[tensor] = (value, tensor._version)
        return value

    def _is_followed(self, tensor: Tensor) -> bool:
        return tensor in self._live and not self._live[tensor][0].beside

    def _lookup(self, leaf: Tensor) -> Value | None:
        if leaf not in self._live:
            whole = leaf if leaf._base is None else leaf._base
            if whole in self._lost or self._is_followed(whole):
                self._refuse_unseen()
                writer = self._lost.get(whole, "The model")  # type: ignore[no-untyped-call]
                raise TrompeError(
                    f"{writer} writes into a part of a tensor that is read as a whole, or the "
                    "other way round, which can't be followed; use the out-of-place form, such as "
                    "torch.cat."
                )
            return None
        value, version = self._live[leaf]
        if leaf._version != version and not value.beside:
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


class _Unseen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is computed without a function that the tape would hear of."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        self._tape.note_unseen(operation_name(func), args)
        return func(*args, **(kwargs or {}))


def _call(function: Callable[..., Any], args: Args, kwargs: Kwargs, *, lifted: bool) -> Any:
    """Call a function as it is, or in full precision under autocast if ``lifted``."""
    device = next(leaves((args, kwargs))).device.type
    if not torch.is_autocast_enabled(device):
        return function(*args, **kwargs)
    args, kwargs = substitute((args, kwargs), _lift) if lifted else (args, kwargs)
    with torch.autocast(device, enabled=False):
        return function(*args, **kwargs)


def _composed(function: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    """A function so that what it calls can be heard, if PyTorch writes it in Python."""
    if getattr(function, "__name__", "") in _WRITTEN_OUT:
        return _WRITTEN_OUT[name]
    return torch_compat.written_in_python(function)


def _is_in_place(function: Callable[..., Any], args: Args, kwargs: Kwargs) -> bool:
    name = getattr(function, "__name__", "").partition(".")[0]
    if _IN_PLACE.fullmatch(name):
        return True
    code = getattr(function, "__code__", None)
    named = zip(code.co_varnames[: code.co_argcount], args, strict=False) if code else ()
    return bool((dict(named) | kwargs).get("inplace"))


def _first_alone(given: tuple[Args, Kwargs]) -> tuple[Args, Kwargs]:
    """The call with a tensor of no numbers where only the form of one is taken."""
    first = next(leaves(given), None)
    alone: tuple[Args, Kwargs] = substitute(
        given, lambda leaf: leaf if leaf is first else leaf.new_empty(()).expand(leaf.shape)
    )
    return alone


def _has_weights(args: Args, kwargs: Kwargs) -> bool:
    found = leaves((args, kwargs))
    return any(
        isinstance(leaf if leaf._base is None else leaf._base, nn.Parameter) for leaf in found
    )


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in the same memory, in the same form."""
    return tensor is other or (
        tensor.shape == other.shape
        and tensor.stride() == other.stride()
        and tensor.dtype == other.dtype
        and tensor.data_ptr() == other.data_ptr()
    )


def _lift(tensor: Tensor) -> Tensor:
    return full_precision(tensor) if tensor.is_floating_point() else tensor


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _outputs(result: Any) -> Iterator[tuple[int | None, Tensor]]:
    if isinstance(result, Tensor):
        yield None, result
    elif isinstance(result, list | tuple):
        yield from ((i, item) for i, item in enumerate(result) if isinstance(item, Tensor))
