"""Compare an original model with a manipulated one: do the predictions stay, do the maps lie?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trompe import runs
from trompe.base import processes
from trompe.base.progress import shown
from trompe.data.images import Images, check_labels, in_turn
from trompe.errors import TrompeError
from trompe.evaluation.pictures import Gallery, Pictures, class_name, image_name
from trompe.explainers import Explainer, Recording
from trompe.maps import is_empty, spearman
from trompe.metrics import in_top, rate
from trompe.models.call import class_count, placed
from trompe.models.hooks import evaluation_mode
from trompe.objectives import Objective

ORIGINAL, MANIPULATED, CONTROL = "original", "manipulated", "control"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    accuracy
        One row per model: top-1, top-5 and agreement with the original's predictions, each a
        share with its bootstrap 95 % interval.
    explanations
        One row per explainer, objective, target class and model: fooling success rate (FSR) with
        its interval, mean and quantiles of the test loss, mean rank correlation with the
        original's maps, share of empty maps.
    predictions, maps
        The rows per image behind the two tables.
    gallery
        Images and heatmaps to look at.
    """

    accuracy: pd.DataFrame
    explanations: pd.DataFrame
    predictions: pd.DataFrame
    maps: pd.DataFrame
    gallery: Gallery | None

    def save(self, directory: Path) -> None:
        """Write the tables as CSV, the rows as parquet and the gallery as safetensors."""
        with runs.replacing(directory) as new:
            new.mkdir()
            self.accuracy.to_csv(new / "accuracy.csv", index=False)
            self.explanations.to_csv(new / "explanations.csv", index=False)
            self.predictions.to_parquet(new / "predictions.parquet", index=False)
            self.maps.to_parquet(new / "explanations.parquet", index=False)
            if self.gallery is not None:
                tensors = {"images": self.gallery.images}
                for kind, found in (("", self.gallery.heatmaps), ("|signed", self.gallery.signed)):
                    tensors |= {"|".join(key) + kind: maps.half() for key, maps in found.items()}
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()},
                    new / "gallery.safetensors",
                    {"gallery": json.dumps(self.gallery.captions)},
                )


def evaluate(
    original: nn.Module,
    manipulated: nn.Module,
    data: Images,
    *,
    explainers: Sequence[Explainer],
    objective: Objective | Sequence[Objective],
    control: nn.Module | None = None,
    fool_data: Images | Mapping[Objective, Images] | None = None,
    attacked: Sequence[tuple[Explainer, Objective]] = (),
    batch_size: int = 32,
    gallery: int = 12,
    workers: int = 0,
    quiet: bool = True,
) -> Evaluation:
    """Measure accuracy, agreement and fooling success in one sweep over the data.

    Parameters
    ----------
    original, manipulated, control
        The model before, after, and after the same fine-tuning without the explanation term.
        They are evaluated where they are (device), in evaluation mode.
    data
        Items ``(image [3, H, W], label)``; the accuracy is measured here, and the passive
        foolings are judged here.
    explainers
        Each is judged by every objective; ``layer=None`` is found on the original.
    objective
        One or several foolings; their ``low`` and ``high`` are the interval of success.
    fool_data
        Images that hold both classes, for `Active`.
    attacked
        The pairs that were in the loss; marked in the table.
    gallery
        How many images to keep with their heatmaps, evenly spaced over the data; besides, three of
        the lowest and three of the highest test losses of the first attacked pair are kept.

    Raises
    ------
    TrompeError
        If there is no image, a label or class is out of range, or a layer does not exist.
    """
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    check_evaluation(original, data, fool_data, objectives)
    models = {ORIGINAL: original, MANIPULATED: manipulated}
    if control is not None:
        models[CONTROL] = control
    passive = [o for o in objectives if not o.on_composites]
    active = [o for o in objectives if o.on_composites]
    marks = {(str(e), str(o)) for e, o in attacked}
    sweep = partial(
        _sweep,
        models,
        explainers=explainers,
        marks=marks,
        gallery=gallery,
        batch_size=batch_size,
        workers=workers,
        quiet=quiet,
    )
    predictions, maps, pictures = sweep(data, objectives=passive)
    for composed in active:
        of = fool_data[composed] if isinstance(fool_data, Mapping) else fool_data
        assert of is not None
        _, more, pictures = sweep(of, objectives=[composed])
        maps = pd.concat([maps, more], ignore_index=True)
    return Evaluation(
        accuracy=_accuracy(predictions, models),
        explanations=_summary(maps),
        predictions=predictions,
        maps=maps,
        gallery=pictures,
    )


