"""What operations are to relevance propagation, by the names that PyTorch gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from trompe.explainers.relevance.tape import Operation

OperationRule = Callable[["Operation", Tensor], Sequence[Tensor]]

WEIGHTED = ("linear", "convolution")

KINDS: dict[str, str] = {
    "linear": "linear",
    **{f"conv{d}d": "convolution" for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": "convolution" for d in (1, 2, 3)},
    **dict.fromkeys(("add", "sub", "rsub"), "sum"),
    **{f"avg_pool{d}d": "average-pool" for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": "average-pool" for d in (1, 2, 3)},
    **dict.fromkeys(("mean", "sum", "interpolate"), "average-pool"),
    "layer_norm": "layer-norm",
}
"""The operations that a composite gives a rule, each with its kind."""

RULES: dict[str, OperationRule] = {}
"""The operations that have one rule, whatever the composite."""

VALUES_NOT_READ: set[str] = set()
"""The operations whose rule looks at no number of their inputs, which need not be kept for it."""


def register_rule(
    *names: str, reads_values: bool = True
) -> Callable[[OperationRule], OperationRule]:
    """Give operations a relevance rule: a decorator for ``rule(operation, relevance)``.

    The rule gets the recorded `Operation` and the relevance of its output, and returns one tensor
    for each of ``operation.inputs``, of its shape. It should keep the sum::

        @register_rule("nan_to_num")
        def unchanged(operation, relevance):
            return [relevance]

    Parameters
    ----------
    names
        Function names as PyTorch calls them (an error about a missing rule says which), without
        the underscore of an in-place form.
    reads_values
        Whether the rule reads ``operation.tensors``; if not, they are not kept in memory and stand
        there empty.
    """

    def register(rule: OperationRule) -> OperationRule:
        RULES.update(dict.fromkeys(names, rule))
        (VALUES_NOT_READ.difference_update if reads_values else VALUES_NOT_READ.update)(names)
        return rule

    return register
