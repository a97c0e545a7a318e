"""The reverse pass: from the explained output back to the start values of the tape."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from trompe.errors import TrompeError
from trompe.explainers.relevance.composites import Composite
from trompe.explainers.relevance.folding import fold_batch_norm
from trompe.explainers.relevance.operations import OperationRule
from trompe.explainers.relevance.record import Operation, Value
from trompe.explainers.relevance.tape import Tape

Observer = Callable[[Operation, OperationRule, Tensor, Sequence[Tensor | None]], None]


def propagate(
    tape: Tape,
    output: Value,
    relevance: Tensor,
    composite: Composite,
    wanted: Collection[Value],
    *,
    fold: bool = False,
    observer: Observer | None = None,
) -> dict[Value, Tensor]:
    """Send ``relevance`` back from ``output`` and return what arrives at each wanted value.

    Parameters
    ----------
    tape
        The recorded forward pass.
    output, relevance
        The value explained, and its relevance, of the same shape.
    composite
        Chooses the rule of each operation.
    wanted
        Values whose relevance is asked for.
    fold
        Fold each BatchNorm into the layer next to it instead of passing relevance through it.
    observer
        Called after every operation with it, its rule, and the relevance of its output and of its
        inputs.

    Returns
    -------
    dict
        Relevance with the shape of each wanted value, 0 where only gates are computed from it;
        differentiable in parameters and images if gradients are enabled and the forward pass was
        recorded with them.

    Raises
    ------
    TrompeError
        If an operation on the way has no rule or one that returns something else than relevance,
        or the output is not computed from a wanted value.
    """
    arrived, reached = {output: relevance}, {output}
    with torch.autocast(relevance.device.type, enabled=False):
        operations = fold_batch_norm(tape.operations, wanted) if fold else tape.operations
        for operation in reversed(operations):
            if operation.output in reached:
                reached.update(operation.inputs)
            if operation.output not in arrived:
                continue
            received = arrived[operation.output]
            if operation.output not in wanted:
                del arrived[operation.output]
            rule = composite.rule(operation, tape.depth)
            shares = _checked(rule(operation, received), operation)
            ends = (value.beside for value in operation.inputs)
            shares = [None if end else s for s, end in zip(shares, ends, strict=True)]
            if observer is not None:
                observer(operation, rule, received, shares)
            for value, share in zip(operation.inputs, shares, strict=True):
                if share is not None:
                    arrived[value] = arrived[value] + share if value in arrived else share
    if not reached >= set(wanted):
        raise TrompeError(
            "No relevance reaches one of the explained layers; choose a layer that the output is "
            "computed from."
        )
    return {
        value: arrived[value] if value in arrived else torch.zeros_like(value.empty(relevance))
        for value in wanted
    }


def _checked(shares: Sequence[Tensor | None], operation: Operation) -> Sequence[Tensor | None]:
    wanted = [tuple(value.shape) for value in operation.inputs]
    given = [None if share is None else tuple(share.shape) for share in shares]
    if len(given) == len(wanted) and all(
        g in (None, w) for g, w in zip(given, wanted, strict=True)
    ):
        return shares
    raise TrompeError(
        f"The rule for {operation} must return a tensor, or None, for each input, of the shapes "
        f"{wanted}, not {given}."
    )
