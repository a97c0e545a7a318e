"""How an operation that computes a weighted sum shares relevance among its inputs.

Every rule is one formula, R_j = a_j · ∂z/∂a_j · R / z (`Flow`); it only chooses which parts of
inputs, weights and bias make up z. All is differentiable in inputs, parameters and relevance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from trompe.base import specs
from trompe.base.identity import Identified
from trompe.errors import TrompeError
from trompe.explainers.relevance.flow import Flow, Flowing
from trompe.explainers.relevance.operations import WEIGHTED
from trompe.explainers.relevance.products import products, tangent
from trompe.explainers.relevance.record import Operation
from trompe.explainers.relevance.summation import Summation, summations

Bound = float | Sequence[float]


@dataclass(frozen=True)
class Rule(Identified, ABC):
    """How the operations of some kinds share relevance among their inputs."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = WEIGHTED

    @abstractmethod
    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """What relevance flows in proportion to."""

    def __call__(self, operation: Operation, relevance: Tensor) -> list[Tensor | None]:
        """The relevance of each of the operation's inputs; None for one that gets nothing."""
        arrived: dict[int, Tensor] = {}
        for flow in self.flows_of(operation, relevance):
            for owner, share in zip(flow.owners, flow.shares(), strict=True):
                arrived[owner] = arrived[owner] + share if owner in arrived else share
        return [arrived.get(position) for position in range(len(operation.inputs))]

    def flows_of(self, operation: Operation, relevance: Tensor) -> Sequence[Flowing]:
        """The flows of a recorded operation."""
        found = summations(operation, relevance.dtype)
        return [flow for summation in found for flow in self.flows(summation, relevance)]

    def __str__(self) -> str:
        return specs.text(self.name, self)


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-ε: z = a·w + b (Bach et al. 2015, eq. 58). ε = 0 is LRP-0.

    On a LayerNorm, z is linear in the input with the standard deviation held fixed (Ali et al.
    2022). On a product of several inputs it is linear in each of them with the others held fixed;
    they share alike (Achtibat et al. 2024, prop. 3.3). A softmax is taken for its tangent (prop.
    3.1).

    Parameters
    ----------
    gates
        Whether the gates of a product, such as attention, share like signals or get nothing.
    """

    name: ClassVar[str] = "epsilon"
    kinds: ClassVar[tuple[str, ...]] = (
        *WEIGHTED,
        *("sum", "average-pool", "layer-norm", "product", "softmax"),
    )
    epsilon: float = 1e-6
    gates: bool = False

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow, in proportion to all contributions."""
        s = summation
        weights = [s.weight] * len(s.inputs)
        given = (s.apply, s.inputs, weights, s.bias, s.owners, relevance, self.epsilon)
        return [Flow(*given, known=s.known, pure=s.pure)]

    def flows_of(self, operation: Operation, relevance: Tensor) -> Sequence[Flowing]:
        """One flow, in proportion to all contributions."""
        if operation.kind == "product":
            return products(operation, relevance, self.epsilon, gates=self.gates)
        if operation.kind == "softmax":
            return [tangent(operation, relevance)]
        return super().flows_of(operation, relevance)


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """LRP-αβ: positive contributions get α, negative β (Bach et al. 2015, eq. 60).

    Biases are split by their sign. α = 1, β = 0 is the z⁺ rule. Where an output has no
    contribution of one sign, the stabiliser keeps that share; a stabiliser of 0 gives it to the
    contributions of the other sign, which conserves relevance.

    Raises
    ------
    TrompeError
        If α + β is not 1.
    """

    name: ClassVar[str] = "alpha-beta"
    kinds: ClassVar[tuple[str, ...]] = (*WEIGHTED, "sum", "average-pool")
    alpha: float = 1.0
    beta: float = 0.0
    stabiliser: float = 1e-6

    def __post_init__(self) -> None:
        if abs(self.alpha + self.beta - 1) > 1e-9:
            raise TrompeError(
                f"LRP-αβ needs α + β = 1, not {self.alpha} + {self.beta}; for α = 2 take β = -1."
            )

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow for the positive contributions, one for the negative."""
        if self.stabiliser == 0:
            return self._conserving(summation, relevance)
        return [
            _signed(
                summation,
                side,
                relevance if share == 1 else relevance * share,
                self.stabiliser,
                positive=side == "min",
            )
            for share, side in ((self.alpha, "min"), (self.beta, "max"))
            if share
        ]

    def _conserving(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        flows = [_signed(summation, side, relevance, 0.0) for side in ("min", "max")]
        with torch.no_grad():
            no_up, no_down = (f.z(f.inputs, f.weights, f.bias) == 0 for f in flows)
        up, down = relevance * self.alpha, relevance * self.beta
        up = torch.where(no_down, relevance, up.masked_fill(no_up, 0))
        down = torch.where(no_up, relevance, down.masked_fill(no_down, 0))
        return [replace(f, relevance=r) for f, r in zip(flows, (up, down), strict=True)]


@dataclass(frozen=True)
class Gamma(Rule):
    """LRP-γ: contributions of the sign of z count 1 + γ times (Montavon et al. 2019, table 1).

    For negative inputs and outputs in the generalised form of Andéol et al. 2021.
    """

    name: ClassVar[str] = "gamma"
    gamma: float = 0.25
    stabiliser: float = 1e-6

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow where z is positive, one where it is negative."""
        s = summation
        with torch.no_grad():
            z = s.apply(s.inputs[0], s.weight, s.bias)
        return [
            _signed(s, side, relevance * where, self.stabiliser, gamma=self.gamma)
            for side, where in (("min", z >= 0), ("max", z < 0))
        ]


