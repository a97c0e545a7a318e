"""What an audit found, in memory and on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from trompe import notebook, runs
from trompe.audit.evidence import Picture
from trompe.audit.exhibits import Exhibit, PairExhibit, Tile
from trompe.audit.verdict import Verdict
from trompe.base import json_text
from trompe.base.messages import first_sentence
from trompe.colour import overlay
from trompe.errors import TrompeError
from trompe.evaluation.pictures import pixels
from trompe.models.weights import plain_content

SUMMARY, PICTURES = "audit.json", "pictures.pt"
TABLES = ("evidence", "marks", "weights")
SHOWN, NORMAL = 4, ["normal_low", "normal_high"]  # images and columns, in a notebook


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Attributes
    ----------
    verdicts
        By section: ``"alone"``, and ``"reference"`` if there is one.
    evidence
        One row per section, kind and explainer: ``question``, ``suspicious`` (which end of the
        scale), ``explainer`` in words, its ``family`` and ``layer``, ``score``, what is normal,
        ``suspicion`` (0 at the median of honest models, 1 where 5 % of them are more suspicious),
        and what that adds to the verdict (``weighed``).
    marks
        The rows behind the scores: one per kind, explainer and image or pair of classes.
    agreement
        Share of images of which suspect and reference predict the same class; None without one.
    weights
        Relative change of every layer from the reference; empty without one.
    weight_drift
        Where the median of these changes lies for honest fine-tunes (5 % and 95 % quantile).
    about
        What the calibration was made of.
    images
        How many the model was shown.
    exhibits, pairs
        The images, and pairs of classes, on which evidence is strongest, with their heatmaps.
    """

    verdicts: Mapping[str, Verdict]
    evidence: pd.DataFrame
    marks: pd.DataFrame
    agreement: float | None
    weights: pd.DataFrame
    weight_drift: tuple[float, float]
    about: Mapping[str, Any]
    images: int
    exhibits: list[Exhibit]
    pairs: list[PairExhibit]

    @property
    def section(self) -> str:
        """That of the verdict that counts."""
        return "reference" if "reference" in self.verdicts else "alone"

    @property
    def verdict(self) -> Verdict:
        """The one that counts: against the reference if there is one, else of the model alone."""
        return self.verdicts[self.section]

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        rate = f"{100 * self.verdict.false_alarms:.0f} %"
        if self.verdict.alarm:
            return (
                "ALARM: these explanations look manipulated. Of honest models of known origin at "
                f"most {rate} look as suspicious."
            )
        return (
            "No alarm: the explanations look like those of honest models, of which up to "
            f"{rate} look as suspicious. {100 * (1 - self.verdict.found):.0f} % of known "
            "manipulations raise no alarm either."
        )

    def __repr__(self) -> str:
        return f"Audit on {self.images} images. {self.sentence}"

    def _repr_html_(self) -> str:
        families = list(dict.fromkeys(self.evidence["family"]))
        rows = []
        for exhibit in self.exhibits[:SHOWN]:
            image = pixels(None, exhibit.image).numpy()
            maps = {tile.family: tile.heatmap.float().numpy() for tile in exhibit.suspect}
            rows.append([image, *(overlay(image, maps[f]) for f in families if f in maps)])
        evidence = self.evidence[self.evidence["section"] == self.section]
        evidence = evidence.sort_values("weighed", ascending=False, kind="stable")
        return (
            notebook.paragraph(repr(self))
            + notebook.pictures(["image", *families], rows)
            + notebook.table(evidence[["question", "family", "score", *NORMAL, "weighed"]])
        )

    def save(self, directory: Path) -> None:
        """Write all of it: tables as CSV and parquet, the verdict, and the heatmaps shown."""
        with runs.replacing(directory) as new:
            new.mkdir()
            for name in TABLES:
                table: pd.DataFrame = getattr(self, name)
                table.to_parquet(new / f"{name}.parquet", index=False)
                if name != "marks":
                    runs.write_csv(table, new / f"{name}.csv")
            verdicts = {section: asdict(verdict) for section, verdict in self.verdicts.items()}
            table = pd.DataFrame([{"section": section} | of for section, of in verdicts.items()])
            runs.write_csv(table.drop(columns="shares"), new / "verdict.csv")
            summary = {
                "verdicts": verdicts,
                "agreement": self.agreement,
                "weight_drift": self.weight_drift,
                "about": dict(self.about),
                "images": self.images,
            }
            (new / SUMMARY).write_text(json.dumps(summary, indent=1))
            torch.save(_plain([self.exhibits, self.pairs]), new / PICTURES)

    @classmethod
    def load(cls, directory: Path) -> AuditReport:
        """Read what `save` wrote; nothing in it is executed.

        Raises
        ------
        TrompeError
            If the directory holds no audit, or not a whole one.
        """
        try:
            told = json_text.loaded((runs.contained(directory) / SUMMARY).read_text())
            tables = {name: runs.read_parquet(directory / f"{name}.parquet") for name in TABLES}
            exhibits, pairs = plain_content(directory / PICTURES)
            return cls(
                verdicts={section: Verdict(**of) for section, of in told["verdicts"].items()},
                agreement=told["agreement"],
                weight_drift=tuple(told["weight_drift"]),
                about=told["about"],
                images=told["images"],
                exhibits=[
                    Exhibit(row, image, *([Tile(*tile) for tile in tiles] for tiles in of))
                    for row, image, *of in exhibits
                ],
                pairs=[
                    PairExhibit(question, scale, family, value, [Picture(*p) for p in pictures])
                    for question, scale, family, value, pictures in pairs
                ],
                **tables,
            )
        except Exception as error:  # what torch.load raises may be anything
            said = f"{type(error).__name__}: {first_sentence(error)}"
            raise TrompeError(
                f"'{directory}' holds no finished audit ({said}); give the directory 'evidence' of "
                "one, or audit again."
            ) from error


def _plain(value: Any) -> Any:
    """Named tuples as lists, which can be read without executing anything."""
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
