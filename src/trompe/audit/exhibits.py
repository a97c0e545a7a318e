"""What the report shows of the evidence: the images and pairs of classes where it is strongest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from trompe.audit.answers import Answer
from trompe.audit.evidence import Picture
from trompe.audit.observe import Observations
from trompe.audit.probe import PARTS

SHOWN, NOTES = 12, 2  # images at most, and what is said of each map


class Tile(NamedTuple):
    """A heatmap ``[h, w]`` in [0, 1] and the kinds of evidence that speak most against it.

    It is that of an explainer of ``family``, or, where that is empty, what ``caption`` says.
    """

    family: str
    caption: str
    heatmap: Tensor
    notes: list[tuple[str, float]]


class Exhibit(NamedTuple):
    """An image ``[3, H, W]``, normalised, its row in the data, and heatmaps of it by model."""

    row: int
    image: Tensor
    suspect: list[Tile]
    reference: list[Tile]


class PairExhibit(NamedTuple):
    """The pair of classes of which a kind of evidence is strongest, and what shows it."""

    question: str
    scale: str
    family: str
    value: float
    pictures: list[Picture]


def of_images(
    found: Sequence[Answer], marks: pd.DataFrame, seen: Observations, before: Observations | None
) -> list[Exhibit]:
    """The images taken apart on which evidence is strongest, the strongest first.

    Parameters
    ----------
    marks
        A row per value of the answers: ``answer`` (its number), ``section``, ``kind``, ``over``,
        ``place``, ``value``, ``weighed``.
    """
    rows = marks[marks["over"].eq("image") & (marks["place"] < PARTS)]
    each = rows.groupby(["place", "section", "kind"])["weighed"].max()
    by_image = each.groupby("place").sum().sort_values(ascending=False, kind="stable")
    return [
        Exhibit(
            int(seen.probe.rows[place]),
            seen.probe.images[place].clone(),
            [*_maps(place, found, rows, seen), *_pictures(place, found, rows, seen)],
            [Tile(e.family, "", maps[place].clone(), []) for e, maps in before.maps.items()]
            if before
            else [],
        )
        for place in map(int, by_image.index[:SHOWN])
    ]


def of_pairs(found: Sequence[Answer], marks: pd.DataFrame, seen: Observations) -> list[PairExhibit]:
    """For every kind of evidence over pairs that shows any, the strongest."""
    exhibits = []
    rows = marks[marks["over"].eq("pair")]
    for numbers in _by_kind(found, "pair"):
        of = rows[rows["answer"].isin(numbers)]
        low = found[numbers[0]].question.evidence.suspicious == "low"
        worst = of.sort_values(["weighed", "value"], ascending=[False, low]).iloc[0]
        question, explainer, _ = found[int(worst["answer"])]
        evidence = question.evidence
        if pictures := evidence.pictures(seen, explainer, int(worst["place"])):
            value = float(worst["value"])
            exhibits.append(
                PairExhibit(question.text, evidence.scale, explainer.family, value, [*pictures])
            )
    return exhibits


def _maps(
    place: int, found: Sequence[Answer], marks: pd.DataFrame, seen: Observations
) -> list[Tile]:
    """All explainers' heatmaps of an image."""
    against = marks[(marks["place"] == place) & (marks["weighed"] > 0)]
    against = against.sort_values("weighed", ascending=False)
    tiles = []
    for explainer, maps in seen.maps.items():
        own = [number for number, answer in enumerate(found) if answer.explainer == explainer]
        strongest = against[against["answer"].isin(own)][:NOTES]
        notes = [(str(r["kind"]), float(r["value"])) for r in strongest.to_dict("records")]
        tiles.append(Tile(explainer.family, "", maps[place].clone(), notes))
    return tiles


def _pictures(
    place: int, found: Sequence[Answer], marks: pd.DataFrame, seen: Observations
) -> list[Tile]:
    """What kinds of evidence show of an image, for the explainer that each speaks most against."""
    here = marks[marks["place"] == place].set_index("answer")["weighed"]
    tiles = []
    for numbers in _by_kind(found, "image"):
        if known := [number for number in numbers if number in here.index]:
            question, explainer, _ = found[max(known, key=lambda number: here[number])]
            pictures = question.evidence.pictures(seen, explainer, place)
            tiles += [Tile("", p.caption, p.heatmap, []) for p in pictures]
    return tiles


def _by_kind(found: Sequence[Answer], over: str) -> list[list[int]]:
    """The numbers of each kind's answers about the suspect alone."""
    kinds: dict[str, list[int]] = {}
    for number, (question, _, given) in enumerate(found):
        if question.other is None and question.evidence.over == over and len(given):
            kinds.setdefault(question.name, []).append(number)
    return list(kinds.values())
