"""The images that a report shows: some drawn evenly, and those of the extreme test losses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trompe.base import json_text, processes
from trompe.explainers import Explainer
from trompe.explainers.targets import Class, Target
from trompe.maps import by_magnitude

if TYPE_CHECKING:
    from trompe.evaluation.explained import Explained

EXTREMES = 3  # from each end of the test losses


Key = tuple[str, str, str]  # an explainer's fingerprint, target, model


@dataclass(frozen=True)
class Gallery:
    """A few images with their heatmaps under every model.

    ``images`` is ``[n, H, W, 3]`` of uint8; ``heatmaps`` maps (explainer's fingerprint, target,
    model) to ``[n, h, w]``; ``signed`` does so to the raw maps in [-1, 1], each by its largest
    magnitude, of the explainers that also speak against a class; ``captions`` holds one mapping per
    image, whose ``chosen`` says why it is there if it was not drawn evenly; ``objectives`` has the
    fingerprints of those that judged these images.
    """

    images: Tensor
    heatmaps: dict[Key, Tensor]
    signed: dict[Key, Tensor]
    captions: list[dict[str, Any]]
    objectives: list[str]

    def save(self, path: Path) -> None:
        """Write it as safetensors, the maps in half precision."""
        tensors = {"images": self.images}
        for kind, found in (("", self.heatmaps), ("|signed", self.signed)):
            tensors |= {"|".join(key) + kind: maps.half() for key, maps in found.items()}
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            path,
            {"gallery": json.dumps(self.captions), "objectives": json.dumps(self.objectives)},
        )

    @classmethod
    def load(cls, path: Path) -> Gallery:
        """Read what `save` wrote."""
        heatmaps: dict[Key, Tensor] = {}
        signed: dict[Key, Tensor] = {}
        with safe_open(path, framework="pt") as file:
            captions, judges = (
                json_text.loaded(file.metadata()[k]) for k in ("gallery", "objectives")
            )
            images = file.get_tensor("images")
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if name != "images":
                    explainer, target, model, *kind = name.split("|")
                    place = signed if kind else heatmaps
                    place[explainer, target, model] = file.get_tensor(name)
        return cls(images, heatmaps, signed, captions, judges)


@dataclass(frozen=True)
class _Picture:
    loss: float
    pixels: Tensor
    caption: dict[str, Any]
    heatmaps: dict[Key, Tensor]
    signed: dict[Key, Tensor]


class Pictures:
    """Collects a gallery while batches go by.

    Parameters
    ----------
    data
        What the batches are drawn from.
    count
        How many images to draw, of as many classes as there are; 0 for no gallery at all.
    """

    def __init__(self, data: Any, count: int) -> None:
        self.data = data
        self.evenly = _spread(data, count) if count else set()
        self.kept: dict[int, _Picture] = {}

    def add(
        self,
        indices: Sequence[int],
        images: Tensor,
        labels: Tensor,
        losses: Sequence[float],
        views: Mapping[str, tuple[int, Target]],
        explained: Explained,
    ) -> None:
        """Keep what belongs to the gallery of a batch, and drop what no longer does.

        Parameters
        ----------
        indices, images, labels, losses
            Of the batch; the test losses tell which images are extreme.
        views
            By the target's name, its place among ``explained``, and the target.
        explained
            What the models say of the batch.
        """
        if not self.evenly:
            return
        known = {i: p.loss for i, p in self.kept.items()}
        lowest, highest = _extremes(known | dict(zip(indices, losses, strict=True)))
        wanted = self.evenly.union(lowest, highest)
        self.kept = {i: picture for i, picture in self.kept.items() if i in wanted}
        for row, index in enumerate(indices):
            if index in wanted:
                self.kept[index] = _Picture(
                    losses[row],
                    pixels(self.data, images[row].cpu()),
                    {
                        "index": index,
                        "name": image_name(self.data, index),
                        "label": int(labels[row]),
                        "label_name": class_name(self.data, int(labels[row])),
                        "target_names": {
                            name: _target_name(self.data, target, row)
                            for name, (_, target) in views.items()
                        },
                        "predictions": {
                            model: class_name(self.data, int(scores[row].argmax()))
                            for model, scores in explained.logits.items()
                        },
                    },
                    {
                        key: maps[row].cpu().clone()  # a view would hold the batch
                        for key, maps in _by_target(explained.heatmaps, views)
                    },
                    {
                        key: by_magnitude(maps[row : row + 1])[0].cpu()
                        for key, maps in _by_target(explained.raw, views)
                    },
                )

    def gallery(self, objectives: list[str]) -> Gallery | None:
        """The gallery of all processes: the evenly drawn in order, then the extreme ones.

        ``objectives`` are the fingerprints of those that judged the images.
        """
        found = {i: p for part in processes.merged([self.kept]) for i, p in part.items()}
        if not found:
            return None
        lowest, highest = _extremes({i: picture.loss for i, picture in found.items()})
        why = dict.fromkeys(lowest, "one of the lowest test losses of all")
        why |= dict.fromkeys(highest, "one of the highest test losses of all")
        order = sorted(self.evenly) + sorted(why.keys() - self.evenly)
        pictures = [found[i] for i in order]
        heatmaps, signed = (
            {key: torch.stack([maps[key] for maps in kind]) for key in kind[0]}
            for kind in zip(*((p.heatmaps, p.signed) for p in pictures), strict=True)
        )
        against = {(e, target) for (e, target, _), maps in signed.items() if (maps < 0).any()}
        return Gallery(
            torch.stack([picture.pixels for picture in pictures]),
            heatmaps,
            {key: maps for key, maps in signed.items() if key[:2] in against},
            [found[i].caption | {"chosen": "" if i in self.evenly else why[i]} for i in order],
            objectives,
        )


def _spread(data: Any, count: int) -> set[int]:
    """Indices of ``count`` images: of each class in turn, evenly spread over its images."""
    by_class: dict[int, list[int]] = {}
    labels = torch.as_tensor(getattr(data, "labels", [0] * len(data)))
    for index, label in enumerate(labels.tolist()):
        by_class.setdefault(int(label), []).append(index)
    chosen = min(count, len(by_class))
    classes = [sorted(by_class)[i * len(by_class) // chosen] for i in range(chosen)]
    turns = [(turn, by_class[classes[turn % chosen]]) for turn in range(count)]
    return {rows[turn * len(rows) // count] for turn, rows in turns}


def _by_target(
    found: Mapping[tuple[str, int, Explainer], Tensor], views: Mapping[str, tuple[int, Target]]
) -> Iterator[tuple[Key, Tensor]]:
    """Maps by explainer's fingerprint, target and model."""
    for (model, place, explainer), maps in found.items():
        for target, (where, _) in views.items():
            if where == place:
                yield (explainer.fingerprint, target, model), maps


