"""One pass over a dataset: predictions, explanations and what the objectives say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from trompe.base import processes
from trompe.base.progress import shown
from trompe.data.images import Images, in_turn
from trompe.data.triggers import preprocessing_of
from trompe.evaluation import schema
from trompe.evaluation.explained import Explained, explain
from trompe.evaluation.pictures import Gallery, Pictures, class_name, image_name
from trompe.evaluation.schema import ORIGINAL
from trompe.explainers import Explainer
from trompe.explainers.targets import Class, Label, Target
from trompe.maps import dissimilarity, fine, is_empty, spearman, squared_distance
from trompe.metrics import in_top
from trompe.models import evaluation_mode
from trompe.models.call import placed
from trompe.objectives import Maps, Objective

NONE = -1  # the predicted class where the logits are not finite
Pair = tuple[Explainer, Objective]
Batch = tuple[range, Tensor, Tensor]  # indices, images, labels


class Swept(NamedTuple):
    """The rows per image of a sweep, and its gallery."""

    predictions: pd.DataFrame
    maps: pd.DataFrame
    gallery: Gallery | None


@dataclass(frozen=True)
class Sweep:
    """What is compared, and how, on whatever dataset it is called with.

    Parameters
    ----------
    models
        By name, the original first.
    explainers
        Resolved.
    attacked
        The pairs that were in the loss.
    target
        What is explained, if not what the objectives ask for.
    gallery, batch_size, workers, quiet
        As in `evaluate`.
    """

    models: Mapping[str, nn.Module]
    explainers: Sequence[Explainer]
    attacked: frozenset[Pair]
    target: Target
    gallery: int
    batch_size: int
    workers: int
    quiet: bool

    def __call__(self, data: Images, objectives: Sequence[Objective]) -> Swept:
        """Judge every explainer by all of these objectives, which look at the same images.

        Where these have a trigger in them, ``predictions`` are rows of `schema.TRIGGERED`.
        """
        pictures = Pictures(data, self.gallery if objectives else 0)
        found: list[_Rows] = []
        with ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(evaluation_mode(model))
            report = stack.enter_context(shown("evaluate", len(data), quiet=self.quiet))
            for batch in in_turn(data, self.batch_size, self.workers):
                found.append(self._rows(data, objectives, pictures, batch))
                report(batch[0][-1] + 1, {})
        found = processes.merged(found)
        frames = [frame for batch in found for frame in batch.maps]
        return Swept(
            pd.concat([batch.predictions for batch in found], ignore_index=True),
            pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=schema.MAPS),
            pictures.gallery([o.fingerprint for o in objectives]),
        )

    def _rows(
        self, data: Images, objectives: Sequence[Objective], pictures: Pictures, batch: Batch
    ) -> _Rows:
        """The rows of a batch; of its halves, where a device has no memory for the whole."""
        try:
            return self._rows_at_once(data, objectives, pictures, batch)
        except torch.OutOfMemoryError:
            if len(batch[0]) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch[0]) // 2
        halves: list[Batch] = [
            (batch[0][part], batch[1][part], batch[2][part])
            for part in (slice(half), slice(half, None))
        ]
        first, rest = (self._rows(data, objectives, pictures, each) for each in halves)
        return _Rows(pd.concat([first.predictions, rest.predictions]), [*first.maps, *rest.maps])

    def _rows_at_once(
        self, data: Images, objectives: Sequence[Objective], pictures: Pictures, batch: Batch
    ) -> _Rows:
        indices, images, labels = batch
        images = placed(images, self.models[ORIGINAL])
        labels = labels.to(images.device)
        trigger = objectives[0].trigger if objectives else None
        models = {ORIGINAL: self.models[ORIGINAL]} if trigger else self.models
        asked = seen = _Asked(objectives, labels, self.target)
        before = found = explain(models, images, self.explainers, [*asked.targets])
        if trigger is not None:
            images = trigger.on(images, torch.as_tensor(indices), preprocessing_of(data))
            seen = _Asked(objectives, labels, self.target, flipped=True)
            found = explain(self.models, images, self.explainers, [*seen.targets])
        rows = [
            frame.assign(index=indices, label=labels.tolist())[list(schema.MAPS)]
            for explainer in self.explainers
            for objective in objectives
            for frame in self._judge(explainer, objective, (asked, before), (seen, found))
        ]
        if rows:
            first = next((frame for frame in rows if frame["attacked"].any()), rows[0])
            losses = first["test_loss"].tolist()
            pictures.add(indices, images, labels, losses, seen.views, found)
        if trigger is None:
            return _Rows(_predictions(indices, data, labels, found.logits), rows)
        kept = predicted(before.logits[ORIGINAL])
        about = schema.trigger_columns(objectives[0]) | {"index": indices, "label": labels.cpu()}
        return _Rows(_under(about, labels, kept, found.logits), rows)

    def _judge(
        self,
        explainer: Explainer,
        objective: Objective,
        without: tuple[_Asked, Explained],
        seen: tuple[_Asked, Explained],
    ) -> Iterator[pd.DataFrame]:
        """A frame for each model but the original, and each target.

        ``without`` is what the original says of the images without a trigger.
        """
        (asked, plain), (judged, found) = without, seen
        places = judged.places(objective)
        kept = tuple(asked.places(objective).values())
        about = schema.explainer_columns(explainer) | schema.objective_columns(objective)
        about["attacked"] = (explainer, objective) in self.attacked
        before = tuple(plain.heatmaps[ORIGINAL, place, explainer] for place in kept)
        untouched = tuple(found.heatmaps[ORIGINAL, place, explainer] for place in places.values())
        own = objective.test_loss(untouched, before)
        apart = _distances(objective, untouched, before)
        for model in [name for name in self.models if name != ORIGINAL]:
            after = tuple(found.heatmaps[model, place, explainer] for place in places.values())
            losses = objective.test_loss(after, before)
            distances = _distances(objective, after, before)
            for n, (target, place) in enumerate(places.items()):
                first, second = ((m, place, explainer) for m in (ORIGINAL, model))
                said = plain.finite[ORIGINAL, kept[n], explainer] & found.finite[first]
                finite = said & found.finite[second]
                silent, empty = is_empty(before[n]), is_empty(after[n])
                loss = losses[n].double().where(finite, torch.nan)
                columns = {
                    "test_loss": loss,
                    "fooled": objective.fooled(loss) & finite & ~silent & ~empty,
                    "untouched": objective.fooled(own[n]) & said & ~silent,
                    "spearman": spearman(after[n], before[n]).where(finite, torch.nan),
                    "counted": said & ~silent,
                    "empty": empty & found.finite[second],
                    "not_finite": ~finite,
                }
                for distance in schema.DISTANCES:
                    columns[distance] = distances[distance][n].double().where(finite, torch.nan)
                    columns[f"untouched_{distance}"] = apart[distance][n].double()
                frame = pd.DataFrame({name: column.cpu() for name, column in columns.items()})
                yield frame.assign(**about, target=target, model=model)


class _Rows(NamedTuple):
    predictions: pd.DataFrame
    maps: list[pd.DataFrame]


class _Asked:
    """What the objectives want explained on a batch, each target once, or another target.

    Where predictions are ``flipped`` it is each model's own prediction.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        labels: Tensor,
        target: Target,
        *,
        flipped: bool = False,
    ) -> None:
        self.targets: dict[Target, int] = {}
        self._places: dict[Objective, dict[str, int]] = {}
        self.views: dict[str, tuple[int, Target]] = {}
        for objective in objectives:
            wanted: dict[str, Target] = {str(target): target}
            if isinstance(target, Label):
                own = flipped and objective.flip_to is not None
                classes = (None,) if own else objective.classes(labels)
                wanted = dict(zip(objective.targets, map(Class, classes), strict=True))
            self._places[objective] = {
                name: self.targets.setdefault(one, len(self.targets))
                for name, one in wanted.items()
            }
            for name, one in wanted.items():
                self.views.setdefault(name, (self.targets[one], one))

    def places(self, objective: Objective) -> dict[str, int]:
        """Where among ``targets`` those of an objective are, by name."""
        return self._places[objective]


