"""What the tape writes down: values that stand for tensors, and the operations between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trompe.explainers.relevance.operations import KINDS, PRODUCTS, WEIGHTED

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

_LAYER = ("input", "weight", "bias")


@dataclass(eq=False)
class Value:
    """What stands for a tensor of the forward pass: its form, and what its numbers are for.

    ``origin`` names the operation that made it; ``gate`` says how much it is like a gate
    (`gates.gate`). A value ``beside`` the followed ones is computed from the image, too, but not
    from a start value; relevance that it gets ends there.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    origin: str = ""
    gate: int = 0
    beside: bool = False

    @classmethod
    def of(cls, tensor: Tensor, origin: str = "", *, gate: int = 0, beside: bool = False) -> Value:
        """A value of the form of ``tensor``."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, origin, gate, beside)

    def empty(self, like: Tensor) -> Tensor:
        """A tensor of this form with the dtype and device of ``like`` and no numbers."""
        return torch.empty_strided(self.shape, self.stride, dtype=like.dtype, device=like.device)


@dataclass(eq=False)
class Operation:
    """One output of one recorded call.

    Attributes
    ----------
    name
        The function's name (`operations.operation_name`).
    function, args, kwargs
        The call, with a `Value` where a followed tensor stood.
    inputs, output
        The followed values.
    tensors
        The numbers of ``inputs`` as they were, if the operation's rule reads them; of a linear
        layer or a LayerNorm, those of ``output`` as well.
    index
        Picks the output of a function that returns several.
    path
        The module that made the call.
    depth
        How many layers with weights ran before, in the whole network.
    in_place
        Whether the call changed its first tensor.
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
    in_place: bool = False

    @cached_property
    def kind(self) -> str:
        """The kind of operation that composites choose a rule by, or ``""``."""
        kind = KINDS.get(self.name, "")
        operands = self.operands
        if self.name in PRODUCTS:
            added, factors = operands[: PRODUCTS[self.name]], operands[PRODUCTS[self.name] :]
            if any(isinstance(operand, Value) for operand in added):
                return ""
            if len(factors) == 1:  # of einsum
                return "average-pool"
            constants = [factor for factor in factors if isinstance(factor, Tensor)]
            return "linear" if len(factors) == 2 and constants else "product"
        bicubic = self.kwargs.get("mode") == "bicubic"  # has negative weights
        if bicubic or (kind in WEIGHTED and isinstance(operands[0], Tensor)):
            return "product"
        return kind

    def __str__(self) -> str:
        return describe(self.name, self.path)

    @cached_property
    def operands(self) -> list[Tensor | Value]:
        """The tensors of the call, in order, with a `Value` where a followed one stood."""
        return list(leaves((self.args, self.kwargs), Tensor | Value))

    @property
    def numbers(self) -> list[Tensor]:
        """The numbers of `operands`."""
        known: dict[Any, Any] = dict(zip(self.inputs, self.tensors, strict=False))
        return [known.get(operand, operand) for operand in self.operands]

    @property
    def computed(self) -> Tensor | None:
        """The numbers of ``output``, if they are kept."""
        return self.tensors[-1] if len(self.tensors) > len(self.inputs) else None

    def layer(self) -> tuple[Tensor, Tensor | None, Callable[..., Tensor]]:
        """Of a layer with weights: weight, bias and ``apply(input, weight, bias)``."""
        known: dict[Any, Any] = dict(zip(self.inputs, self.tensors, strict=False))
        given = dict(zip(_LAYER, self.args, strict=False)) | self.kwargs
        rest = self.args[len(_LAYER) :]
        geometry = {key: value for key, value in given.items() if key not in _LAYER}

        def apply(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = self.function(input, weight, bias, *rest, **geometry)
            return result

        weight: Any = given["weight"]
        bias = given.get("bias")
        return known.get(weight, weight), known.get(bias, bias), apply

    def run(self, *tensors: Tensor) -> Tensor:
        """Call the function again, out of place, with ``tensors`` for the inputs."""
        known: dict[Any, Any] = dict(zip(self.inputs, tensors, strict=True))
        return self.call([known.get(operand, operand) for operand in self.operands])

    def call(self, operands: Sequence[Any]) -> Tensor:
        """Call the function again, out of place, with other ``operands``."""
        first, *others = operands
        given = iter([first.clone() if self.in_place else first, *others])
        args, kwargs = substitute((self.args, self.kwargs), lambda _: next(given))
        result = self.function(*args, **kwargs)
        if result is None:  # of an assignment
            result = next(leaves((args, kwargs)))
        picked: Tensor = result if self.index is None else result[self.index]
        return picked


def describe(name: str, path: str) -> str:
    """Name an operation for a message: its function and the module that called it."""
    where = f"module '{path}'" if path else "the model's own forward"
    return f"The operation '{name}' in {where}"


def leaves(tree: Any, kinds: Any = Tensor) -> Iterator[Any]:
    """The tensors in tuples, lists and dicts, in order."""
    found: list[Any] = []
    _gather(tree, kinds, found)
    return iter(found)


def _gather(tree: Any, kinds: Any, found: list[Any]) -> None:
    if isinstance(tree, kinds):
        found.append(tree)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            _gather(branch, kinds, found)
    elif isinstance(tree, dict):
        for branch in tree.values():
            _gather(branch, kinds, found)


def substitute(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same tuples, lists and dicts with their tensors and values changed, in order."""
    if type(tree) in (list, tuple):
        return type(tree)(substitute(branch, change) for branch in tree)
    if isinstance(tree, dict):
        return {key: substitute(branch, change) for key, branch in tree.items()}
    return change(tree) if isinstance(tree, Tensor | Value) else tree
