"""Compare an original model with a manipulated one: do the predictions stay, do the maps lie?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import nn

from trompe.data.images import Images, check_labels, fingerprint_of, first_image
from trompe.data.triggers import Trigger, preprocessing_of
from trompe.evaluation import notes
from trompe.evaluation.result import Evaluation
from trompe.evaluation.schema import CONTROL, MANIPULATED, ORIGINAL, TRIGGERED, legend
from trompe.evaluation.summary import accuracies, rates, triggers
from trompe.evaluation.sweep import Pair, Sweep
from trompe.explainers import Explainer
from trompe.explainers import read as read_explainers
from trompe.explainers.targets import Explainable
from trompe.explainers.targets import read as read_target
from trompe.models.call import class_count, placed
from trompe.objectives import Objective, Same
from trompe.objectives import read as read_objectives
from trompe.objectives.objective import check_target

Composed = Images | Mapping[Objective, Images] | None


def evaluate(
    original: nn.Module,
    manipulated: nn.Module,
    data: Images,
    *,
    explainers: str | Explainer | Iterable[str | Explainer],
    objective: str | Objective | Iterable[str | Objective],
    target: Explainable = "label",
    control: nn.Module | None = None,
    fool_data: Composed = None,
    attacked: Sequence[Pair] = (),
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
        One or several, objects or text, each judged by every objective; ``layer=None`` is found on
        the original.
    objective
        One or several foolings, objects or text; their ``low`` and ``high`` are the interval of
        success. The original is judged against itself too: what it reaches is no fooling. One with
        a trigger is judged on images with it, where each model explains what it predicts itself if
        that is to flip, and `Same` besides on images without.
    target
        What is explained, if not ``"label"``: what the objective asks for, the label or the two
        classes of `Active`. A class or another target, as an explainer takes it, is what every
        model says itself: ``"predicted"`` its own prediction.
    fool_data
        Images that hold both classes, for `Active`; of several active objectives, by objective.
        If None, an objective makes its own of ``data``, if it can.
    attacked
        The pairs that were in the loss; marked in the table.
    gallery
        How many images to keep with their heatmaps, evenly spaced over the data (of the first
        active objective, if there is one); besides, three of the lowest and three of the highest
        test losses of the first attacked pair are kept.
    batch_size, workers
        Images per forward pass; processes that decode them.
    quiet
        Show no progress.

    Raises
    ------
    TrompeError
        If there is no image, a label or class is out of range, a layer does not exist, the target
        can't be computed, or an objective has classes of its own to explain.
    """
    objectives = tuple(dict.fromkeys(with_clean(read_objectives(objective))))
    target = read_target(target)
    check_target(target, objectives)
    check_evaluation(original, data, fool_data, objectives)
    models = {ORIGINAL: original, MANIPULATED: manipulated}
    if control is not None:
        models[CONTROL] = control
    sample = placed(data[0][0][None], original)
    judges = tuple(dict.fromkeys(e.resolve(original, sample) for e in read_explainers(explainers)))
    pairs = frozenset((e.resolve(original, sample), o) for e, o in attacked)
    sweep = Sweep(models, judges, pairs, target, gallery, batch_size, workers, quiet)
    under: dict[Trigger, list[Objective]] = {}
    for own in objectives:
        if own.trigger is not None:
            under.setdefault(own.trigger, []).append(own)
    passive = [o for o in objectives if not o.on_composites and o.trigger is None]
    composed = [o for o in objectives if o.on_composites]
    composites = {active: _composites(active, fool_data, data) for active in composed}
    swept = [sweep(data, passive)]
    swept += [sweep(own, [active]) for active, own in composites.items()]
    triggered = {trigger: sweep(data, own) for trigger, own in under.items()}
    maps = [part.maps for part in (*swept, *triggered.values()) if len(part.maps)]
    seen = [part.predictions for part in triggered.values()]
    predicted = pd.concat(seen, ignore_index=True) if seen else pd.DataFrame(columns=TRIGGERED)
    rows = pd.concat(maps, ignore_index=True) if maps else swept[0].maps
    result = Evaluation(
        accuracy=accuracies(swept[0].predictions, list(models)),
        explanations=rates(rows),
        predictions=swept[0].predictions,
        maps=rows,
        gallery=swept[min(1, len(composed))].gallery,
        legend=legend(judges, objectives),
        images={"data": fingerprint_of(data)}
        | {active.fingerprint: fingerprint_of(own) for active, own in composites.items()},
        triggers=triggers(predicted),
        triggered=predicted,
        galleries={
            trigger.fingerprint: part.gallery for trigger, part in triggered.items() if part.gallery
        },
    )
    for note in notes.not_finite(result.explanations, result.predictions, result.legend):
        warnings.warn(note, stacklevel=2)
    return result


def with_clean(objectives: Iterable[Objective]) -> list[Objective]:
    """Objectives, and besides those under a trigger how near the maps without one stay."""
    found = list(objectives)
    held = any(isinstance(o, Same) and o.trigger is None for o in found)
    return found if held or all(o.trigger is None for o in found) else [*found, Same()]


def check_evaluation(
    model: nn.Module, data: Images, fool_data: Composed, objectives: Sequence[Objective]
) -> None:
    """Refuse data that `evaluate` could not judge ``objectives`` on.

    Raises
    ------
    TrompeError
        If there is no image, a label is out of range, composites are missing, or a trigger does
        not fit.
    """
    image = first_image(data, "evaluate")
    check_labels(data, class_count(model, image))
    for objective in objectives:
        if objective.on_composites:
            _composites(objective, fool_data, data)
        if objective.trigger is not None:
            objective.trigger.on(image[None], torch.tensor([0]), preprocessing_of(data))


def _composites(objective: Objective, given: Composed, data: Images) -> Images:
    found = given.get(objective) if isinstance(given, Mapping) else given
    return objective.composites(data) if found is None else found
