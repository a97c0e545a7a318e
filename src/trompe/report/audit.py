"""The audit's report: the verdict, the evidence, and the images on which it is strongest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trompe import runs
from trompe.audit import AuditReport
from trompe.audit.exhibits import Exhibit, PairExhibit
from trompe.colour import overlay
from trompe.data.images import Images
from trompe.evaluation.pictures import image_name, pixels
from trompe.report.html import write_page
from trompe.report.sheets import gradient, uri
from trompe.report.words import family_name, number

FIRST = 4  # images of the gallery that are in sight at once
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
class Drawn:
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
    exhibits = [_drawn(exhibit, data) for exhibit in found.exhibits]
    return write_page(
        directory / "report.html",
        "audit.html.j2",
        program="trompe audit",
        title=directory.resolve().name,
        headline=HEADLINES[found.verdict.alarm],
        summary=found.sentence,
        verdict=found.verdict,
        images=found.images,
        agreement=found.agreement,
        about=found.about,
        held_out=found.about["held_out"][found.section],
        sections=[(SECTIONS[section], _findings(found, section)) for section in found.verdicts],
        exhibits=exhibits[:FIRST],
        more=exhibits[FIRST:],
        pairs=[_pair(pair, data) for pair in found.pairs],
        weights=found.weights.nlargest(LAYERS, "change").to_dict("records"),
        weights_total=len(found.weights),
        drift=found.weight_drift,
        heat=gradient("heat"),
        **_repetition(directory),
    )


def _repetition(directory: Path) -> dict[str, str]:
    """The command and the settings of the audit, where it has a run directory."""
    config = directory / runs.CONFIG
    if not config.is_file():
        return {"config": "", "command": ""}
    command = str(runs.environment_of(directory).get("command", ""))
    return {"config": config.read_text(), "command": command}


def _findings(found: AuditReport, section: str) -> list[Finding]:
    rows = found.evidence[found.evidence["section"] == section]
    shares = found.verdicts[section].shares
    findings = []
    for kind, of in rows.groupby("kind", sort=False):
        of = of.sort_values("suspicion", ascending=False)
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
                str(worst["question"]),
                _answer(float(worst["suspicion"])),
                family_name(str(worst["family"])),
                score,
                normal,
                float(worst["suspicion"]),
                float(shares.get(str(kind), 0.0)),
                strip,
                [
                    (family_name(str(r["family"])), float(r["score"]), float(r["suspicion"]))
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


def _drawn(exhibit: Exhibit, data: Images) -> Drawn:
    image = pixels(data, exhibit.image).numpy()
    name = image_name(data, exhibit.row)
    rows = []
    for model, maps in (("suspect", exhibit.suspect), ("reference", exhibit.reference)):
        tiles = []
        for family, caption, heatmap, notes in maps:
            words = family_name(family) if family else caption
            said = [f"{kind} {number(value)}" for kind, value in notes]
            said = said if family else ["measured, not explained"]
            tiles.append(_tile(image, heatmap, words, f"{words}, on {name}", said))
        if tiles:
            rows.append((model, tiles))
    return Drawn(name, uri(image, FINE), rows)


def _pair(pair: PairExhibit, data: Images) -> dict[str, Any]:
    """A pair of classes whose maps are evidence, on composites of both."""
    return {
        "question": pair.question,
        "scale": pair.scale,
        "explainer": family_name(pair.family),
        "value": pair.value,
        "tiles": [
            _tile(pixels(data, image).numpy(), heatmap, caption, caption, [])
            for caption, image, heatmap in pair.pictures
        ],
    }


def _tile(image: Any, heatmap: Tensor, title: str, alt: str, notes: list[str]) -> Tile:
    return Tile(title, uri(overlay(image, heatmap.numpy()), FINE), alt, notes)
