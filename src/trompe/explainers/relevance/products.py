"""Products of tensors that are computed from the image, and softmax: what attention is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trompe.base import torch_compat
from trompe.explainers.relevance.flow import pull, run, stabilise
from trompe.explainers.relevance.gates import signals
from trompe.explainers.relevance.record import Operation, Value, substitute

_ATTENTION = "scaled_dot_product_attention"
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True)
class Product:
    """Relevance of z = function(a_1, ..., a_n) of which each factor gets a part.

    A factor's part goes to its elements in proportion to what z owes them, the other factors held
    fixed: R_i = part_i · a_i · ∂z/∂a_i · R / z.
    """

    function: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    owners: Sequence[int]
    parts: Sequence[float]
    relevance: Tensor
    stabiliser: float

    def shares(self) -> list[Tensor]:
        """The relevance of each factor."""
        return self._shared()[0]

    def lost(self) -> tuple[Tensor, Tensor]:
        """Relevance kept by the constant of a function linear but at its point, and the rest."""
        shares, spread = self._shared()
        kept = torch.stack([share.sum() for share in shares]).sum()
        return spread - kept, self.relevance.sum() - spread

    def _shared(self) -> tuple[list[Tensor], Tensor]:
        inputs, z = run(self.function, self.inputs)
        known = z if torch.is_grad_enabled() else z.detach()
        share = self.relevance / stabilise(known, self.stabiliser)
        pulled = zip(inputs, pull(z, inputs, share), self.parts, strict=True)
        return [a * g * part for a, g, part in pulled], (share * known).sum()


def products(
    operation: Operation, relevance: Tensor, stabiliser: float, *, gates: bool
) -> list[Product]:
    """A recorded product as flows; none if nothing is shared out.

    Parameters
    ----------
    gates
        Whether gates share like signals, or get nothing.
    """
    split = _attention if operation.name == _ATTENTION else _factors
    function, inputs, owners, parts = split(operation, relevance.dtype, gates)
    given = (function, inputs, owners, parts, relevance, stabiliser)
    return [Product(*given)] if inputs else []


@dataclass(frozen=True)
class Tangent:
    """Relevance of s = softmax(a) along its tangent: R_i = a_i · (R_i - s_i Σ_k R_k).

    That is Σ_k a_i · ∂s_k/∂a_i · R_k / s_k without the quotient, whose constant keeps the rest.
    """

    scores: Tensor
    dim: int
    relevance: Tensor
    owners: Sequence[int] = (0,)

    def shares(self) -> list[Tensor]:
        """The relevance of what was weighed; what has no weight, by a score of -inf, gets none."""
        of_all = self.relevance.sum(self.dim, keepdim=True)
        scores = self.scores.masked_fill(self.scores == -torch.inf, 0)
        return [scores * (self.relevance - self.scores.softmax(self.dim) * of_all)]

    def lost(self) -> tuple[Tensor, Tensor]:
        """Relevance that the constant keeps, and none for a stabiliser."""
        (share,) = self.shares()
        return self.relevance.sum() - share.sum(), torch.zeros_like(share.sum())


def tangent(operation: Operation, relevance: Tensor) -> Tangent:
    """A recorded softmax as a flow."""
    given = dict(zip(("input", "dim"), operation.args, strict=False)) | operation.kwargs
    return Tangent(operation.tensors[0].to(relevance.dtype), given["dim"], relevance)


_Split = tuple[Callable[..., Tensor], list[Tensor], list[int], list[float]]


def _factors(operation: Operation, dtype: torch.dtype, gates: bool) -> _Split:
    """Factors share alike."""
    numbers = [tensor.to(dtype) for tensor in operation.numbers]
    followed = {i: o for i, o in enumerate(operation.operands) if isinstance(o, Value)}
    chosen = [True] * len(followed) if gates else signals([*followed.values()])
    sharing = [i for i, is_signal in zip(followed, chosen, strict=True) if is_signal]

    def function(*factors: Tensor) -> Tensor:
        given = dict(zip(sharing, factors, strict=True))
        return operation.call([given.get(i, number) for i, number in enumerate(numbers)])

    owners = [operation.inputs.index(followed[i]) for i in sharing]
    return function, [numbers[i] for i in sharing], owners, [1 / len(sharing)] * len(sharing)


def _attention(operation: Operation, dtype: torch.dtype, gates: bool) -> _Split:
    """As values times weights, the softmax of scores, which are query times key plus a mask."""
    known: dict[Any, Any] = dict(zip(operation.inputs, operation.tensors, strict=True))
    given = dict(zip(_NAMES, operation.args, strict=False)) | operation.kwargs | {"dropout_p": 0.0}
    owners = {n: operation.inputs.index(o) for n, o in given.items() if isinstance(o, Value)}
    numbers = substitute(given, lambda operand: _cast(known.get(operand, operand), dtype))
    values = [name for name in ("value",) if name in owners]
    of_scores = gates or not values
    scores = [name for name in ("query", "key") if name in owners and of_scores]
    masks = [name for name in ("attn_mask",) if name in owners and of_scores]
    side = 1 / max(1, len(values) + bool(scores or masks))
    parts = [side / max(1, len(scores))] * len(scores) + [side] * len(masks + values)
    # The fused kernels have no second derivative.
    attend = torch_compat.attention if torch.is_grad_enabled() else operation.function
    sharing = scores + masks + values

    def function(*factors: Tensor) -> Tensor:
        z: Tensor = attend(**numbers | dict(zip(sharing, factors, strict=True)))
        return z

    return function, [numbers[n] for n in sharing], [owners[n] for n in sharing], parts


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
