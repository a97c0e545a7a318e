"""Which factor of a product is its signal and which a gate, which gets no relevance.

What a saturating function computes is like a gate, more or less (Arras et al. 2019); it stays one
however it is scaled, reshaped, spread or combined with others of its kind, until a layer with
weights or a norm makes new features of it. Layers that mix attention leave it what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from trompe.explainers.relevance.operations import PRODUCTS, WEIGHTED
from trompe.explainers.relevance.record import Operation, Value

_ATTENTION = 4
_SATURATING = {
    "softmax": _ATTENTION,
    **dict.fromkeys(("sigmoid", "hardsigmoid"), 3),
    **dict.fromkeys(("tanh", "erf", "softsign"), 2),  # in tanh · sigmoid the signal
    # Parts of a sigmoid or softmax, hard or not, that is written out.
    **dict.fromkeys(("relu6", "hardtanh", "clamp", "exp", "sign"), 1),
}
# Operations in which the first tensor is all that relevance goes to.
_OF_THE_FIRST = {"div", "pow"}
_NORMS = {f"{kind}_norm" for kind in ("batch", "instance", "group", "layer", "rms")}


def gate(operation: Operation) -> int:
    """How much the result of an operation is like a gate; 0 is a signal."""
    own = _SATURATING.get(operation.name, 0)
    if operation.name == "clamp" and len(_bounds(operation)) < 2:
        own = 0
    inputs = operation.inputs[:1] if operation.name in _OF_THE_FIRST else operation.inputs
    passed_on = min(value.gate for value in inputs)
    renewed = operation.kind in WEIGHTED or operation.name in _NORMS
    return own if renewed and passed_on < _ATTENTION else max(own, passed_on)


def attends(operation: Operation) -> bool:
    """Whether the operation multiplies matrices that are computed from the image, as attention."""
    is_product = operation.name in PRODUCTS and operation.kind == "product"
    return is_product or operation.name == "scaled_dot_product_attention"


def signals(factors: Sequence[Value]) -> list[bool]:
    """Of the factors of a product, which are least like a gate."""
    least = min(value.gate for value in factors)
    return [value.gate == least for value in factors]


def _bounds(clamp: Operation) -> list[object]:
    given = (*clamp.args[1:], *clamp.kwargs.values())
    return [bound for bound in given if bound is not None]