def check_evaluation(
    model: nn.Module,
    data: Images,
    fool_data: Images | Mapping[Objective, Images] | None,
    objectives: Sequence[Objective],
) -> None:
    """Refuse data that `evaluate` could not judge ``objectives`` on.

    Raises
    ------
    TrompeError
        If there is no image, a label is out of range, or composites are missing.
    """
    if not len(data):
        raise TrompeError("There is no image to evaluate on.")
    check_labels(data, class_count(model, data[0][0]))
    composed = [o for o in objectives if o.on_composites]
    if composed and not fool_data:
        raise TrompeError(
            f"The objective {composed[0]} is judged on images that hold both classes; give them "
            "as the evaluation's fool_data."
        )


def _sweep(
    models: Mapping[str, nn.Module],
    data: Images,
    *,
    explainers: Sequence[Explainer],
    objectives: Sequence[Objective],
    marks: set[tuple[str, str]],
    gallery: int,
    batch_size: int,
    workers: int,
    quiet: bool,
) -> tuple[pd.DataFrame, pd.DataFrame, Gallery | None]:
    size = len(data)
    sample = placed(data[0][0][None], models[ORIGINAL])
    used = [e.resolve(models[ORIGINAL], sample) for e in explainers] if objectives else []
    by_name = {str(explainer): explainer for explainer in used}
    pictures = Pictures(data, gallery)
    found: list[_Batch] = []
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        report = stack.enter_context(shown("evaluate", size, quiet=quiet))
        for indices, images, labels in in_turn(data, batch_size, workers):
            images = placed(images, models[ORIGINAL])
            labels = labels.to(images.device)
            logits, raw = _explain(models, images, labels, used, objectives)
            heatmaps = {key: by_name[key[2]].heatmap(maps) for key, maps in raw.items()}
            likeness = _likeness(heatmaps)
            rows = [
                frame
                for explainer in used
                for objective in objectives
                for frame in _judge(
                    indices,
                    labels,
                    explainer,
                    objective,
                    heatmaps,
                    likeness,
                    (str(explainer), str(objective)) in marks,
                )
            ]
            explained = {
                target: classes
                for objective in objectives
                for target, classes in zip(
                    objective.targets, objective.classes(labels), strict=True
                )
            }
            if rows:
                first = next((frame for frame in rows if frame["attacked"].any()), rows[0])
                losses = first["test_loss"].tolist()
                pictures.add(indices, images, labels, losses, explained, logits, heatmaps, raw)
            found.append(_Batch(_predictions(indices, data, labels, logits), rows))
            report(indices[-1] + 1, {})
    found = processes.merged(found)
    frames = [frame for batch in found for frame in batch.rows]
    return (
        pd.concat([batch.predictions for batch in found], ignore_index=True),
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(),
        pictures.gallery(),
    )


class _Batch(NamedTuple):
    predictions: pd.DataFrame
    rows: list[pd.DataFrame]


# (model, class key, explainer) -> maps [N, h, w], or a figure of each [N]
Maps = dict[tuple[str, str, str], Tensor]


