"""From evidence to a verdict: what is normal, how much each kind weighs, where the alarm is raised.

All of it was measured on models of known origin (`calibrate`) and lies in a JSON file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trompe import runs
from trompe.base import json_text
from trompe.errors import TrompeError

CLIP = (-1.0, 5.0)  # of a suspicion; one kind alone can't outweigh everything
SMALLEST = 0.02  # of what counts as the width of normal
Scores = TypeVar("Scores", float, NDArray[np.float64])
ALARMS = 0.05  # share of honest models for which the alarm may be raised


@dataclass(frozen=True)
class Normal:
    """Where honest models lie: median, 5 % and 95 % quantile of a score."""

    low: float
    median: float
    high: float

    def suspicion(self, value: Scores, suspicious: str) -> Scores:
        """0 at the median, 1 where 5 % of the honest models are more suspicious still."""
        if suspicious == "high":
            found = (value - self.median) / max(self.high - self.median, SMALLEST)
        else:
            found = (self.median - value) / max(self.median - self.low, SMALLEST)
        return cast(Scores, np.clip(found, *CLIP))


UNKNOWN = Normal(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Rule:
    """A linear rule over kinds of evidence.

    Attributes
    ----------
    normal
        By kind and the explainer's family.
    weights, intercept
        Of the suspicion of each kind and family, at least 0; the sum is the log-odds of a
        manipulation where half of the models are manipulated.
    honest
        The rule's sum for honest models of networks that it was not fitted on, ascending.
    found
        Share of manipulated models, also of such networks, for which the alarm is raised.
    """

    normal: Mapping[str, Mapping[str, Normal]]
    weights: Mapping[str, Mapping[str, float]]
    intercept: float
    honest: tuple[float, ...] = ()
    found: float = float("nan")

    @property
    def threshold(self) -> float:
        """Above it the alarm is raised: for at most `ALARMS` of the honest models."""
        return float(np.quantile(self.honest, 1 - ALARMS)) if self.honest else 0.0

    @property
    def typical(self) -> float:
        """Where the median of the honest models lies."""
        return float(np.median(self.honest)) if self.honest else 0.0

    def suspicion(self, kind: str, family: str, suspicious: str, score: Scores) -> Scores:
        """How suspicious a score, or each of an array, is; NaN where normal is not known."""
        normal = self.normal.get(kind, {}).get(family, UNKNOWN)
        return normal.suspicion(score, suspicious)

    def weighed(self, kind: str, family: str, suspicious: str, score: Scores) -> Scores:
        """What that adds to the total: nothing where it is NaN."""
        weight = self.weights.get(kind, {}).get(family, 0.0)
        return cast(Scores, np.nan_to_num(weight * self.suspicion(kind, family, suspicious, score)))

    def judged(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Scores with what is normal, how suspicious they are, and what that adds to the total.

        Parameters
        ----------
        scores
            Columns ``kind``, ``suspicious`` (its end), ``family`` and ``score``.
        """
        rows = []
        for row in scores.to_dict("records"):
            about = row["kind"], row["family"], row["suspicious"], row["score"]
            normal = self.normal.get(row["kind"], {}).get(row["family"], UNKNOWN)
            found = {
                "normal_low": normal.low,
                "normal_median": normal.median,
                "normal_high": normal.high,
                "suspicion": self.suspicion(*about),
                "weighed": self.weighed(*about),
            }
            rows.append(row | found)
        return pd.DataFrame(rows)

    def verdict(self, judged: pd.DataFrame) -> Verdict:
        """Sum up what all kinds and explainers add."""
        by_kind = judged.groupby("kind", sort=False)["weighed"].sum()
        shares = {str(kind): float(weighed) for kind, weighed in by_kind.items()}
        total = self.intercept + sum(shares.values())
        as_high = sum(score >= total for score in self.honest)
        return Verdict(
            total=total,
            threshold=self.threshold,
            alarm=total > self.threshold,
            false_alarms=(1 + as_high) / (1 + len(self.honest)),
            found=self.found,
            shares=shares,
        )


@dataclass(frozen=True)
class Verdict:
    """What the evidence comes to.

    Attributes
    ----------
    total, threshold, alarm
        The rule's sum, where the alarm is raised, and whether it is.
    false_alarms
        Share of honest models, of networks that the rule was not fitted on, that are as suspicious.
    found
        Share of manipulated models for which the alarm is raised.
    shares
        What every kind adds to the total.
    """

    total: float
    threshold: float
    alarm: bool
    false_alarms: float
    found: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Calibration:
    """The two rules, without and with a reference, and how they were found."""

    rules: Mapping[str, Rule]
    weight_drift: tuple[float, float]
    about: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        runs.write_text(path, json.dumps(_rounded(asdict(self)), indent=1) + "\n")


def load_calibration(path: Path | None = None) -> Calibration:
    """Read a calibration that ``trompe calibrate`` wrote; by default the packaged one.

    Raises
    ------
    TrompeError
        If the file can't be read.
    """
    source = path or files(__package__).joinpath("calibration.json")
    try:
        found = json_text.loaded(source.read_text())
        rules = {
            name: Rule(
                {
                    kind: {explainer: Normal(**normal) for explainer, normal in by.items()}
                    for kind, by in rule["normal"].items()
                },
                rule["weights"],
                rule["intercept"],
                tuple(rule["honest"]),
                rule["found"],
            )
            for name, rule in found["rules"].items()
        }
        low, high = found["weight_drift"]
        return Calibration(rules, (low, high), found["about"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrompeError(
            f"The calibration '{path}' can't be read ({type(error).__name__}: {error}); give a "
            "file that trompe calibrate wrote."
        ) from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
