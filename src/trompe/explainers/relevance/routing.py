"""Operations that pass relevance on, move it or choose where it goes; they share nothing out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trompe.explainers.relevance.flow import pull, run
from trompe.explainers.relevance.operations import register_rule
from trompe.explainers.relevance.tape import Operation

_ELEMENTWISE = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "threshold"),
    *("silu", "gelu", "mish", "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh"),
    *("hardtanh", "softplus", "clamp", "clamp_min", "clamp_max", "div", "neg"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("batch_norm", "instance_norm", "group_norm", "local_response_norm"),
    *("contiguous", "clone", "float", "double", "half", "bfloat16", "to", "type_as"),
)
_MOVING = (
    *("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose"),
    *("movedim", "flip", "roll", "cat", "concat", "concatenate", "stack", "getitem", "select"),
    *("narrow", "index_select", "chunk", "split", "tensor_split", "unbind", "pad", "expand"),
    *("repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
)
_MAXIMA = tuple(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3))
_GATES = ("sigmoid", "hardsigmoid", "softmax", "tanh")


@register_rule(*_ELEMENTWISE, reads_values=False)
def unchanged(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """Relevance passes through, element by element; of several inputs, to the first."""
    first, *others = operation.inputs
    nothing = (torch.zeros_like(value.empty(relevance)) for value in others)
    return [relevance.sum_to_size(first.shape), *nothing]


@register_rule(*_MOVING, reads_values=False)
def moved(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """Relevance goes back to the elements that were moved or copied."""
    return _rerouted(operation, [value.empty(relevance) for value in operation.inputs], relevance)


@register_rule(*_MAXIMA, "amax", "max")
def winner(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """Relevance goes to the element that was the largest."""
    return _rerouted(operation, [t.to(relevance.dtype) for t in operation.tensors], relevance)


def _rerouted(operation: Operation, tensors: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
    inputs, z = run(operation.run, tensors)
    return pull(z, inputs, relevance)


@register_rule("mul", reads_values=False)
def product(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """Relevance of a product goes to the signal, none to its gate (Arras et al. 2019).

    The gate is a factor that comes from a sigmoid, hard sigmoid, tanh or softmax, or else one that
    is spread over the other; two like factors share alike. A constant factor changes nothing.
    """
    gates = [value.origin in _GATES for value in operation.inputs]
    if all(gates) or not any(gates):
        gates = [value.shape != relevance.shape for value in operation.inputs]
    signals = gates.count(False) or len(gates)
    return [
        torch.zeros_like(value.empty(relevance))
        if gate and not all(gates)
        else (relevance / signals).sum_to_size(value.shape)
        for value, gate in zip(operation.inputs, gates, strict=True)
    ]