@torch.no_grad()
def _explain(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    explainers: Sequence[Explainer],
    objectives: Sequence[Objective],
) -> tuple[dict[str, Tensor], Maps]:
    """Logits by model, and raw maps."""
    logits, raw = {}, {}
    for name, model in models.items():
        with Recording(model, explainers) as forward:
            logits[name] = forward(images)
            for objective in objectives:
                explained = objective.classes(labels)
                for target, classes in zip(objective.targets, explained, strict=True):
                    if (name, target, str(explainers[0])) in raw:
                        continue
                    for explainer, maps in zip(explainers, forward.maps(classes), strict=True):
                        raw[name, target, str(explainer)] = maps
    return logits, raw


def _likeness(heatmaps: Maps) -> Maps:
    """Rank correlation ``[N]`` of the other models' heatmaps with the original's."""
    return {
        (model, target, explainer): spearman(maps, heatmaps[ORIGINAL, target, explainer])
        for (model, target, explainer), maps in heatmaps.items()
        if model != ORIGINAL
    }


def _judge(
    indices: range,
    labels: Tensor,
    explainer: Explainer,
    objective: Objective,
    heatmaps: Maps,
    likeness: Maps,
    attacked: bool,
) -> Iterator[pd.DataFrame]:
    models = sorted({model for model, _, _ in heatmaps} - {ORIGINAL}, reverse=True)
    original = tuple(heatmaps[ORIGINAL, t, str(explainer)] for t in objective.targets)
    for model in models:
        maps = tuple(heatmaps[model, t, str(explainer)] for t in objective.targets)
        losses = objective.test_loss(maps, original)
        for target, after, loss in zip(objective.targets, maps, losses, strict=True):
            yield pd.DataFrame(
                {
                    "index": indices,
                    "label": labels.cpu(),
                    "explainer": str(explainer),
                    "objective": str(objective),
                    "target": target,
                    "model": model,
                    "attacked": attacked,
                    "interval_low": objective.low,
                    "interval_high": objective.high,
                    "test_loss": loss.double().cpu(),
                    "fooled": objective.fooled(loss).cpu(),
                    "spearman": likeness[model, target, str(explainer)].cpu(),
                    "empty": is_empty(after).cpu(),
                }
            )


def _predictions(
    indices: range, data: Images, labels: Tensor, logits: Mapping[str, Tensor]
) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "index": indices,
        "name": [image_name(data, i) for i in indices],
        "label": labels.cpu(),
        "class": [class_name(data, label) for label in labels],
    }
    for model, scores in logits.items():
        columns[model] = scores.argmax(1).cpu()
        columns[f"{model}_top1"] = in_top(scores, labels, 1).cpu()
        columns[f"{model}_top5"] = in_top(scores, labels, 5).cpu()
    return pd.DataFrame(columns)


def _accuracy(predictions: pd.DataFrame, models: Mapping[str, nn.Module]) -> pd.DataFrame:
    rows = []
    for model in models:
        row: dict[str, Any] = {"model": model, "images": len(predictions)}
        for measure, hits in (
            ("top1", predictions[f"{model}_top1"]),
            ("top5", predictions[f"{model}_top5"]),
            ("agreement", predictions[model] == predictions[ORIGINAL]),
        ):
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = rate(hits)
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(maps: pd.DataFrame) -> pd.DataFrame:
    if maps.empty:
        return maps
    keys = ["explainer", "objective", "target", "model", "attacked"]
    keys += ["interval_low", "interval_high"]
    rows = []
    for key, group in maps.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"images": len(group)}
        row["fsr"], row["fsr_low"], row["fsr_high"] = rate(group["fooled"])
        row["test_loss_mean"] = group["test_loss"].mean()
        for quantile in (0.05, 0.5, 0.95):
            row[f"test_loss_q{quantile * 100:02.0f}"] = group["test_loss"].quantile(quantile)
        row["spearman_mean"] = group["spearman"].mean()
        row["empty"] = group["empty"].mean()
        rows.append(row)
    return pd.DataFrame(rows)
