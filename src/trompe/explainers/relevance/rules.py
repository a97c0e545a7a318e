"""How one operation shares the relevance of its output among its inputs.

Every rule is built from one formula, R_j = Σ_i a_j^(i) · ∂z/∂a_j^(i) · R / z (`redistribute`): a
rule only chooses which parts of inputs, weights and bias make up z. Rules are differentiable in
inputs, parameters and relevance.

A rule is a function ``(operation, relevance) -> tuple of relevances``, one for each of
``operation.inputs``; `OPERATIONS` says which kind of rule an operation takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trompe.explainers.relevance.tape import Operation, Value

Rule = Callable[[Operation, Tensor], Sequence[Tensor]]

# Operation name -> kind. Composites give each kind a rule; the kinds of FIXED have only one.
OPERATIONS: dict[str, str] = {}
FIXED: dict[str, Rule] = {}


def register_operation(kind: str, *names: str, rule: Rule | None = None) -> None:
    """Say which kind of rule the operations called ``names`` take.

    Parameters
    ----------
    kind
        ``"linear"``, ``"convolution"``, ``"sum"``, ``"average-pool"``, ``"rearrange"``, ``"pass"``
        or a kind of your own.
    names
        Function names as PyTorch calls them, e.g. ``"conv2d"``.
    rule
        The rule of the kind, where it does not depend on the composite.
    """
    OPERATIONS.update(dict.fromkeys(names, kind))
    if rule is not None:
        FIXED[kind] = rule


def stabilise(z: Tensor, epsilon: float) -> Tensor:
    """z + ε · sign(z), with sign(0) = +1."""
    return z + torch.where(z >= 0, epsilon, -epsilon)


def redistribute(
    forward: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    relevance: Tensor,
    epsilon: float,
) -> list[Tensor]:
    """Share relevance in proportion to the contributions to ``z = forward(*inputs)``.

    ``forward`` must be linear in its inputs, up to a bias. Returns a_i · ∂z/∂a_i · R / z for each
    input.
    """
    inputs, z = _run(forward, inputs, relevance.dtype)
    share = relevance / stabilise(z, epsilon)
    return [a * g for a, g in zip(inputs, _pull(z, inputs, share), strict=True)]


def reroute(
    forward: Callable[..., Tensor], inputs: Sequence[Tensor], relevance: Tensor
) -> list[Tensor]:
    """Send relevance back along an operation that only picks or moves elements."""
    inputs, z = _run(forward, inputs, relevance.dtype)
    return _pull(z, inputs, relevance)


def _run(
    forward: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    # A view has no other path to z, even where one input was computed from another.
    keep = torch.is_grad_enabled()
    ready = [
        a.view_as(a) if keep and a.requires_grad else a.detach().requires_grad_()
        for a in (tensor.to(dtype) for tensor in inputs)
    ]
    with torch.enable_grad():
        return ready, forward(*ready)


def _pull(z: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    keep = torch.is_grad_enabled()
    return list(torch.autograd.grad(z, inputs, weight, create_graph=keep))


def _linear(input: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Callable[..., Tensor]]:
    return weight, bias, F.linear


def _conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, Any, Callable[..., Tensor]]:
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return weight, bias, partial(F.conv2d, **geometry)


_WEIGHTED = {"linear": _linear, "conv2d": _conv2d}


def _weighted(
    operation: Operation, relevance: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Callable[..., Tensor]]:
    weight, bias, apply = _WEIGHTED[operation.name](*operation.args, **operation.kwargs)
    (value,) = operation.inputs
    dtype = relevance.dtype
    return value.tensor, weight.to(dtype), None if bias is None else bias.to(dtype), apply


def epsilon(stabiliser: float) -> Rule:
    """LRP-ε for layers with weights: z = a·w + b (Bach et al. 2015, eq. 58). ε = 0 is LRP-0."""

    def rule(operation: Operation, relevance: Tensor) -> list[Tensor]:
        a, weight, bias, apply = _weighted(operation, relevance)
        return redistribute(lambda a: apply(a, weight, bias), [a], relevance, stabiliser)

    return rule


def alpha_beta(alpha: float, beta: float, stabiliser: float) -> Rule:
    """LRP-αβ for layers with weights, α + β = 1, biases split by sign (Bach et al. 2015, eq. 60).

    α = 1, β = 0 is the z⁺ rule.
    """

    def rule(operation: Operation, relevance: Tensor) -> list[Tensor]:
        a, weight, bias, apply = _weighted(operation, relevance)
        positive, negative = weight.clamp(min=0), weight.clamp(max=0)
        nonnegative = operation.inputs[0].nonnegative
        result: Tensor | float = 0.0
        for share, same, other, side in (
            (alpha, positive, negative, "min"),
            (beta, negative, positive, "max"),
        ):
            if share == 0:
                continue
            offset = None if bias is None else bias.clamp(**{side: 0})
            if nonnegative:
                parts = redistribute(
                    lambda a, w=same, b=offset: apply(a, w, b), [a], relevance * share, stabiliser
                )
            else:
                parts = redistribute(
                    lambda p, n, v=same, w=other, b=offset: apply(p, v, b) + apply(n, w),
                    [a.clamp(min=0), a.clamp(max=0)],
                    relevance * share,
                    stabiliser,
                )
            result = result + sum(parts)
        assert isinstance(result, Tensor)
        return [result]

    return rule


def proportional(stabiliser: float, *, positive: bool) -> Rule:
    """Share an average in proportion to the inputs, or to their positive parts."""

    def rule(operation: Operation, relevance: Tensor) -> list[Tensor]:
        parts = [_part(tensor, positive) for tensor in operation.tensors()]
        return redistribute(operation.run, parts, relevance, stabiliser)

    return rule


def proportional_sum(stabiliser: float, *, positive: bool) -> Rule:
    """Split a sum in proportion to the summands, or to their positive parts.

    A summand that the tape does not follow takes its share, which is then dropped.
    """

    def rule(operation: Operation, relevance: Tensor) -> list[Tensor]:
        scale = operation.kwargs.get("alpha", 1)
        summands = operation.args[:2]
        tensors = [
            s.tensor if isinstance(s, Value) else torch.as_tensor(s, device=relevance.device)
            for s in summands
        ]
        shares = redistribute(
            lambda a, b: torch.add(a, b, alpha=scale),
            [_part(tensor, positive) for tensor in tensors],
            relevance,
            stabiliser,
        )
        return [
            torch.stack([r for s, r in zip(summands, shares, strict=True) if s is value]).sum(0)
            for value in operation.inputs
        ]

    return rule


def _part(tensor: Tensor, positive: bool) -> Tensor:
    return tensor.clamp(min=0) if positive else tensor


def _unchanged(operation: Operation, relevance: Tensor) -> list[Tensor]:
    return [relevance]


def _rearranged(operation: Operation, relevance: Tensor) -> list[Tensor]:
    return reroute(operation.run, operation.tensors(), relevance)


register_operation("linear", "linear")
register_operation("convolution", "conv2d")
register_operation("sum", "add")
register_operation("average-pool", "avg_pool2d", "adaptive_avg_pool2d", "mean")
register_operation(
    "pass",
    *("batch_norm", "relu", "clamp", "clamp_min", "dropout", "contiguous", "clone", "float", "to"),
    rule=_unchanged,
)
register_operation(
    "rearrange",
    *("max_pool2d", "flatten", "reshape", "view", "cat", "concat", "concatenate", "squeeze"),
    *("unsqueeze", "permute", "transpose", "getitem", "pad", "chunk", "split"),
    rule=_rearranged,
)
