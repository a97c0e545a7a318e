"""Relevance sent back along one function: along its gradient, or in shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def run(forward: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Call a function so that `pull` can follow; returns its inputs as used, and the result."""
    # A view has no other path to z, even where one input was computed from another.
    keep = torch.is_grad_enabled()
    ready = [
        a.view_as(a) if keep and a.requires_grad else a.detach().requires_grad_() for a in inputs
    ]
    with torch.enable_grad():
        return ready, forward(*ready)


def pull(z: Tensor, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """``weight`` times the Jacobian of z, for each input; with a graph if gradients are enabled."""
    keep = torch.is_grad_enabled()
    return list(torch.autograd.grad(z, inputs, weight, create_graph=keep))


@dataclass(frozen=True)
class Flow:
    """Relevance that goes to inputs in proportion to their share of ``z = forward(*inputs)``.

    ``forward`` is linear in its inputs, up to a constant; ``positive`` says that z >= 0 is certain.
    """

    forward: Callable[..., Tensor]
    inputs: Sequence[Tensor]
    owners: Sequence[int | None]
    relevance: Tensor
    stabiliser: float
    positive: bool = False

    def shares(self) -> list[Tensor]:
        """a_i · ∂z/∂a_i · R / z for each input a_i."""
        keep = torch.is_grad_enabled()
        inputs, z = run(self.forward, self.inputs)
        if keep:
            share = self.relevance / self._stabilised(z)
            return [a * g for a, g in zip(inputs, pull(z, inputs, share), strict=True)]
        share = self._stabilised(z.detach())
        torch.div(self.relevance, share, out=share)
        gradients = pull(z, inputs, share)
        if len(gradients) > 1 or gradients[0]._is_view():
            return [a * g for a, g in zip(inputs, gradients, strict=True)]
        return [gradients[0].mul_(inputs[0])]

    def lost(self) -> tuple[Tensor, Tensor]:
        """Relevance ``[N]`` that the constant, and that the stabiliser keeps from the inputs."""
        z = self.forward(*self.inputs)
        constant = self.forward(*(torch.zeros_like(a) for a in self.inputs))
        stabilised = self._stabilised(z)
        share = self.relevance / stabilised
        return (share * constant).flatten(1).sum(1), (share * (stabilised - z)).flatten(1).sum(1)

    def _stabilised(self, z: Tensor) -> Tensor:
        if self.positive:
            return z + self.stabiliser
        return stabilise(z, self.stabiliser)


def stabilise(z: Tensor, epsilon: float) -> Tensor:
    """z + ε · sign(z), with sign(0) = +1; without ε, 1 where z is 0: nothing is shared there."""
    if epsilon == 0:
        return torch.where(z == 0, 1, z)
    signed = z.new_tensor(epsilon)
    return z + torch.where(z >= 0, signed, -signed)
