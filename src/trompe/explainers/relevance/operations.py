"""What operations are to relevance propagation, by the names that PyTorch gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

OperationRule = Callable[[Any, Tensor], Sequence[Tensor | None]]
"""From a recorded operation and its output's relevance to that of its inputs."""

WEIGHTED = ("linear", "convolution")

KINDS: dict[str, str] = {
    "linear": "linear",
    **{f"conv{d}d": "convolution" for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": "convolution" for d in (1, 2, 3)},
    "convolution": "convolution",
    **dict.fromkeys(("add", "sub", "rsub"), "sum"),
    **{f"avg_pool{d}d": "average-pool" for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": "average-pool" for d in (1, 2, 3)},
    **dict.fromkeys(("mean", "sum", "nanmean", "nansum", "cumsum", "trace"), "average-pool"),
    **dict.fromkeys(("interpolate", "grid_sample", "grid_sampler", "fold"), "average-pool"),
    "layer_norm": "layer-norm",
    "scaled_dot_product_attention": "product",
    "softmax": "softmax",
}
"""The operations that a composite gives a rule, each with its kind."""

PRODUCTS: dict[str, int] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger"), 0),
    **dict.fromkeys(("einsum", "tensordot", "kron", "vecdot", "multi_dot", "chain_matmul"), 0),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "addr"), 1),
}
"""Products of tensors, each with how many tensors stand before the factors, to be added.

A followed factor times a constant is of the kind ``linear``, others are a ``product``.
"""

ALIASES: dict[str, str] = {
    **dict.fromkeys(("divide", "true_divide"), "div"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **{f"{name}_with_indices": name for name in (f"max_pool{d}d" for d in (1, 2, 3))},
    **{f"{name}_with_indices": name for name in (f"adaptive_max_pool{d}d" for d in (1, 2, 3))},
    "subtract": "sub",
    "multiply": "mul",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "expit": "sigmoid",
    "log_sigmoid": "logsigmoid",
}
"""Other names of the same operations."""

RULES: dict[str, OperationRule] = {}
"""The operations that have one rule, whatever the composite."""

VALUES_NOT_READ: set[str] = set()
"""The operations whose rule looks at no number of their inputs, which need not be kept for it."""


def operation_name(function: Callable[..., Any]) -> str:
    """The one name of a function, its method, in-place and reflected forms, and its aliases."""
    name: str = getattr(function, "__name__", str(function))
    if name == "__get__":  # a property, such as Tensor.T
        owner: Any = getattr(function, "__self__", function)
        name = owner.__name__
    name = name.partition(".")[0].strip("_")
    name = name.removeprefix("special_").removeprefix("linalg_")
    return ALIASES.get(name, name)


def register_rule(
    *names: str, reads_values: bool = True
) -> Callable[[OperationRule], OperationRule]:
    """Give operations a relevance rule: a decorator for ``rule(operation, relevance)``.

    The rule gets the recorded `Operation` and the relevance of its output, and returns one tensor
    for each of ``operation.inputs``, of its shape, or None for an input that gets nothing. It
    should keep the sum::

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
