"""Which rule each kind of operation takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trompe.errors import TrompeError
from trompe.explainers.relevance.rules import (
    FIXED,
    OPERATIONS,
    Rule,
    alpha_beta,
    epsilon,
    proportional,
    proportional_sum,
)
from trompe.explainers.relevance.tape import Operation, describe


@dataclass(frozen=True)
class Composite:
    """A named choice of one rule per kind of operation."""

    name: str
    rules: Mapping[str, Rule]

    def rule(self, operation: Operation) -> Rule:
        """The rule for an operation.

        Raises
        ------
        TrompeError
            If no rule is known; says how to register one.
        """
        kind = OPERATIONS.get(operation.name, "")
        rule = self.rules.get(kind) or FIXED.get(kind)
        if rule is None:
            raise TrompeError(
                f"{describe(operation.function, operation.path)} has no relevance rule; "
                "register one with trompe.explainers.relevance.register_operation(kind, "
                f"'{operation.name}', rule=...), or explain a layer above it."
            )
        return rule


COMPOSITES = {
    composite.name: composite
    for composite in (
        Composite(
            "heo2019",
            {
                "linear": epsilon(0.01),
                "convolution": alpha_beta(1, 0, 0.01),
                "average-pool": proportional(1e-6, positive=True),
                "sum": proportional_sum(1e-6, positive=True),
            },
        ),
        Composite(
            "epsilon",
            {
                "linear": epsilon(1e-6),
                "convolution": epsilon(1e-6),
                "average-pool": proportional(1e-6, positive=False),
                "sum": proportional_sum(1e-6, positive=False),
            },
        ),
        Composite(
            "epsilon-plus",
            {
                "linear": epsilon(1e-6),
                "convolution": alpha_beta(1, 0, 1e-6),
                "average-pool": proportional(1e-6, positive=False),
                "sum": proportional_sum(1e-6, positive=False),
            },
        ),
    )
}
"""Composites by name. ``heo2019`` is the paper's; the others are Zennit's of the same name."""
