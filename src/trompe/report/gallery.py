"""The gallery: every image with its heatmaps, as data URIs."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from trompe.report import words
from trompe.report.colour import Pixels, overlay
from trompe.report.run import MODELS, Gallery, Run, View

BUDGET = 3_000_000  # bytes of all pictures together; a third more as base64
LARGEST = 224
T = TypeVar("T")


@dataclass(frozen=True)
class Tile:
    """One heatmap over its image."""

    model: str
    source: str
    alt: str
    verdicts: list[str]


@dataclass(frozen=True)
class Row:
    """The heatmaps of one view: original, control, manipulated."""

    number: int
    title: str
    attacked: bool
    tiles: list[Tile]


@dataclass(frozen=True)
class Card:
    """One image of the gallery, and what the models and the explainers say of it."""

    name: str
    label: str
    source: str
    alt: str
    predictions: list[tuple[str, str, bool]]
    rows: list[Row]

    def says(self, model: str) -> list[str]:
        """Say in words what a model predicts for the image, if that is known."""
        return [f"predicts {said}" for name, said, _ in self.predictions if name == model]


def cards(run: Run) -> list[Card]:
    """Make a card of every image, its pictures the smaller the more of them there are."""
    if run.gallery is None:
        return []
    count = len(run.gallery.images)
    models = sum(map(len, run.gallery.heatmaps.values()))
    photographs = sum(len(_webp(_fit(image, LARGEST))) for image in run.gallery.images)
    side = round(LARGEST * min(1, math.sqrt(BUDGET / (photographs * (1 + models)))))
    verdicts = _verdicts(run, run.gallery)
    return [_card(run, run.gallery, i, run.views, side, verdicts) for i in range(count)]


def exhibit(run: Run) -> Card | None:
    """Make one large card: the first image, under the first attacked explainer."""
    if run.gallery is None or not run.views:
        return None
    verdicts = _verdicts(run, run.gallery)
    return _card(run, run.gallery, 0, run.views[:1], 2 * LARGEST, verdicts)


def _card(
    run: Run,
    gallery: Gallery,
    number: int,
    views: list[View],
    side: int,
    verdicts: Mapping[tuple[int, View, str], list[str]],
) -> Card:
    entry, image = gallery.entries[number], _fit(gallery.images[number], side)
    name, label = str(entry["name"]), str(entry["label_name"])
    rows = []
    for position, view in enumerate(views):
        of = entry["target_names"].get(view.target, view.target)
        tiles = [
            Tile(
                model,
                data_uri(overlay(image, maps[number])),
                f"{words.explainer_name(view.explainer)} of the {model} model for {of}, on {name}",
                verdicts.get((int(entry["index"]), view, model), []),
            )
            for model, maps in _models_in(gallery.heatmaps[view])
        ]
        rows.append(Row(position, words.view_title(run, view), view in run.attacked, tiles))
    predictions = [
        (model, str(predicted), predicted == entry["label_name"])
        for model, predicted in _models_in(entry["predictions"])
    ]
    alt = f"The image {name}, labelled {label}"
    return Card(name, label, data_uri(image), alt, predictions, rows)


def _models_in(values: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(model, values[model]) for model in MODELS if model in values]


def _verdicts(run: Run, gallery: Gallery) -> dict[tuple[int, View, str], list[str]]:
    """Say of each image, view and model what its test losses are and whether they count."""
    if run.per_image is None:
        return {}
    shown = {int(entry["index"]) for entry in gallery.entries}
    rows = run.per_image[run.per_image["index"].isin(shown)]
    several = rows["objective"].nunique() > 1
    verdicts: dict[tuple[int, View, str], list[str]] = {}
    for row in rows.to_dict("records"):
        key = (int(row["index"]), View(row["explainer"], row["target"]), str(row["model"]))
        text = words.objective_name(row["objective"]) if several else "loss"
        text += f" {words.number(float(row['test_loss']), 3)}" + (
            ", fooled" if row["fooled"] else ""
        )
        verdicts.setdefault(key, []).append(text)
    return verdicts


def _fit(pixels: Pixels, side: int) -> Pixels:
    """Shrink an image to at most ``side`` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _webp(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=75, method=2)
    return buffer.getvalue()


def data_uri(pixels: Pixels) -> str:
    """Pixels ``[H, W, 3]`` as a WebP that a page can hold."""
    return f"data:image/webp;base64,{base64.b64encode(_webp(pixels)).decode()}"
