"""The images that a report shows: some drawn evenly, and those of the extreme test losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trompe.base import processes
from trompe.maps import by_magnitude

EXTREMES = 3  # from each end of the test losses


@dataclass(frozen=True)
class Gallery:
    """A few images with their heatmaps under every model.

    ``images`` is ``[n, H, W, 3]`` of uint8; ``heatmaps`` maps (explainer, target, model) to
    ``[n, h, w]``; ``signed`` does so to the raw maps in [-1, 1], each by its largest magnitude, of
    the explainers that also speak against a class; ``captions`` holds one mapping per image, whose
    ``chosen`` says why it is there if it was not drawn evenly.
    """

    images: Tensor
    heatmaps: dict[tuple[str, str, str], Tensor]
    signed: dict[tuple[str, str, str], Tensor]
    captions: list[dict[str, Any]]


@dataclass(frozen=True)
class _Picture:
    loss: float
    pixels: Tensor
    caption: dict[str, Any]
    heatmaps: dict[tuple[str, str, str], Tensor]
    signed: dict[tuple[str, str, str], Tensor]


class Pictures:
    """Collects a gallery while batches go by.

    Parameters
    ----------
    data
        What the batches are drawn from.
    count
        How many images to draw evenly; 0 for no gallery at all.
    """

    def __init__(self, data: Any, count: int) -> None:
        self.data = data
        self.evenly = set(range(0, len(data), -(-len(data) // count))) if count else set()
        self.kept: dict[int, _Picture] = {}

    def add(
        self,
        indices: Sequence[int],
        images: Tensor,
        labels: Tensor,
        losses: Sequence[float],
        explained: Mapping[str, Tensor],
        logits: Mapping[str, Tensor],
        heatmaps: Mapping[tuple[str, str, str], Tensor],
        raw: Mapping[tuple[str, str, str], Tensor],
    ) -> None:
        """Keep what belongs to the gallery of a batch, and drop what no longer does.

        Parameters
        ----------
        indices, images, labels, losses
            Of the batch; the test losses tell which images are extreme.
        explained
            The explained classes by target.
        logits
            By model.
        heatmaps, raw
            ``[N, h, w]`` by model, target and explainer.
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
                        "label_name": class_name(self.data, labels[row]),
                        "target_names": {
                            target: class_name(self.data, classes[row])
                            for target, classes in explained.items()
                        },
                        "predictions": {
                            model: class_name(self.data, scores[row].argmax())
                            for model, scores in logits.items()
                        },
                    },
                    {
                        (e, target, m): maps[row].cpu().clone()  # a view would hold the batch
                        for (m, target, e), maps in heatmaps.items()
                    },
                    {
                        (e, target, m): by_magnitude(maps[row : row + 1])[0].cpu()
                        for (m, target, e), maps in raw.items()
                    },
                )

    def gallery(self) -> Gallery | None:
        """The gallery of all processes: the evenly drawn in order, then the extreme ones."""
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
        )


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


def class_name(data: Any, label: Tensor) -> str:
    """What people call a class."""
    classes = getattr(data, "classes", None)
    return str(label.item()) if classes is None else _text(classes[int(label)])


def _text(words: object) -> str:
    """A name as tables can hold it: what is no character of UTF-8 in a file's name is a ?."""
    return str(words).encode("utf-8", "replace").decode()
