"""The gallery: every image with its heatmaps before and after, and what is known of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from markupsafe import Markup

from trompe.evaluation.schema import MANIPULATED, MODELS, ORIGINAL
from trompe.report import sheets, words
from trompe.report.run import Run, View

HERO = 448  # side of the first picture of the page
T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """What the test loss says of one model's heatmap of one image."""

    model: str
    text: str
    fooled: bool


@dataclass(frozen=True)
class Card:
    """One image: its place on the sheets, what the models and the explainers say of it.

    ``verdicts`` and ``ranks`` have one entry per view; the lower the rank, the better the lie.
    """

    number: int
    column: int
    row: int
    name: str
    label: str
    chosen: str
    predictions: list[tuple[str, str, bool]]
    verdicts: list[list[Verdict]]
    ranks: list[float | None]

    @property
    def ranking(self) -> str:
        """The ranks as the page's script reads them."""
        return ",".join("" if rank is None else f"{rank:.6g}" for rank in self.ranks)

    def says(self, model: str) -> str:
        """Say in words what a model predicts for the image, if that is known."""
        return next((f"predicts {said}" for name, said, _ in self.predictions if name == model), "")

    def verdict(self, view: int, model: str) -> list[Verdict]:
        """List what one model's test losses are under one view."""
        return [verdict for verdict in self.verdicts[view] if verdict.model == model]


@dataclass(frozen=True)
class Exhibition:
    """All cards, the choices that they share, and the rules that hold their pictures.

    ``signed`` has the numbers of the views that can be shown in signed colours.
    """

    cards: list[Card]
    views: list[tuple[str, bool]]
    signed: list[int]
    models: list[str]
    ratio: float
    rules: Markup
    colours: dict[str, dict[str, str]]
    gradients: dict[str, str]

    @property
    def hero(self) -> Card:
        """The card whose lie is the median one; the first where no loss is known."""
        known = sorted(
            (card for card in self.cards if card.ranks[0] is not None),
            key=lambda card: card.ranks[0] or 0.0,
        )
        return known[len(known) // 2] if known else self.cards[0]

    @property
    def others(self) -> list[str]:
        """The models to compare the original with, the manipulated one first."""
        return [model for model in reversed(self.models) if model != ORIGINAL]

    @property
    def ranked(self) -> bool:
        """Whether the cards can be put in order of their test losses."""
        return any(rank is not None for card in self.cards for rank in card.ranks)


def exhibition(run: Run) -> Exhibition | None:
    """Gather the gallery of a run; ``None`` without images."""
    if run.gallery is None or not run.views:
        return None
    gallery, views = run.gallery, run.views
    count = len(gallery.images)
    losses = _losses(run)
    cards = [_card(run, entry, i, count, losses) for i, entry in enumerate(gallery.entries)]
    found = {model for view in views for model in gallery.heatmaps[view]}
    shown = Exhibition(
        cards,
        [(words.view_title(run, view), view in run.attacked) for view in views],
        [number for number, view in enumerate(views) if view in gallery.signed],
        [model for model in MODELS if model in found],
        gallery.images.shape[2] / gallery.images.shape[1],
        sheets.photographs(gallery.images) + "\n" + sheets.heatmaps(gallery, views),
        {name: sheets.colours(name) for name in sheets.MAPS},
        {name: sheets.gradient(name) for name in sheets.MAPS},
    )
    hero = sheets.photograph("hero", gallery.images[shown.hero.number], HERO)
    return replace(shown, rules=shown.rules + "\n" + hero)


def _card(
    run: Run,
    entry: Mapping[str, Any],
    number: int,
    count: int,
    losses: Mapping[tuple[int, View], list[dict[Any, Any]]],
) -> Card:
    found = [losses.get((int(entry["index"]), view), []) for view in run.views]
    several = len({row["objective_id"] for rows in losses.values() for row in rows}) > 1
    return Card(
        number,
        *sheets.place(number, count),
        name=str(entry["name"]),
        label=str(entry["label_name"]),
        chosen=str(entry.get("chosen", "")),
        predictions=[
            (model, str(said), said == entry["label_name"])
            for model, said in _models_in(entry["predictions"])
        ],
        verdicts=[[_verdict(run, row, several) for row in rows] for rows in found],
        ranks=[_rank(rows) for rows in found],
    )


def _verdict(run: Run, row: Mapping[Any, Any], several: bool) -> Verdict:
    loss = f"loss {words.number(float(row['test_loss']), 3)}"
    text = f"{run.label(row['objective_id'])} {loss}" if several else loss
    return Verdict(str(row["model"]), text, bool(row["fooled"]))


def _rank(rows: list[dict[Any, Any]]) -> float | None:
    """The manipulated model's test loss, turned so that a low one is a good lie.

    Of several objectives the attacked one counts. An interval of success that begins above 0 asks
    for a high loss.
    """
    judged = [row for row in rows if row["model"] == MANIPULATED]
    row = max(judged, key=lambda row: bool(row["attacked"]), default=None)
    if row is None or math.isnan(row["test_loss"]):
        return None
    return float(row["test_loss"]) * (-1 if row["interval_low"] > 0 else 1)


def _losses(run: Run) -> dict[tuple[int, View], list[dict[Any, Any]]]:
    """The rows per image of the gallery's images, by image and view."""
    losses: dict[tuple[int, View], list[dict[Any, Any]]] = {}
    if run.per_image is None or run.gallery is None:
        return losses
    shown = {int(entry["index"]) for entry in run.gallery.entries}
    rows = run.per_image[run.per_image["objective_id"].isin(run.gallery.objectives)]
    for row in rows[rows["index"].isin(shown)].to_dict("records"):
        key = (int(row["index"]), View(row["explainer_id"], row["target"]))
        losses.setdefault(key, []).append(row)
    return losses


def _models_in(values: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(model, values[model]) for model in MODELS if model in values]
