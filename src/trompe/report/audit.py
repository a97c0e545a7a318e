"""The audit's report: the verdict, the evidence, and the images on which it is strongest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from trompe import runs
from trompe.audit import AuditReport
from trompe.audit.evidence import Kind
from trompe.audit.probe import side_by_side
from trompe.audit.verdict import KINDS_OF
from trompe.data.images import Images
from trompe.evaluation.pictures import image_name, pixels
from trompe.maps import by_maximum
from trompe.report.colour import overlay
from trompe.report.html import write_page
from trompe.report.sheets import gradient, uri
from trompe.report.words import named, number

SHOWN, FIRST = 12, 4  # images of the gallery, and those in sight at once
FINE = 75  # quality of the pictures
LAYERS = 12  # of the table of weights
DOUBTFUL, SUSPICIOUS = 0.5, 1.0
HEADLINES = {
    True: "These explanations look manipulated",
    False: "No sign that these explanations were manipulated",
}
SECTIONS = {"alone": "The model by itself", "reference": "The model against its reference"}


@dataclass(frozen=True)
class Tile:
    """A picture with what it shows and what is odd about it."""

    title: str
    source: str
    alt: str
    notes: list[str]


@dataclass(frozen=True)
class Strip:
    """Where honest models lie and where the score does, each in [0, 100]."""

    low: float
    high: float
    score: float


@dataclass(frozen=True)
class Finding:
    """One kind of evidence: what was asked, what came out, where honest models lie."""

    question: str
    answer: str
    explainer: str
    score: float
    normal: tuple[float, float]
    suspicion: float
    share: float
    strip: Strip | None
    others: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Exhibit:
    """An image with the maps that are evidence, and what is odd about them."""

    name: str
    source: str
    rows: list[tuple[str, list[Tile]]]


def write_audit(directory: Path, found: AuditReport, data: Images) -> Path:
    """Write ``report.html`` into ``directory``: self-contained, without any request.

    Returns
    -------
    The path of the file.
    """
    exhibits = [_exhibit(found, data, int(place)) for place in found.strongest[:SHOWN]]
    pair = _pair(found, data)
    held_out = found.about["held_out"]["alone" if found.before is None else "reference"]
    return write_page(
        directory / "report.html",
        "audit.html.j2",
        program="trompe audit",
        title=directory.resolve().name,
        headline=HEADLINES[found.verdict.alarm],
        summary=found.sentence,
        verdict=found.verdict,
        images=len(found.probe.images),
        agreement=found.agreement,
        about=found.about,
        held_out=held_out,
        sections=[
            (SECTIONS[section], _findings(found, section, kinds))
            for section, kinds in KINDS_OF.items()
            if section in found.verdicts
        ],
        exhibits=exhibits[:FIRST],
        more=exhibits[FIRST:],
        pair=pair,
        weights=found.weights.nlargest(LAYERS, "change").to_dict("records"),
        weights_total=len(found.weights),
        drift=found.weight_drift,
        heat=gradient("heat"),
        **_repetition(directory),
    )


def _repetition(directory: Path) -> dict[str, str]:
    """The command and the settings of the audit, where it has a run directory."""
    config, environment = directory / runs.CONFIG, directory / runs.ENVIRONMENT
    told = json.loads(environment.read_text()) if environment.is_file() else {}
    return {
        "config": config.read_text() if config.is_file() else "",
        "command": str(told.get("command", "")),
    }


def _findings(found: AuditReport, section: str, kinds: tuple[Kind, ...]) -> list[Finding]:
    rows = found.evidence[found.evidence["section"] == section]
    shares = found.verdicts[section].shares
    findings = []
    for kind in kinds:
        of = rows[rows["kind"] == kind.name].sort_values("suspicion", ascending=False)
        if of.empty:
            continue
        worst = of.iloc[0]
        scores = [*of["score"], worst["normal_low"], worst["normal_high"]]
        finite = [float(s) for s in scores if s == s]
        scale = (min([*finite, 0.0]), max([*finite, 1.0]))
        score = float(worst["score"])
        normal = (float(worst["normal_low"]), float(worst["normal_high"]))
        strip = None
        if normal[0] == normal[0]:
            strip = Strip(*(_place(v, scale) for v in (*normal, score)))
        findings.append(
            Finding(
                kind.question,
                _answer(float(worst["suspicion"])),
                named(str(worst["explainer"])),
                score,
                normal,
                float(worst["suspicion"]),
                float(shares.get(kind.name, 0.0)),
                strip,
                [
                    (named(str(r["explainer"])), float(r["score"]), float(r["suspicion"]))
                    for r in of.to_dict("records")
                ],
            )
        )
    return findings


def _place(value: float, scale: tuple[float, float]) -> float:
    share = (value - scale[0]) / (scale[1] - scale[0] or 1.0)
    return round(100 * min(max(share, 0), 1), 1)


def _answer(suspicion: float) -> str:
    if suspicion != suspicion:
        return "not known"
    if suspicion >= SUSPICIOUS:
        return "no"
    return "hardly" if suspicion >= DOUBTFUL else "yes"


def _exhibit(found: AuditReport, data: Images, place: int) -> Exhibit:
    index = int(found.probe.rows[place])
    image = pixels(data, found.probe.images[place]).numpy()
    name = image_name(data, index)
    covered = by_maximum(found.seen.occlusion[place][None])[0]

    def tile(maps: Tensor, words: str, notes: list[str]) -> Tile:
        picture = uri(overlay(image, maps.numpy()), FINE)
        return Tile(words, picture, f"{words}, on {name}", notes)

    marks = found.marks[(found.marks["place"] == place) & (found.marks["over"] == "image")]
    rows = [
        (
            "suspect",
            [
                *(
                    tile(maps[place], named(e), _oddities(marks, e))
                    for e, maps in found.seen.maps.items()
                ),
                tile(covered, "where covering hurts", ["measured, not explained"]),
            ],
        )
    ]
    if found.before is not None:
        rows.append(
            (
                "reference",
                [tile(maps[place], named(e), []) for e, maps in found.before.maps.items()],
            )
        )
    return Exhibit(name, uri(image, FINE), rows)


def _oddities(marks: pd.DataFrame, explainer: str) -> list[str]:
    """The two strongest marks against one map, in words."""
    own = marks[(marks["explainer"] == explainer) & (marks["weighed"] > 0)]
    own = own.sort_values("weighed", ascending=False)[:2]
    return [f"{r['kind']} {number(float(r['value']))}" for r in own.to_dict("records")]


def _pair(found: AuditReport, data: Images) -> dict[str, Any] | None:
    """The pair of classes whose maps follow them least, on two composites."""
    rows = found.marks[(found.marks["kind"] == "class swap")]
    if rows.empty:
        return None
    worst = rows.sort_values(["weighed", "value"], ascending=[False, True]).iloc[0]
    explainer, number_of_pair = str(worst["explainer"]), int(worst["place"])
    probe = found.probe
    chosen = torch.nonzero(probe.pair == number_of_pair)[:, 0][[0, -1]]
    tiles = []
    for place in chosen.tolist():
        left, right = probe.images[probe.left[[place]]], probe.images[probe.right[[place]]]
        image = pixels(data, side_by_side(left, right)[0]).numpy()
        for side, which in enumerate((probe.left, probe.right)):
            name = _class_name(data, int(probe.classes[which[place]]))
            maps = found.seen.composed[explainer][place, side]
            words = f"map of {name}, which is {'left' if side == 0 else 'right'}"
            tiles.append(Tile(words, uri(overlay(image, maps.numpy()), FINE), words, []))
    return {
        "explainer": named(explainer),
        "value": float(worst["value"]),
        "tiles": tiles,
    }


def _class_name(data: Images, index: int) -> str:
    classes = getattr(data, "classes", ())
    return str(classes[index]) if index < len(classes) and len(classes) > 1 else f"class {index}"
