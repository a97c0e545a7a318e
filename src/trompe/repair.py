"""Undo a lie: the shortest clean fine-tuning, or BatchNorm re-estimation, that ends the alarm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from trompe.audit import EXPLAINERS, AuditReport, audit, load_calibration
from trompe.audit.retrained import RATE, predictions, retrained
from trompe.audit.verdict import Calibration
from trompe.budget import Part
from trompe.data.kept import Kept
from trompe.errors import TrompeError
from trompe.evaluate import Images, placed
from trompe.explainers import Explainer

STEPS = (30, 100, 300)  # of the fine-tunings that are tried, one after another
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class RepairResult:
    """What `repair` made.

    Attributes
    ----------
    model
        The repaired model; the suspect itself if nothing helped.
    stages
        One row per attempt, the suspect first: ``stage``, ``alarm``, ``total`` (the verdict's sum),
        ``agreement`` with the suspect's predictions, ``rank_correlation`` with the reference's maps
        (mean over explainers; NaN without a reference).
    chosen
        The stage that the model comes from.
    """

    model: nn.Module
    stages: pd.DataFrame
    chosen: str


def repair(
    model: nn.Module,
    data: Images,
    reference: nn.Module | None = None,
    *,
    rate: float = RATE,
    max_drop: float = 0.5,
    batch_size: int = 32,
    explainers: Sequence[Explainer] = EXPLAINERS,
    calibration: Calibration | Path | None = None,
    audit_on: int = 100,
    seed: int = 0,
) -> RepairResult:
    """Restore a model's explanations by as little honest training as it takes.

    Tried in turn: nothing, BatchNorm statistics estimated anew, and fine-tunings of growing length,
    towards the suspect's own predictions (labels are not needed). The first
    attempt without an alarm is taken; else the least suspicious that keeps the predictions.

    Parameters
    ----------
    model
        The suspect; it is not changed.
    data
        Clean images: some to audit on, the others to train on.
    reference
        The model before, if it is known: then the verdict is the one against it.
    rate
        Largest step of the fine-tuning, as a share of the size of what moves (`retrained`).
    max_drop
        Percentage points of the suspect's predictions that may change, on the audited images.
    audit_on
        How many images are kept for the audit.

    Raises
    ------
    TrompeError
        If there are too few images, and as `audit`.
    """
    if len(data) < audit_on + batch_size:
        raise TrompeError(
            f"A repair needs at least {audit_on + batch_size} images, {audit_on} of them to audit "
            f"on; there are {len(data)}."
        )
    if not isinstance(calibration, Calibration):
        calibration = load_calibration(calibration)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    shown, clean = Part(data, order[:audit_on]), Kept(Part(data, order[audit_on:]))
    rows: list[dict[str, Any]] = []
    models: dict[str, nn.Module] = {}
    predicted = predictions(model, shown, batch_size)

    def judge(stage: str, candidate: nn.Module) -> bool:
        found = audit(
            candidate, shown, reference, explainers=explainers, calibration=calibration, seed=seed
        )
        kept = (predictions(candidate, shown, batch_size) == predicted).float().mean()
        models[stage] = candidate
        rows.append(
            {
                "stage": stage,
                "alarm": found.verdict.alarm,
                "total": found.verdict.total,
                "agreement": float(kept),
                "rank_correlation": _correlation(found),
            }
        )
        return not found.verdict.alarm and float(kept) >= 1 - max_drop / 100

    if not judge("suspect", model):
        for stage, candidate in _attempts(model, clean, rate, batch_size, seed):
            if judge(stage, candidate):
                break
    table = pd.DataFrame(rows)
    keeps = table[table["agreement"] >= 1 - max_drop / 100]
    chosen = str(keeps.sort_values(["alarm", "total"], kind="stable")["stage"].iloc[0])
    if not table["alarm"].iloc[-1] and table["agreement"].iloc[-1] >= 1 - max_drop / 100:
        chosen = str(table["stage"].iloc[-1])
    return RepairResult(models[chosen], table, chosen)


def _attempts(model: nn.Module, data: Images, rate: float, batch_size: int, seed: int) -> Any:
    if any(isinstance(module, BATCH_NORM) for module in model.modules()):
        yield "batch-norm", with_statistics(model, data, batch_size)
    predicted = predictions(model, data, batch_size)
    for steps in STEPS:
        tuned = retrained(model, data, predicted, steps=steps, rate=rate, seed=seed)
        yield f"{steps} steps", tuned


def with_statistics(model: nn.Module, data: Images, batch_size: int = 32) -> nn.Module:
    """A copy whose BatchNorm statistics are the means over one pass of the data."""
    model = copy.deepcopy(model)
    before = [(m, m.training, getattr(m, "momentum", None)) for m in model.modules()]
    model.eval()
    for module in model.modules():
        if isinstance(module, BATCH_NORM) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum, module.training = None, True
    loader: Any = DataLoader(cast(Any, data), batch_size=batch_size)
    with torch.no_grad():
        for images, _ in loader:
            if len(images) > 1:
                model(placed(images, model))
    for module, mode, momentum in before:
        module.training = mode
        if isinstance(module, BATCH_NORM):
            module.momentum = momentum
    return model


def _correlation(found: AuditReport) -> float:
    rows = found.evidence[found.evidence["kind"] == "rank correlation"]
    return float(rows["score"].mean())
