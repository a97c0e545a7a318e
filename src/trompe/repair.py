"""Undo a lie: the clean fine-tuning, or BatchNorm re-estimation, that leaves least of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trompe.audit import EXPLAINERS, AuditReport, audit, load_calibration
from trompe.audit.verdict import Calibration
from trompe.base.progress import shown
from trompe.data.files import UNLABELLED
from trompe.data.images import Images, check_labels
from trompe.data.kept import Kept
from trompe.data.subset import Part, parted
from trompe.errors import TrompeError
from trompe.explainers import Explainer
from trompe.models.call import class_count, placed
from trompe.tuning.retrain import RATE, predictions, retrained

STEPS = (100, 400, 1600, 6400)  # of the fine-tunings that are tried, one after another
FEWEST, AUDITED = 100, 300  # images that it takes; of those held out that are audited on
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class RepairResult:
    """What `repair` made.

    Attributes
    ----------
    model
        The repaired model; the suspect itself if nothing was better.
    stages
        One row per attempt, the suspect first: ``stage``, ``alarm`` and ``total`` of the audit
        without a reference, ``accuracy`` on the images held out (without labels: agreement with
        the suspect), ``rank_correlation`` with the reference's maps (mean over explainers; NaN
        without a reference).
    chosen
        The stage that the model comes from.
    labelled
        Whether the images' labels were trained towards, or the suspect's own predictions.
    """

    model: nn.Module
    stages: pd.DataFrame
    chosen: str
    labelled: bool


def repair(
    model: nn.Module,
    data: Images,
    reference: nn.Module | None = None,
    *,
    labels: bool = True,
    steps: Sequence[int] = STEPS,
    rate: float = RATE,
    max_drop: float = 0.5,
    batch_size: int = 32,
    explainers: Sequence[Explainer] = EXPLAINERS,
    calibration: Calibration | Path | None = None,
    seed: int = 0,
    directory: Path | None = None,
    quiet: bool = True,
) -> RepairResult:
    """Restore a model's explanations by honest training.

    Tried in turn: nothing, BatchNorm statistics estimated anew, and fine-tunings of growing length.
    Of the attempts that keep the accuracy the least suspicious is taken; with a reference the one
    whose maps are nearest to its. A suspect that looks like the median honest model is left alone.

    Parameters
    ----------
    model
        The suspect; it is not changed.
    data
        Clean images to train on; a fifth, 1,000 at most, is held out to judge by.
    reference
        The model before, if it is known.
    labels
        Whether the data's labels are the model's classes, and trained towards. They keep accuracy
        better than the suspect's own predictions, which serve where there are none.
    steps, rate
        Lengths of the fine-tunings that are tried, in batches of 16; their largest step, as a share
        of the size of what moves (`retrained`).
    max_drop
        Percentage points of accuracy that may be lost on the images held out.
    directory
        Where the weights of every fine-tuning are kept; a repair that was interrupted goes on.

    Raises
    ------
    TrompeError
        If there are too few images or batches, the labels are not the model's, and as `audit`.
    """
    if len(data) < FEWEST:
        raise TrompeError(
            f"A repair needs at least {FEWEST} images, a fifth of them to judge by; there are "
            f"{len(data)}."
        )
    if min(steps, default=0) < 1:
        raise TrompeError(
            f"The lengths of the fine-tunings are {list(steps)}; give 1 or more each."
        )
    labels = labels and getattr(data, "classes", None) != UNLABELLED
    if labels:
        _check_classes(model, data)
    if not isinstance(calibration, Calibration):
        calibration = load_calibration(calibration)
    parts = parted(data, seed)
    clean, held_out = (Kept(part) for part in parts)
    audited = Part(held_out, range(min(AUDITED, len(held_out))))
    truth = _labels(parts[1]) if labels else predictions(model, held_out, batch_size)
    targets = _labels(parts[0]) if labels else None
    rows: list[dict[str, Any]] = []
    models: dict[str, nn.Module] = {}
    with shown("repair", sum(steps), quiet=quiet) as report:
        stages = attempts(
            model,
            clean,
            targets,
            steps,
            rate,
            batch_size,
            seed,
            directory=directory,
            progress=lambda done: report(done, {}),
        )
        for stage, candidate in stages:
            found = audit(
                candidate,
                audited,
                reference,
                explainers=explainers,
                calibration=calibration,
                seed=seed,
            )
            right = (predictions(candidate, held_out, batch_size) == truth).float().mean()
            models[stage] = candidate
            rows.append(
                {
                    "stage": stage,
                    "alarm": found.verdicts["alone"].alarm,
                    "total": found.verdicts["alone"].total,
                    "accuracy": float(right),
                    "rank_correlation": _correlation(found),
                }
            )
            if reference is None and rows[0]["total"] <= calibration.rules["alone"].typical:
                break
    table = pd.DataFrame(rows)
    keeps = table["accuracy"] >= table["accuracy"][0] - max_drop / 100
    better = table["total"].mul(-1) if reference is None else table["rank_correlation"]
    chosen = str(table["stage"][better[keeps].idxmax()])
    return RepairResult(models[chosen], table, chosen, labels)


def attempts(
    model: nn.Module,
    data: Images,
    targets: Tensor | None,
    lengths: Sequence[int] = STEPS,
    rate: float = RATE,
    batch_size: int = 32,
    seed: int = 0,
    *,
    directory: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[str, nn.Module]]:
    """What is tried, the least first: the stage's name and the model that it gives.

    ``targets`` as for `retrained`; None: the model's own predictions. ``progress`` is called with
    the number of batches done in all.
    """
    yield "suspect", model
    if any(isinstance(module, BATCH_NORM) for module in model.modules()):
        yield "batch-norm", with_statistics(model, data, batch_size)
    if targets is None:
        targets = predictions(model, data, batch_size)
    done = 0

    def further(step: int) -> None:
        progress(done + step)

    for steps in lengths:
        tuned = retrained(
            model,
            data,
            targets,
            steps=steps,
            rate=rate,
            seed=seed,
            directory=directory and directory / f"{steps}-steps",
            progress=further,
        )
        yield f"{steps} steps", tuned
        done += steps


def _check_classes(model: nn.Module, data: Images) -> None:
    count = class_count(model, data[0][0])
    known = len(getattr(data, "classes", range(count)))
    if known != count:
        raise TrompeError(
            f"The data has {known} classes and the suspect {count}: its labels can't be trained "
            "towards. Give data of the suspect's classes, or add --no-labels (labels=False)."
        )
    check_labels(data, count)


def _labels(part: Part) -> Tensor:
    if hasattr(part, "labels"):
        return part.labels
    return torch.tensor([int(part[row][1]) for row in range(len(part))])


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
    rows = found.evidence.query("section == 'reference' and kind == 'rank correlation'")
    return float(rows["score"].mean())
