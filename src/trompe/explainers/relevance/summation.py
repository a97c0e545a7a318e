"""Recorded operations that compute a weighted sum, in the one form that rules work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trompe.explainers.relevance.flow import Apply
from trompe.explainers.relevance.tape import Operation, Value

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Summation:
    """An operation seen as z = Σ_i apply(a_i, weight) + bias, linear in its inputs a_i.

    Attributes
    ----------
    inputs
        The summands; of a layer with weights, its one input.
    owners
        For each input, which of the operation's inputs its relevance belongs to; None drops it.
    weight, bias
        Of a layer with weights, else None: there the inputs' weights are fixed.
    computed
        z as the forward pass computed it, of a linear layer.
    nonnegative
        Whether no input is negative.
    joint
        Whether apply(a, w) + apply(a', w') is apply of both, side by side along dimension 1.
    pure
        Whether what is differentiable in ``apply`` are its arguments alone.
    """

    apply: Apply
    inputs: tuple[Tensor, ...]
    owners: tuple[int | None, ...] = (0,)
    weight: Tensor | None = None
    bias: Tensor | None = None
    computed: Tensor | None = None
    nonnegative: bool = False
    joint: bool = False
    pure: bool = True

    @classmethod
    def of(cls, operation: Operation, dtype: torch.dtype) -> Summation:
        """Read a recorded operation, its numbers brought to ``dtype``."""
        return _READERS[operation.kind](operation, dtype)


def _layer(operation: Operation, dtype: torch.dtype) -> Summation:
    weight, bias, apply = operation.layer()
    return Summation(
        apply,
        (operation.tensors[0].to(dtype),),
        weight=weight.to(dtype),
        bias=None if bias is None else bias.to(dtype),
        computed=None if operation.computed is None else operation.computed.to(dtype),
        nonnegative=operation.inputs[0].nonnegative,
        joint=operation.name in _CONVOLUTIONS and weight.shape[1] == operation.inputs[0].shape[1],
    )


def _sum(operation: Operation, dtype: torch.dtype) -> Summation:
    first, second = {"add": (1, 1), "sub": (1, -1), "rsub": (-1, 1)}[operation.name]
    scales = (first, second * operation.kwargs.get("alpha", 1))
    known = dict(zip(operation.inputs, operation.tensors, strict=True))
    operands = operation.args[:2]
    like = operation.tensors[0]

    def summand(operand: Any, scale: float) -> Tensor:
        tensor = known[operand] if isinstance(operand, Value) else torch.as_tensor(operand)
        tensor = tensor.to(like.device, dtype)
        return tensor if scale == 1 else tensor * scale

    return Summation(
        lambda a, weight, bias: a,
        tuple(summand(o, s) for o, s in zip(operands, scales, strict=True)),
        tuple(operation.inputs.index(o) if isinstance(o, Value) else None for o in operands),
    )


def _average(operation: Operation, dtype: torch.dtype) -> Summation:
    (tensor,) = operation.tensors
    return Summation(lambda a, weight, bias: operation.run(a), (tensor.to(dtype),))


def _layer_norm(operation: Operation, dtype: torch.dtype) -> Summation:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
    tensor = operation.tensors[0].to(dtype)
    dims = tuple(range(-len(given["normalized_shape"]), 0))
    deviation = (tensor.var(dims, correction=0, keepdim=True) + given.get("eps", 1e-5)).sqrt()
    scale = 1 / deviation if given.get("weight") is None else given["weight"] / deviation

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        centred: Tensor = (a - a.mean(dims, keepdim=True)) * scale
        return centred if bias is None else centred + bias

    return Summation(apply, (tensor,), bias=given.get("bias"), pure=False)


_READERS: dict[str, Callable[[Operation, torch.dtype], Summation]] = {
    "linear": _layer,
    "convolution": _layer,
    "sum": _sum,
    "average-pool": _average,
    "layer-norm": _layer_norm,
}