@dataclass(frozen=True)
class WSquare(Rule):
    """w²: in proportion to squared weights, whatever the input (Montavon et al. 2017, table 1)."""

    name: ClassVar[str] = "w-square"
    stabiliser: float = 1e-6

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow, in proportion to the squares of the weights."""
        assert summation.weight is not None
        return [_regardless(summation, summation.weight.square(), relevance, self.stabiliser)]


@dataclass(frozen=True)
class Flat(Rule):
    """Flat: to all inputs alike, whatever inputs and weights (Lapuschkin et al. 2019)."""

    name: ClassVar[str] = "flat"
    stabiliser: float = 1e-6

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow, in equal shares."""
        assert summation.weight is not None
        ones = torch.ones_like(summation.weight)
        return [_regardless(summation, ones, relevance, self.stabiliser)]


@dataclass(frozen=True)
class Box(Rule):
    """z^B: for inputs in a box, z = a·w - l·w⁺ - h·w⁻ (Montavon et al. 2017, table 1).

    Parameters
    ----------
    low, high
        The smallest and largest possible input l and h: a number, or one per channel.
    """

    name: ClassVar[str] = "box"
    low: Bound = -2.2
    high: Bound = 2.7
    stabiliser: float = 1e-6

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow, in proportion to the distance from the box's far corner."""
        s = summation
        (a,) = s.inputs
        assert s.weight is not None
        weights = [s.weight, -s.weight.clamp(min=0), -s.weight.clamp(max=0)]
        corners = [torch.zeros_like(a) + _per_channel(bound, a) for bound in (self.low, self.high)]
        inputs = [a, *corners]
        given = (s.apply, inputs, weights, None, (0, 0, 0), relevance, self.stabiliser)
        return [Flow(*given, joint=s.joint)]


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes through unchanged; for layers whose output has the shape of their input."""

    name: ClassVar[str] = "pass"
    kinds: ClassVar[tuple[str, ...]] = (*WEIGHTED, "layer-norm")

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """None: nothing is shared out."""
        return []

    def __call__(self, operation: Operation, relevance: Tensor) -> list[Tensor | None]:
        """The relevance itself."""
        value, *weights = operation.inputs
        if value.shape != relevance.shape:
            raise TrompeError(
                f"{operation} turns {tuple(value.shape)} into {tuple(relevance.shape)}, so "
                "relevance can't pass through unchanged; give it another rule."
            )
        return [relevance, *[None] * len(weights)]


@dataclass(frozen=True)
class ReleasedSum(Rule):
    """The slip in Heo et al.'s released code: the first summand counts as much as the whole sum.

    A ResNet adds the identity to its branch in place, so that what the code reads as the branch is
    the sum already. Relevance goes in proportion to the positive parts of (sum, second summand)
    instead of (first summand, second summand). A sum with a constant is split as it should be.
    """

    name: ClassVar[str] = "released-sum"
    kinds: ClassVar[tuple[str, ...]] = ("sum",)
    stabiliser: float = 1e-6

    def flows(self, summation: Summation, relevance: Tensor) -> list[Flow]:
        """One flow, in proportion to the positive parts of the sum and of the second summand."""
        if summation.bias is None:
            first, second = summation.inputs
            summation = replace(summation, inputs=(first + second, second))
        return AlphaBeta(1, 0, self.stabiliser).flows(summation, relevance)


def _signed(
    s: Summation,
    side: str,
    relevance: Tensor,
    stabiliser: float,
    *,
    gamma: float | None = None,
    positive: bool = False,
) -> Flow:
    """A flow along the contributions of one sign (``side`` is what is clamped at 0), or along all
    with these counted 1 + γ times."""
    other = "max" if side == "min" else "min"

    def part(tensor: Tensor, side: str) -> Tensor:
        clamped = tensor.relu() if side == "min" else tensor.clamp(max=0)
        return clamped if gamma is None else tensor + gamma * clamped

    inputs: list[Tensor]
    weights: list[Tensor | None]
    joint = False
    if s.weight is None:
        inputs, weights, owners = (
            [part(a, side) for a in s.inputs],
            [None] * len(s.inputs),
            s.owners,
        )
    elif s.nonnegative:
        inputs, weights, owners = [*s.inputs], [part(s.weight, side)], (0,)
    else:
        (a,) = s.inputs
        inputs = [a.clamp(min=0), a.clamp(max=0)]
        weights, owners = [part(s.weight, side), part(s.weight, other)], (0, 0)
        joint = s.joint
    bias = None if s.bias is None else part(s.bias, side)
    given = (s.apply, inputs, weights, bias, owners, relevance, stabiliser, positive)
    return Flow(*given, joint=joint)


def _regardless(s: Summation, weight: Tensor, relevance: Tensor, stabiliser: float) -> Flow:
    ones = [torch.ones_like(a) for a in s.inputs]
    return Flow(s.apply, ones, [weight], None, s.owners, relevance, stabiliser)


def _per_channel(bound: Bound, a: Tensor) -> Tensor:
    values = torch.as_tensor(bound, dtype=a.dtype, device=a.device)
    return values.reshape(-1, *[1] * (a.dim() - 2)) if values.dim() else values