def _extremes(losses: Mapping[int, float]) -> tuple[list[int], list[int]]:
    """The indices of the lowest and of the highest losses, those that are no number left out."""
    ranked = sorted((loss, index) for index, loss in losses.items() if math.isfinite(loss))
    lowest = [index for _, index in ranked[:EXTREMES]]
    return lowest, [index for _, index in ranked[EXTREMES:][-EXTREMES:]]


def pixels(data: Any, image: Tensor) -> Tensor:
    """An image ``[3, H, W]`` as ``[H, W, 3]`` of uint8; without preprocessing, stretched."""
    preprocessing = getattr(data, "preprocessing", None)
    if preprocessing is not None:
        image = preprocessing.denormalise(image)
    else:
        image = (image - image.amin()) / (image.amax() - image.amin()).clamp_min(1e-12)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def image_name(data: Any, index: int) -> str:
    """What people call an image."""
    return _text(data.name(index)) if hasattr(data, "name") else f"image {index}"


def class_name(data: Any, label: int) -> str:
    """What people call a class; its number where the data has no name for it."""
    classes = getattr(data, "classes", ())
    return _text(classes[label]) if label < len(classes) else str(label)


def _target_name(data: Any, target: Target, row: int) -> str:
    """What people call the class that is explained in a row of a batch, or another target."""
    classes = target.classes if isinstance(target, Class) else None
    if isinstance(classes, Tensor):
        return class_name(data, int(classes[row]))
    return class_name(data, classes) if isinstance(classes, int) else str(target)


def _text(words: object) -> str:
    """A name as tables can hold it: what is no character of UTF-8 in a file's name is a ?."""
    return str(words).encode("utf-8", "replace").decode()
