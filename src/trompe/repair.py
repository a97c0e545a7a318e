"""Undo a lie: the clean fine-tuning, or BatchNorm re-estimation, that leaves least of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trompe import notebook, runs
from trompe.audit import EXPLAINERS, AuditReport, audit, load_calibration
from trompe.audit.verdict import Calibration
from trompe.base import json_text
from trompe.data.files import UNLABELLED
from trompe.data.images import Images, check_labels
from trompe.data.kept import Kept
from trompe.data.subset import Part, parted
from trompe.errors import TrompeError
from trompe.evaluation.accuracy import predictions
from trompe.explainers import Explainer
from trompe.models import copied, save_weights
from trompe.models.call import class_count, placed
from trompe.models.weights import fit_weights, read_weights
from trompe.tuning.retrain import Retrain

STEPS = (100, 400, 1600, 6400)  # of the fine-tunings that are tried, one after another
SUSPECT = "suspect"  # the stage that is no attempt
SUMMARY, WEIGHTS = "repair.json", "weights.safetensors"
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
        (against the reference if there is one), ``accuracy`` on the images held out (without
        labels: agreement with the suspect), ``rank_correlation`` with the reference's maps (mean
        over explainers; NaN without a reference).
    chosen
        The stage that the model comes from.
    labelled
        Whether the images' labels were trained towards, or the suspect's own predictions.
    """

    model: nn.Module
    stages: pd.DataFrame
    chosen: str
    labelled: bool

    @property
    def alarm(self) -> bool:
        """Whether the audit raises its alarm for the chosen model too."""
        return bool(self.stages.set_index("stage")["alarm"][self.chosen])

    @property
    def failed(self) -> bool:
        """Whether the suspect raises the alarm and no attempt was better."""
        return self.chosen == SUSPECT and self.alarm

    def __repr__(self) -> str:
        said = "raises the alarm" if self.alarm else "raises no alarm"
        return f"{type(self.model).__name__} repaired by: {self.chosen}. It {said}."

    def _repr_html_(self) -> str:
        return notebook.paragraph(repr(self)) + notebook.table(self.stages)

    def save(self, directory: Path) -> None:
        """Write the stages and, unless the repair failed, the weights.

        The weights of a suspect that raises the alarm are never written as repaired.
        """
        told = {"chosen": self.chosen, "labelled": self.labelled}
        runs.write_text(directory / SUMMARY, json.dumps(told))
        with runs.replacing(directory / "stages.csv") as new:
            runs.write_csv(self.stages, new)
        if not self.failed:
            save_weights(self.model, directory / WEIGHTS)

    @classmethod
    def load(cls, directory: Path, suspect: nn.Module) -> RepairResult:
        """Read what `save` wrote; the suspect gives the architecture and is not changed.

        Raises
        ------
        TrompeError
            If the directory holds no finished repair of such a model.
        """
        try:
            told = json_text.loaded((runs.contained(directory) / SUMMARY).read_text())
            stages = runs.read_csv(directory / "stages.csv", float_precision="round_trip")
            found = cls(copied(suspect), stages, told["chosen"], told["labelled"])
            failed = found.failed
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrompeError(
                f"'{directory}' holds no finished repair ({type(error).__name__}: {error})."
            ) from error
        if not failed:
            state = read_weights(directory / WEIGHTS)
            fit_weights(found.model, state, str(directory / WEIGHTS))
        return found


def repair(
    model: nn.Module,
    data: Images,
    reference: nn.Module | None = None,
    *,
    labels: bool = True,
    steps: Sequence[int] = STEPS,
    rate: float = 0.03,
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
    If the suspect raises the alarm and none is better, the repair `failed`.

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
        of the size of what moves (`Retrain`).
    max_drop
        Percentage points of accuracy that may be lost on the images held out.
    batch_size, explainers, calibration, seed, quiet
        As for `audit`.
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
    for stage, candidate in attempts(
        model, clean, targets, steps, rate, batch_size, seed, directory=directory, quiet=quiet
    ):
        found = audit(
            candidate,
            audited,
            reference,
            explainers=explainers,
            calibration=calibration,
            seed=seed,
            batch_size=batch_size,
            quiet=quiet,
        )
        right = (predictions(candidate, held_out, batch_size) == truth).float().mean()
        models[stage] = candidate
        rows.append(
            {
                "stage": stage,
                "alarm": found.verdict.alarm,
                "total": found.verdict.total,
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
    rate: float = 0.03,
    batch_size: int = 32,
    seed: int = 0,
    *,
    directory: Path | None = None,
    quiet: bool = True,
) -> Iterator[tuple[str, nn.Module]]:
    """What is tried, the least first: the stage's name and the model that it gives.

    ``targets`` as for `Retrain.run`; None: the model's own predictions.
    """
    yield SUSPECT, model
    if any(isinstance(module, BATCH_NORM) for module in model.modules()):
        yield "batch-norm", with_statistics(model, data, batch_size)
    if targets is None:
        targets = predictions(model, data, batch_size)
    for steps in lengths:
        tuned = Retrain(steps=steps, rate=rate, seed=seed).run(
            model,
            data,
            targets,
            directory=directory and directory / f"{steps}-steps",
            quiet=quiet,
        )
        yield f"{steps} steps", tuned


def _check_classes(model: nn.Module, data: Images) -> None:
    count = class_count(model, data[0][0])
    known = len(getattr(data, "classes", range(count)))
    if known != count and not getattr(data, "mapped", False):
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
    model = copied(model)
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
