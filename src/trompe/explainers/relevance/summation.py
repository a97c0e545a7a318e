"""Recorded operations that compute a weighted sum, in the one form that rules work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from trompe.explainers.relevance.flow import Apply, Known
from trompe.explainers.relevance.operations import PRODUCTS
from trompe.explainers.relevance.record import Operation, Value
from trompe.explainers.twice import pull_linear

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Summation:
    """An operation seen as z = Σ_i apply(a_i, weight) + bias, linear in its inputs a_i.

    Attributes
    ----------
    inputs
        The summands; of a layer with weights, its one input.
    owners
        For each input, which of the operation's inputs its relevance belongs to.
    weight, bias
        Of a layer with weights, else no weight: there the inputs' weights are fixed. The bias of a
        sum is its constant summand.
    known
        z of a linear layer or a norm as the forward pass computed it.
    rectified
        Whether a ReLU computed the inputs.
    joint
        Whether apply(a, w) + apply(a', w') is apply of both, side by side along dimension 1.
    pure
        Whether what is differentiable in ``apply`` are its arguments alone.
    """

    apply: Apply
    inputs: tuple[Tensor, ...]
    owners: tuple[int, ...] = (0,)
    weight: Tensor | None = None
    bias: Tensor | None = None
    known: Known | None = None
    rectified: bool = False
    joint: bool = False
    pure: bool = True

    @property
    def nonnegative(self) -> bool:
        """Whether no input is negative. Numbers say so: what a name says of them is soon wrong."""
        return self.rectified or all(bool((a >= 0).all()) for a in self.inputs)


def summations(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    """A recorded operation, no product, as sums, its numbers brought to ``dtype``; none if nothing
    is shared."""
    return _READERS[operation.kind](operation, dtype)


def _layer(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    if operation.name in PRODUCTS:
        return [_times_constants(operation, dtype)]
    weight, bias, apply = operation.layer()
    tensor, weight = operation.tensors[0].to(dtype), weight.to(dtype)
    z = None if operation.computed is None else operation.computed.to(dtype)
    summation = Summation(
        apply,
        (tensor,),
        weight=weight,
        bias=None if bias is None else bias.to(dtype),
        known=None if z is None else Known(z, lambda share: pull_linear(z, share, weight)),
        rectified=operation.inputs[0].origin == "relu",
        joint=operation.name in _CONVOLUTIONS and weight.shape[1] == operation.inputs[0].shape[1],
    )
    return [summation]


def _times_constants(operation: Operation, dtype: torch.dtype) -> Summation:
    """A product of a followed tensor with a constant, its weight."""
    options = dict(operation.kwargs)
    alpha, beta = options.pop("alpha", 1), options.pop("beta", 1)
    plain = replace(operation, kwargs=options)
    numbers = [tensor.to(dtype) for tensor in plain.numbers]
    added = PRODUCTS[operation.name]
    own = next(i for i, operand in enumerate(plain.operands) if isinstance(operand, Value))
    of_weight = 2 * added + 1 - own

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        operands = [*numbers]
        operands[own] = a
        if weight is not None:
            operands[of_weight] = weight
        if added:
            operands[0] = numbers[0].new_zeros(()) if bias is None else bias
        return plain.call(operands)

    return Summation(
        apply,
        (numbers[own],),
        weight=numbers[of_weight] * alpha,
        bias=numbers[0] * beta if added else None,
        rectified=operation.inputs[0].origin == "relu",
    )


def _sum(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    first, second = {"add": (1, 1), "sub": (1, -1), "rsub": (-1, 1)}[operation.name]
    scales = (first, second * operation.kwargs.get("alpha", 1))
    known = dict(zip(operation.inputs, operation.tensors, strict=True))
    named = (operation.kwargs[key] for key in ("input", "other") if key in operation.kwargs)
    operands = [*operation.args, *named][:2]
    like = operation.tensors[0]

    def summand(operand: Any, scale: float) -> Tensor:
        tensor = known[operand] if isinstance(operand, Value) else torch.as_tensor(operand)
        tensor = tensor.to(like.device, dtype)
        return tensor if scale == 1 else tensor * scale

    summands = tuple(summand(o, s) for o, s in zip(operands, scales, strict=True))
    followed = [isinstance(operand, Value) for operand in operands]
    inputs = tuple(compress(summands, followed))
    owners = tuple(operation.inputs.index(o) for o in compress(operands, followed))
    bias = None if all(followed) else summands[followed.index(False)]
    return [Summation(_plus, inputs, owners, bias=bias)]


def _plus(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return a if bias is None else a + bias


def _average(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    if isinstance(operation.operands[0], Tensor):  # only where the average is taken is followed
        return []
    own, *others = (tensor.to(dtype) for tensor in operation.numbers)

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return operation.call([a, *others])

    return [Summation(apply, (own,), pure=not others)]


def _layer_norm(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
    tensor = operation.tensors[0].to(dtype)
    dims = tuple(range(-len(given["normalized_shape"]), 0))
    variance = (tensor - tensor.mean(dims, keepdim=True)).square().mean(dims, keepdim=True)
    deviation = (variance + given.get("eps", 1e-5)).sqrt()
    scale = 1 / deviation if given.get("weight") is None else given["weight"] / deviation

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        centred: Tensor = (a - a.mean(dims, keepdim=True)) * scale
        return centred if bias is None else centred + bias

    def pull(share: Tensor) -> Tensor:
        scaled: Tensor = share * scale
        return scaled - scaled.mean(dims, keepdim=True)

    assert operation.computed is not None
    known = Known(operation.computed.to(dtype), pull)
    return [Summation(apply, (tensor,), bias=given.get("bias"), known=known, pure=False)]


_READERS: dict[str, Callable[[Operation, torch.dtype], list[Summation]]] = {
    "linear": _layer,
    "convolution": _layer,
    "sum": _sum,
    "average-pool": _average,
    "layer-norm": _layer_norm,
}
