"""Where relevance is kept and where it is lost, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from trompe.explainers.relevance.operations import OperationRule
from trompe.explainers.relevance.record import Operation
from trompe.explainers.relevance.rules import Rule
from trompe.explainers.targets import Explainable

if TYPE_CHECKING:
    from trompe.explainers.relevance.lrp import LRP


@torch.no_grad()
def conservation(
    explainer: LRP, model: nn.Module, images: Tensor, classes: Explainable = None
) -> pd.DataFrame:
    """Follow the relevance of an `LRP` explainer from the logit down.

    Parameters
    ----------
    explainer, model, images, classes
        As in a call of the explainer.

    Returns
    -------
    DataFrame
        One row per operation that shares relevance out, from the output down: ``layer`` (the
        module that runs it), ``operation``, ``rule``, and as shares of the explained logit (means
        over images) what it ``received``, what it ``kept`` for its inputs, and what was lost to
        the ``bias``, to the ``stabiliser`` and to ``other`` causes (a constant in the model, a rule
        that drops relevance). The last row, ``operation`` empty, is what arrives at
        ``explainer.layer``.

    Raises
    ------
    TrompeError
        As a call of the explainer.
    """
    rows: list[dict[str, Any]] = []

    def observe(
        operation: Operation,
        rule: OperationRule,
        received: Tensor,
        shares: Sequence[Tensor | None],
    ) -> None:
        total = received.sum()
        kept = sum((p.sum() for p in shares if p is not None), torch.zeros_like(total))
        bias = stabiliser = torch.zeros_like(total)
        if isinstance(rule, Rule):
            for flow in rule.flows_of(operation, received):
                of_bias, of_stabiliser = flow.lost()
                bias, stabiliser = bias + of_bias, stabiliser + of_stabiliser
        elif torch.allclose(kept, total):
            return
        rows.append(
            {
                "layer": operation.path,
                "operation": operation.name,
                "rule": str(rule) if isinstance(rule, Rule) else rule.__name__,
                "received": total,
                "kept": kept,
                "bias": bias,
                "stabiliser": stabiliser,
                "other": total - kept - bias - stabiliser,
            }
        )

    explainer = explainer.resolve(model, images[:1])
    arrived = explainer.trace(model, images, classes, observe).sum()
    rows.append(
        {
            "layer": explainer.layer,
            "operation": "",
            "rule": "",
            "received": arrived,
            "kept": arrived,
            **dict.fromkeys(("bias", "stabiliser", "other"), torch.zeros(())),
        }
    )
    return pd.DataFrame(
        {
            key: float(value) / len(images) if isinstance(value, Tensor) else value
            for key, value in row.items()
        }
        for row in rows
    )
