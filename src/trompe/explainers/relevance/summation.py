"""Recorded operations that compute a weighted sum, in the one form that rules work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trompe.explainers.relevance.flow import Apply
from trompe.explainers.relevance.gates import signals
from trompe.explainers.relevance.operations import PRODUCTS
from trompe.explainers.relevance.record import Operation, Value

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
    part
        The part of the operation's relevance that is shared out here.
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
    part: float = 1.0


def summations(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    """A recorded operation as sums, its numbers brought to ``dtype``; none if nothing is shared."""
    return _READERS[operation.kind](operation, dtype)


def _layer(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    if operation.name in PRODUCTS:
        return [_times_constants(operation, dtype)]
    weight, bias, apply = operation.layer()
    tensor = operation.tensors[0].to(dtype)
    summation = Summation(
        apply,
        (tensor,),
        weight=weight.to(dtype),
        bias=None if bias is None else bias.to(dtype),
        computed=None if operation.computed is None else operation.computed.to(dtype),
        nonnegative=_is_nonnegative(operation, tensor),
        joint=operation.name in _CONVOLUTIONS and weight.shape[1] == operation.inputs[0].shape[1],
    )
    return [summation]


def _is_nonnegative(operation: Operation, tensor: Tensor) -> bool:
    """Numbers are looked at, for what an operation's name says of them is soon wrong."""
    return operation.inputs[0].origin == "relu" or bool((tensor >= 0).all())


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
        nonnegative=_is_nonnegative(operation, numbers[own]),
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
    owners = (operation.inputs.index(o) if isinstance(o, Value) else None for o in operands)
    return [Summation(lambda a, weight, bias: a, summands, tuple(owners))]


def _average(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    if isinstance(operation.operands[0], Tensor):  # only where the average is taken is followed
        return []
    return [_linear_in(operation, 0, dtype)]


def _product(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    """Factors that are no gates share alike, each as if the others were constants."""
    if operation.name == "scaled_dot_product_attention":
        return _attention(operation, dtype)
    followed = {i: o for i, o in enumerate(operation.operands) if isinstance(o, Value)}
    chosen = signals([*followed.values()])
    sharing = [i for i, is_signal in zip(followed, chosen, strict=True) if is_signal]
    return [_linear_in(operation, i, dtype, 1 / len(sharing)) for i in sharing]


def _linear_in(
    operation: Operation, position: int, dtype: torch.dtype, part: float = 1.0
) -> Summation:
    """An operation that is linear in one of its tensors, with the others held fixed."""
    numbers = [tensor.to(dtype) for tensor in operation.numbers]
    owner = operation.inputs.index(operation.operands[position])
    before, own, after = numbers[:position], numbers[position], numbers[position + 1 :]

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return operation.call([*before, a, *after])

    return Summation(apply, (own,), (owner,), pure=len(numbers) == 1, part=part)


def _attention(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    """What is attended to gets all relevance; how much it is, is a gate (Ali et al. 2022)."""
    query, key, value, *masks = operation.numbers
    if isinstance(operation.operands[2], Tensor):
        return []
    groups = query.shape[-3] // key.shape[-3] if operation.kwargs.get("enable_gqa") else 1
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
    scale = given.get("scale") or query.shape[-1] ** -0.5
    scores = (query @ _repeated(key, groups).transpose(-2, -1)).to(dtype) * scale
    for mask in masks:
        scores = scores + (mask.to(dtype).log() if mask.dtype is torch.bool else mask)
    if given.get("is_causal"):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        return weight @ _repeated(a, groups)

    owner = operation.inputs.index(operation.operands[2])
    return [Summation(apply, (value.to(dtype),), (owner,), weight=scores.softmax(-1))]


def _repeated(heads: Tensor, groups: int) -> Tensor:
    return heads if groups == 1 else heads.repeat_interleave(groups, -3)


def _layer_norm(operation: Operation, dtype: torch.dtype) -> list[Summation]:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
    tensor = operation.tensors[0].to(dtype)
    dims = tuple(range(-len(given["normalized_shape"]), 0))
    deviation = (tensor.var(dims, correction=0, keepdim=True) + given.get("eps", 1e-5)).sqrt()
    scale = 1 / deviation if given.get("weight") is None else given["weight"] / deviation

    def apply(a: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        centred: Tensor = (a - a.mean(dims, keepdim=True)) * scale
        return centred if bias is None else centred + bias

    return [Summation(apply, (tensor,), bias=given.get("bias"), pure=False)]


_READERS: dict[str, Callable[[Operation, torch.dtype], list[Summation]]] = {
    "linear": _layer,
    "convolution": _layer,
    "sum": _sum,
    "average-pool": _average,
    "layer-norm": _layer_norm,
    "product": _product,
}