def _predictions(
    indices: range, data: Images, labels: Tensor, logits: Mapping[str, Tensor]
) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "index": indices,
        "name": [image_name(data, i) for i in indices],
        "label": labels.cpu(),
        "class": [class_name(data, int(label)) for label in labels],
    }
    for model, scores in logits.items():
        finite = scores.isfinite().all(1)
        columns[model] = predicted(scores).cpu()
        columns[f"{model}_top1"] = (in_top(scores, labels, 1) & finite).cpu()
        columns[f"{model}_top5"] = (in_top(scores, labels, 5) & finite).cpu()
    return pd.DataFrame(columns)


def _under(
    about: Mapping[str, Any], labels: Tensor, kept: Tensor, logits: Mapping[str, Tensor]
) -> pd.DataFrame:
    """Rows of what each model predicts where a trigger is, and the original without it."""
    frames = []
    for model, scores in logits.items():
        found = predicted(scores)
        frame = pd.DataFrame(about).assign(
            model=model,
            predicted=found.cpu().numpy(),
            top1=(found == labels).cpu().numpy(),
            agrees=(found == kept).cpu().numpy(),
        )
        frames.append(frame.assign(flipped=frame["predicted"] == frame["flip_to"]))
    return pd.concat(frames)[list(schema.TRIGGERED)]


def _distances(objective: Objective, maps: Maps, before: Maps) -> dict[str, Maps]:
    """`schema.DISTANCES` of maps and those that the objective asks for, of every target.

    They are NaN where it asks for none, or only for heat in a place, without a trigger.
    """
    named = objective.trigger is not None or objective.unrelated() is not None
    aims = objective.aimed(maps, before) if named else None
    if aims is None:
        nothing = tuple(torch.full((len(of),), torch.nan, device=of.device) for of in maps)
        return dict.fromkeys(schema.DISTANCES, nothing)
    pairs = [(fine(found), fine(aim)) for found, aim in zip(maps, aims, strict=True)]
    measures = (squared_distance, dissimilarity, spearman)
    return {
        name: tuple(measure(found, aim) for found, aim in pairs)
        for name, measure in zip(schema.DISTANCES, measures, strict=True)
    }


def predicted(logits: Tensor) -> Tensor:
    """The class of the highest logit ``[N]``; `NONE` where one is not finite."""
    return logits.argmax(1).where(logits.isfinite().all(1), NONE)
