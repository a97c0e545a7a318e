"""Relevance sent back along one function: along its gradient, or in shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Apply = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def run(forward: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Call a function so that `pull` can follow; returns its inputs as used, and the result."""
    # A view has no other path to z, even where one input was computed from another.
    keep = torch.is_grad_enabled()
    ready = [
        a.view_as(a) if keep and a.requires_grad else a.detach().requires_grad_() for a in inputs
    ]
    with torch.enable_grad():
        return ready, forward(*ready)


def pull(z: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Any]:
    """``weight`` times the Jacobian of z, for each input; with a graph if gradients are enabled.

    None for an input of which only the form was used.
    """
    keep = torch.is_grad_enabled()
    return list(torch.autograd.grad(z, inputs, weight, create_graph=keep, allow_unused=True))


class Flowing(Protocol):
    """Relevance on its way to some of an operation's inputs."""

    @property
    def owners(self) -> Sequence[int]:
        """For each share, which of the operation's inputs it belongs to."""

    def shares(self) -> list[Tensor]:
        """The relevance that arrives."""

    def lost(self) -> tuple[Tensor, Tensor]:
        """What a constant keeps, and what a stabiliser keeps, in all."""


class Known(NamedTuple):
    """z of one input a as the forward pass computed it, and ``pull(share)``, its ∂z/∂a · share."""

    z: Tensor
    pull: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Flow:
    """Relevance that goes to inputs in proportion to their share of z = Σ_i apply(a_i, w_i) + b.

    Attributes
    ----------
    apply
        ``apply(a, w, b)``, linear in a and, where there are weights, in w.
    inputs, weights, bias
        a_i, w_i (None where an operation has no weights) and b.
    owners
        For each input, which of the operation's inputs its share belongs to.
    relevance, stabiliser
        What is shared out, of z's shape, and what keeps z from 0.
    positive
        Whether z >= 0 is certain.
    known
        z as the forward pass computed it, and how it is pulled, if it needs no computing anew.
    joint
        Whether apply(a, w) + apply(a', w') is apply of both, side by side along dimension 1.
    pure
        Whether what is differentiable in ``apply`` are its arguments alone.
    """

    apply: Apply
    inputs: Sequence[Tensor]
    weights: Sequence[Tensor | None]
    bias: Tensor | None
    owners: Sequence[int]
    relevance: Tensor
    stabiliser: float
    positive: bool = False
    known: Known | None = None
    joint: bool = False
    pure: bool = True

    def shares(self) -> list[Tensor]:
        """a_i · ∂z/∂a_i · R / z for each input a_i."""
        if self.known is not None:
            stabilised = self.stabilised(self.known.z)
            if torch.is_grad_enabled():
                return [self.inputs[0] * self.known.pull(self.relevance / stabilised)]
            share = torch.div(self.relevance, stabilised, out=stabilised)
            return [self.known.pull(share).mul_(self.inputs[0])]
        if self.pure:
            return list(_Shares.apply(self, self.relevance, self.bias, *self.inputs, *self.weights))
        inputs, z = run(lambda *inputs: self.z(inputs, self.weights, self.bias), self.inputs)
        share = self.relevance / self.stabilised(z if torch.is_grad_enabled() else z.detach())
        return [a * g for a, g in zip(inputs, pull(z, inputs, share), strict=True)]

    def lost(self) -> tuple[Tensor, Tensor]:
        """Relevance that the constant, and that the stabiliser keeps from the inputs, in all."""
        z = self.z(self.inputs, self.weights, self.bias)
        constant = self.z([torch.zeros_like(a) for a in self.inputs], self.weights, self.bias)
        stabilised = self.stabilised(z)
        share = self.relevance / stabilised
        return (share * constant).sum(), (share * (stabilised - z)).sum()

    def z(
        self, inputs: Sequence[Tensor], weights: Sequence[Tensor | None], bias: Tensor | None
    ) -> Tensor:
        """Σ_i apply(a_i, w_i) + b for any inputs, weights and bias."""
        if self.joint:
            joined = torch.cat([w for w in weights if w is not None], 1)
            return self.apply(torch.cat([*inputs], 1), joined, bias)
        first, *others = zip(inputs, weights, strict=True)
        z = self.apply(*first, bias)
        for a, w in others:
            z = z + self.apply(a, w, None)
        return z

    def stabilised(self, z: Tensor, *, reuse: bool = False) -> Tensor:
        """z, kept from 0; may take z's memory if ``reuse``."""
        if self.positive:
            return z.add_(self.stabiliser) if reuse else z + self.stabiliser
        return stabilise(z, self.stabiliser, out=z if reuse else None)

    def own(self, gradient: Tensor) -> Tensor | None:
        """A gradient of z, if its memory is its own: without weights, several inputs share it."""
        return None if self.weights[0] is None else gradient


