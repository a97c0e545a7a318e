"""Operations that pass relevance on, move it or choose where it goes; they share nothing out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trompe.explainers.relevance.flow import pull, run, stabilise
from trompe.explainers.relevance.gates import signals
from trompe.explainers.relevance.operations import register_rule
from trompe.explainers.relevance.record import Operation

_ELEMENTWISE = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "threshold"),
    *("silu", "gelu", "mish", "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh"),
    *("hardtanh", "hardshrink", "softshrink", "tanhshrink", "softsign", "softplus"),
    *("clamp", "clamp_min", "clamp_max", "round", "floor", "ceil", "trunc", "sign", "sgn"),
    *("pow", "float_power", "square", "sqrt", "rsqrt", "reciprocal", "exp", "exp2", "expm1"),
    *("log", "log1p", "log2", "log10", "sin", "cos", "tan", "sinh", "cosh", "atan", "erf"),
    *("div", "neg", "positive", "abs", "fake_quantize_per_tensor_affine"),
    *("fake_quantize_per_channel_affine", "feature_dropout", "feature_alpha_dropout"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "native_dropout"),
    *("batch_norm", "instance_norm", "group_norm", "local_response_norm", "rms_norm"),
    *("contiguous", "clone", "detach", "data", "float", "double", "half", "bfloat16", "to"),
    *("type", "type_as", "cpu", "cuda", "requires_grad"),
)
_MOVING = (
    *("flatten", "unflatten", "ravel", "reshape", "reshape_as", "view", "view_as", "squeeze"),
    *("unsqueeze", "atleast_1d", "atleast_2d", "atleast_3d", "permute", "transpose", "t", "T"),
    *("mT", "H", "mH", "adjoint", "swapaxes", "swapdims", "movedim", "moveaxis", "flip", "fliplr"),
    *("flipud", "rot90", "roll", "cat", "stack", "hstack", "vstack", "dstack", "column_stack"),
    *("row_stack", "block_diag", "getitem", "setitem", "copy", "select", "narrow", "diagonal"),
    *("diag", "diag_embed", "tril", "triu", "take", "take_along_dim", "gather", "index_select"),
    *("masked_select", "masked_fill", "index_fill", "select_scatter", "slice_scatter", "where"),
    *("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split"),
    *("unsafe_split_with_sizes", "hsplit", "vsplit", "dsplit", "unbind", "pad"),
    *("constant_pad_nd", "expand", "expand_as", "broadcast_to", "broadcast_tensors", "meshgrid"),
    *("repeat", "repeat_interleave", "tile", "unfold", "as_strided", "pixel_shuffle"),
    *("pixel_unshuffle", "channel_shuffle", "scatter", "index_copy", "masked_scatter"),
    *(f"max_unpool{d}d" for d in (1, 2, 3)),
)
_CHOOSING = (
    *(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)),
    *("max", "amax", "maximum", "fmax", "min", "amin", "minimum", "fmin", "aminmax", "cummax"),
    *("cummin", "median", "nanmedian", "kthvalue", "topk", "sort", "msort", "logsumexp"),
)


@register_rule(*_ELEMENTWISE, reads_values=False)
def unchanged(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """Relevance passes through, element by element; of several inputs, to the first."""
    first, *others = operation.inputs
    return [relevance.sum_to_size(first.shape), *[None] * len(others)]


@register_rule(*_MOVING, reads_values=False)
def moved(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """Relevance goes back to the elements that were moved or copied."""
    return _rerouted(operation, [value.empty(relevance) for value in operation.inputs], relevance)


@register_rule(*_CHOOSING)
def winner(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """Relevance goes to the element that was chosen, or softly so: what is chosen grows with it."""
    return _rerouted(operation, [t.to(relevance.dtype) for t in operation.tensors], relevance)


@register_rule("norm", "vector_norm")
def norm(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """Relevance of (Σ |a|^p)^(1/p) is shared in proportion to |a|^p, as by LRP-0 on that sum."""
    inputs, z = run(operation.run, [t.to(relevance.dtype) for t in operation.tensors])
    share = relevance / stabilise(z, 0.0)
    return [a * g for a, g in zip(inputs, pull(z, inputs, share), strict=True)]


@register_rule("glu", reads_values=False)
def half(operation: Operation, relevance: Tensor) -> list[Tensor]:
    """Relevance of a · sigmoid(b), halves of one tensor, goes to a."""
    dim = operation.kwargs.get("dim", [*operation.args[1:], -1][0])
    return [torch.cat([relevance, torch.zeros_like(relevance)], dim)]


def _rerouted(
    operation: Operation, tensors: Sequence[Tensor], relevance: Tensor
) -> list[Tensor | None]:
    inputs, z = run(operation.run, tensors)
    return pull(z, inputs, relevance) if z.requires_grad else [None] * len(inputs)


@register_rule("mul", reads_values=False)
def product(operation: Operation, relevance: Tensor) -> list[Tensor | None]:
    """Relevance of a product goes to the signal, none to its gate (Arras et al. 2019).

    The gate is the factor that is most like one (`gates`), or else one that is spread over the
    other; two like factors share alike. A constant factor changes nothing.
    """
    chosen = signals(operation.inputs)
    if all(chosen):
        whole = [value.shape == relevance.shape for value in operation.inputs]
        chosen = whole if any(whole) else chosen
    part = relevance / sum(chosen)
    return [
        part.sum_to_size(value.shape) if is_signal else None
        for value, is_signal in zip(operation.inputs, chosen, strict=True)
    ]
