"""What a trigger does: images without and with it, explained by the original and after the lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trompe.colour import Pixels, overlay
from trompe.data.triggers import NO_TRIGGER
from trompe.evaluation.pictures import Gallery
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.objectives import Same
from trompe.report import sheets
from trompe.report.run import Run

SHOWN = 4  # images
SIDE = 128  # pixels that a picture has at least


@dataclass(frozen=True)
class Picture:
    """One picture: its data, what it is, and what the model predicts."""

    uri: str
    name: str
    says: str


@dataclass(frozen=True)
class Under:
    """One trigger: what it is to do, the predictions under it, and pictures.

    ``models`` are rows of `schema.TRIGGERS`, ``maps`` those of `schema.EXPLANATIONS` of what was
    attacked under it, each with what its explainer is called; ``rows`` have the pictures of an
    image.
    """

    trigger: str
    flip_to: str
    models: list[dict[Any, Any]]
    maps: list[dict[Any, Any]]
    explainer: str
    rows: list[list[Picture]]


def triggers(run: Run) -> list[Under]:
    """Every trigger of a run that was evaluated."""
    if run.evaluation is None or run.explanations is None:
        return []
    found = []
    for trigger, rows in run.evaluation.triggers.groupby("trigger_id", sort=False):
        maps = _maps(run, run.explanations["trigger_id"] == trigger)
        flip_to = rows["flip_to"].iloc[0]
        found.append(
            Under(
                str(rows["trigger"].iloc[0]),
                "" if flip_to != flip_to else _class(run, int(flip_to)),
                rows.to_dict("records"),
                maps,
                maps[0]["called"] if maps else "",
                [*_pictures(run, str(trigger), maps[0])] if maps else [],
            )
        )
    return found


def held(run: Run) -> list[dict[Any, Any]]:
    """How near the attacked maps of images without a trigger stay to the original's."""
    table = run.explanations
    if table is None or run.evaluation is None or run.evaluation.triggers.empty:
        return []
    return _maps(run, (table["objective"] == Same.name) & (table["trigger_id"] == NO_TRIGGER))


def _maps(run: Run, chosen: pd.Series[bool]) -> list[dict[Any, Any]]:
    """The chosen rows of the manipulated model, those attacked if any were."""
    assert run.explanations is not None
    rows = run.explanations[chosen & (run.explanations["model"] == MANIPULATED)]
    if rows["attacked"].any():
        rows = rows[rows["attacked"]]
    return [{**row, "called": run.label(row["explainer_id"])} for row in rows.to_dict("records")]


def _class(run: Run, index: int) -> str:
    """What people call a class, if an image of it was evaluated on."""
    predictions = run.predictions
    if predictions is not None and (predictions["label"] == index).any():
        return str(predictions.loc[predictions["label"] == index, "class"].iloc[0])
    return f"class {index}"


def _pictures(run: Run, trigger: str, row: dict[Any, Any]) -> Iterator[list[Picture]]:
    assert run.evaluation is not None
    plain, triggered = run.evaluation.gallery, run.evaluation.galleries.get(trigger)
    if plain is None or triggered is None:
        return
    view = row["explainer_id"], row["target"]
    seen = {caption["index"]: i for i, caption in enumerate(triggered.captions)}
    shared = [i for i, caption in enumerate(plain.captions) if caption["index"] in seen]
    for number in shared[:SHOWN]:
        other = seen[plain.captions[number]["index"]]
        yield [
            *_of(plain, number, "without trigger", view),
            *_of(triggered, other, "with trigger", view),
        ]


def _of(gallery: Gallery, number: int, name: str, view: tuple[str, str]) -> Iterator[Picture]:
    """An image, and both models' heatmaps of it."""
    caption = gallery.captions[number]
    pixels = gallery.images[number].numpy()
    times = max(1, -(-SIDE // max(pixels.shape[:2])))
    image: Pixels = np.repeat(np.repeat(pixels, times, 0), times, 1)
    yield Picture(sheets.uri(image), name, str(caption["label_name"]))
    for model in (ORIGINAL, MANIPULATED):
        if (*view, model) in gallery.heatmaps:
            heat = gallery.heatmaps[*view, model][number].float().numpy()
            says = f"predicts {caption['predictions'][model]}"
            yield Picture(sheets.uri(overlay(image, heat)), f"{model}, {name}", says)
