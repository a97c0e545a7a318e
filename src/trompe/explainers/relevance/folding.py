"""BatchNorm folded into the layer before or after it, on the record alone: no model is touched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from types import FunctionType

from torch import Tensor

from trompe.errors import TrompeError
from trompe.explainers.relevance.record import Operation, Value
from trompe.models.normalised import scale_and_shift

_FOLDABLE = ("linear", "conv1d", "conv2d", "conv3d")
_BATCH_NORM = (
    *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
)
_TORCH_BATCH_NORM = (
    *("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
)


def fold_batch_norm(operations: Sequence[Operation], wanted: Collection[Value]) -> list[Operation]:
    """Replace each BatchNorm and the layer with weights next to it by one such layer.

    It is folded into the layer before it, or else into the one right after it, where nothing else
    reads the value between the two and its relevance is not ``wanted``; others stay as they are.
    The record must hold the inputs of BatchNorms (``Tape(model, keep=["batch_norm"])``).

    Raises
    ------
    TrompeError
        If a BatchNorm uses the statistics of the batch.
    """
    makers = {operation.output: operation for operation in operations}
    readers: dict[Value, list[Operation]] = {}
    for operation in operations:
        for value in operation.inputs:
            readers.setdefault(value, []).append(operation)

    def private(value: Value) -> bool:
        return value not in wanted and len(readers.get(value, [])) == 1

    replaced: dict[Operation, Operation | None] = {}
    for norm in (operation for operation in operations if operation.name == "batch_norm"):
        before = makers.get(norm.inputs[0])
        after = readers.get(norm.output, [None])[0]
        if before and _is_foldable(before) and private(norm.inputs[0]):
            layer = replaced.get(before) or before
            replaced |= {before: None, norm: _into_the_one_before(layer, norm)}
        elif after and _is_foldable(after) and private(norm.output):
            replaced |= {norm: None, after: _into_the_one_after(norm, after)}
    return [new for o in operations if (new := replaced.get(o, o)) is not None]


def _is_foldable(layer: Operation) -> bool:
    """Whether it is a layer whose weights and bias are not computed from the image."""
    followed = [isinstance(operand, Value) for operand in layer.operands]
    return layer.name in _FOLDABLE and followed[0] and not any(followed[1:])


def _into_the_one_before(layer: Operation, norm: Operation) -> Operation:
    scale, shift = _scale_and_shift(norm)
    weight, bias, apply = layer.layer()
    if bias is None:
        bias = shift
    else:
        per_output = (_along(t, min(1, bias.dim() - 1), bias.dim()) for t in (scale, shift))
        bias = bias * next(per_output) + next(per_output)
    args = (layer.inputs[0], weight * _along(scale, 0, weight.dim()), bias)
    return replace(
        layer,
        function=apply,
        args=args,
        kwargs={},
        tensors=layer.tensors[:1],
        output=norm.output,
    )


def _into_the_one_after(norm: Operation, layer: Operation) -> Operation:
    scale, shift = _scale_and_shift(norm)
    weight, bias, apply = layer.layer()
    shape = norm.inputs[0].shape
    per_group = scale.reshape(-1, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    grouped = weight.reshape(len(per_group), -1, *weight.shape[1:])
    folded = (grouped * per_group).flatten(0, 1)
    # Padding adds zeros after the norm, so what the shift adds differs along the border.
    offset = apply(_along(shift, 1, len(shape)).expand(1, *shape[1:]), weight, bias)

    def with_offset(a: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
        z = apply(a, weight, None)
        return z if offset is None else z + offset

    args = (norm.inputs[0], folded, offset)
    return replace(
        layer, function=with_offset, args=args, kwargs={}, inputs=norm.inputs, tensors=norm.tensors
    )


def _scale_and_shift(norm: Operation) -> tuple[Tensor, Tensor]:
    names = _BATCH_NORM if isinstance(norm.function, FunctionType) else _TORCH_BATCH_NORM
    given = dict(zip(names, norm.args, strict=False)) | norm.kwargs
    if given.get("training") or given["running_mean"] is None:
        raise TrompeError(
            f"{norm} uses the statistics of the batch, which can't be folded into a layer; put the "
            "model in evaluation mode, or let relevance pass with batch_norm='pass'."
        )
    statistics = (given["running_mean"], given["running_var"])
    affine = (given.get("weight"), given.get("bias"))
    return scale_and_shift(*statistics, *affine, given.get("eps", 1e-5))


def _along(tensor: Tensor, dim: int, dims: int) -> Tensor:
    return tensor.reshape([-1 if d == dim else 1 for d in range(dims)])