class _Shares(torch.autograd.Function):
    """Shares, and their derivative.

    With s = R / z the shares are a ⊙ (∂z/∂a)ᵀs. What arrives at them reaches s through the
    operation applied to it, and a and w as in a plain backward pass; autograd, differentiating the
    operation's gradient once more, finds the same with more memory.
    """

    @staticmethod
    def forward(
        ctx: Any, flow: Flow, relevance: Tensor, bias: Tensor | None, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        of_bias, *of_operands = ctx.needs_input_grad[2:]
        differentiable, count = any(ctx.needs_input_grad), len(flow.inputs)
        with torch.enable_grad():
            inputs = [a.detach().requires_grad_() for a in operands[:count]]
            weights = [
                None if w is None else w.detach().requires_grad_(needed)
                for w, needed in zip(operands[count:], of_operands[count:], strict=True)
            ]
            bias = None if bias is None else bias.detach().requires_grad_(of_bias)
            z = flow.z(inputs, weights, bias)
        stabilised = flow.stabilised(z.detach(), reuse=True)
        share = torch.div(relevance, stabilised, out=None if differentiable else stabilised)
        gradients = torch.autograd.grad(z, inputs, share, retain_graph=differentiable)
        for a, needed in zip(inputs, of_operands, strict=False):
            a.requires_grad_(needed)
        if not differentiable:
            return tuple(
                torch.mul(a.detach(), g, out=flow.own(g))
                for a, g in zip(inputs, gradients, strict=True)
            )
        ctx.flow, ctx.inputs, ctx.weights, ctx.bias = flow, inputs, weights, bias
        ctx.z, ctx.stabilised, ctx.share, ctx.gradients = z, stabilised, share, gradients
        return tuple(a.detach() * g for a, g in zip(inputs, gradients, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor) -> tuple[Tensor | None, ...]:
        z, share, inputs, weights = ctx.z, ctx.share, ctx.inputs, ctx.weights
        scaled = [a.detach() * g for a, g in zip(inputs, arrived, strict=True)]
        with torch.autocast(z.device.type, enabled=False):
            with torch.enable_grad():
                y = ctx.flow.z(scaled, weights, None)
            to_relevance = y.detach().div_(ctx.stabilised)
            to_z = torch.mul(to_relevance, share).neg_()
            if ctx.flow.stabiliser == 0:
                to_z.masked_fill_(z.detach() == 0, 0)
            *to_operands, to_bias = _gradients(z, [*inputs, *weights, ctx.bias], to_z)
            to_weights = _gradients(y, weights, share)
        to_inputs = [
            None if to_a is None else torch.addcmul(to_a, g, pulled, out=ctx.flow.own(to_a))
            for to_a, g, pulled in zip(to_operands, arrived, ctx.gradients, strict=False)
        ]
        for to_weight, others in zip(to_weights, to_operands[len(inputs) :], strict=True):
            if to_weight is not None:
                to_weight += others
        return None, to_relevance, to_bias, *to_inputs, *to_weights


def _gradients(z: Tensor, leaves: Sequence[Tensor | None], arrived: Tensor) -> list[Any]:
    """The gradient of each leaf that wants one."""
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    found = torch.autograd.grad(z, wanted, arrived, retain_graph=True) if wanted else ()
    gradients = iter(found)
    return [next(gradients) if t is not None and t.requires_grad else None for t in leaves]


def stabilise(z: Tensor, epsilon: float, out: Tensor | None = None) -> Tensor:
    """z + ε · sign(z), with sign(0) = +1; without ε, 1 where z is 0: nothing is shared there."""
    if epsilon == 0:
        return torch.where(z == 0, 1, z)
    with torch.no_grad():
        signed = z + 0.0  # the sign of -0 is that of 0
        torch.copysign(z.new_tensor(epsilon), signed, out=signed)
    if torch.is_grad_enabled() and z.requires_grad:
        return z + signed
    return torch.add(z, signed, out=signed if out is None else out)
