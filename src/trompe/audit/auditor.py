"""The audit: show a model a probe, gather the evidence, weigh it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trompe import runs
from trompe.audit.drift import prediction_agreement, weight_drift
from trompe.audit.evidence import KINDS
from trompe.audit.observe import STAGES, Observations, observe
from trompe.audit.probe import PARTS, Probe, make_probe
from trompe.audit.retrained import retrained
from trompe.audit.verdict import KINDS_OF, Calibration, Rule, Verdict, load_calibration
from trompe.base.progress import shown
from trompe.data.images import Images
from trompe.errors import TrompeError
from trompe.explainers import LRP, Explainer, GradCAM, Recording, SimpleGrad, parse_explainer
from trompe.models import evaluation_mode
from trompe.models.call import class_count, placed

EXPLAINERS: tuple[Explainer, ...] = (
    GradCAM(),
    LRP(layer=None),
    SimpleGrad(layer=None),
    SimpleGrad(),
)
"""What is audited by default; the verdict is calibrated for these."""


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Attributes
    ----------
    verdict
        Against the reference if there is one, else that of the model alone.
    verdicts
        By section: ``"alone"``, and ``"reference"`` if there is one.
    evidence
        One row per section, kind and explainer: score, what is normal, suspicion (0 at the median
        of honest models, 1 where 5 % of them are more suspicious), what it adds to the verdict.
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
    probe, seen, before
        What was shown, and what was observed of the suspect and of the reference.
    """

    verdicts: Mapping[str, Verdict]
    evidence: pd.DataFrame
    marks: pd.DataFrame
    agreement: float | None
    weights: pd.DataFrame
    weight_drift: tuple[float, float]
    about: Mapping[str, Any]
    probe: Probe
    seen: Observations
    before: Observations | None

    @property
    def verdict(self) -> Verdict:
        """The one that counts."""
        return self.verdicts["alone" if self.before is None else "reference"]

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

    @property
    def strongest(self) -> Tensor:
        """Places in the probe of the images taken apart, the strongest evidence first."""
        rows = self.marks[self.marks["over"].eq("image") & (self.marks["place"] < PARTS)]
        each = rows.groupby(["place", "section", "kind"])["weighed"].max()
        by_image = each.groupby("place").sum().sort_values(ascending=False, kind="stable")
        return torch.tensor(by_image.index.to_numpy())

    def save(self, directory: Path) -> None:
        """Write the tables as CSV and parquet."""
        with runs.replacing(directory) as new:
            new.mkdir()
            self.evidence.to_csv(new / "evidence.csv", index=False)
            self.weights.to_csv(new / "weights.csv", index=False)
            self.marks.to_parquet(new / "marks.parquet", index=False)
            verdicts = [{"section": s} | vars(v) for s, v in self.verdicts.items()]
            table = pd.DataFrame(verdicts).drop(columns=["shares"])
            table.to_csv(new / "verdict.csv", index=False)


def audit(
    model: nn.Module,
    data: Images,
    reference: nn.Module | None = None,
    *,
    explainers: Sequence[Explainer] = EXPLAINERS,
    calibration: Calibration | Path | None = None,
    seed: int = 0,
    batch_size: int = 32,
    quiet: bool = True,
) -> AuditReport:
    """Ask whether a model's explanations were made to lie.

    Parameters
    ----------
    model
        The suspect, on any device; left as it was.
    data
        Images of the kind that the model is used on, better 300 than 30; their labels are not
        looked at. 100 are explained, 32 taken apart; the others serve as halves of composites.
    reference
        The model that the suspect is said to come from: same classes, same preprocessing.
    explainers
        What is audited. Those that the calibration does not know are shown, but not weighed.
    calibration
        What is normal and how much each kind of evidence weighs: that of ``trompe calibrate``, its
        file, or None for the packaged one, which holds for small convolutional networks.

    Returns
    -------
    AuditReport

    Raises
    ------
    TrompeError
        If there are fewer than two images, the reference has other classes, or no explainer can
        explain the model.
    """
    if not explainers:
        raise TrompeError("An audit needs at least one explainer.")
    if len(data) and reference is not None:
        image = data[0][0]
        count, known = (class_count(m, image) for m in (model, reference))
        if count != known:
            raise TrompeError(
                f"The suspect tells {count} classes apart and the reference {known}; their maps "
                "can't be compared class by class. Audit without a reference, or give another."
            )
    if not isinstance(calibration, Calibration):
        calibration = load_calibration(calibration)
    probe = make_probe(model, data, seed=seed, batch_size=batch_size)
    others = 1 if reference is None else 2  # the retrained copy, the reference
    with shown("audit", STAGES * (1 + others) + 1, quiet=quiet) as report:
        done = 0

        def progress() -> None:
            nonlocal done
            done += 1
            report(done, {})

        used = explainable(model, placed(probe.images[:1], model), explainers)
        seen, copied, before = observed(
            model, probe, used, reference, seed=seed, batch_size=batch_size, progress=progress
        )
    values = measured(seen, copied, before)
    scores = summarised(values)
    verdicts, judged, weighed = {}, [], []
    for section, of in scores.groupby("section", sort=False):
        rule = calibration.rules[str(section)]
        table = rule.judged(of, KINDS_OF[str(section)])
        verdicts[str(section)] = rule.verdict(table)
        judged.append(table)
        weighed.append(_weighed(values[values["section"] == section], rule, str(section)))
    return AuditReport(
        verdicts,
        pd.concat(judged, ignore_index=True),
        pd.concat(weighed, ignore_index=True),
        None if before is None else prediction_agreement(seen, before),
        weight_drift(model, reference),
        calibration.weight_drift,
        calibration.about,
        probe,
        seen,
        before,
    )


def explainable(
    model: nn.Module, image: Tensor, explainers: Sequence[Explainer]
) -> list[Explainer]:
    """The explainers that can explain the model; by default those that can't are left out.

    Raises
    ------
    TrompeError
        If an explainer that was chosen can't, or none can.
    """
    used, complaints = [], []
    for explainer in explainers:
        try:
            with torch.no_grad(), evaluation_mode(model), Recording(model, explainer) as forward:
                forward(image)
                forward.maps(0)
            used.append(explainer)
        except TrompeError as error:
            if explainer not in EXPLAINERS:
                raise
            complaints.append(str(error))
    if not used:
        raise TrompeError(complaints[0])
    return used


def observed(
    model: nn.Module,
    probe: Probe,
    explainers: Sequence[Explainer],
    reference: nn.Module | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Observations, Observations, Observations | None]:
    """What is observed of the suspect, of a retrained copy, and of the reference if any."""
    seen = observe(model, probe, explainers, batch_size=batch_size, progress=progress)
    images = TensorDataset(probe.images, probe.classes)
    tuned = retrained(model, images, probe.classes, seed=seed)
    progress()
    beside = partial(
        observe,
        probe=probe,
        explainers=seen.explainers,
        batch_size=batch_size,
        apart=False,
        progress=progress,
    )
    return seen, beside(tuned), None if reference is None else beside(reference)


def measured(
    seen: Observations, copied: Observations, before: Observations | None = None
) -> pd.DataFrame:
    """All evidence, one row each for section, kind, explainer and place, with its value."""
    parts = []
    for section, other in (("alone", copied), ("reference", before)):
        if other is None:
            continue
        for kind in KINDS_OF[section]:
            found = kind.measure(seen) if kind in KINDS else kind.measure(seen, other)
            for explainer, values in found.items():
                parts.append(
                    pd.DataFrame(
                        {
                            "section": section,
                            "kind": kind.name,
                            "explainer": explainer,
                            "over": kind.over,
                            "place": range(len(values)),
                            "value": values.double().numpy(),
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)


def summarised(values: pd.DataFrame) -> pd.DataFrame:
    """One score per section, kind and explainer; the explainer named without its layer."""
    kinds = {(s, kind.name): kind for s, kinds in KINDS_OF.items() for kind in kinds}
    rows = []
    for (section, name, explainer), of in values.groupby(
        ["section", "kind", "explainer"], sort=False
    ):
        score = kinds[str(section), str(name)].summary(torch.tensor(of["value"].to_list()))
        rows.append(
            {
                "section": section,
                "kind": name,
                "explainer": parse_explainer(str(explainer)).family,
                "layer": str(explainer).partition("layer=")[2].partition(",")[0],
                "score": score,
            }
        )
    return pd.DataFrame(rows)


def _weighed(values: pd.DataFrame, rule: Rule, section: str) -> pd.DataFrame:
    """The values with what each would add to the total if it were the score."""
    named = values.assign(
        explainer=[parse_explainer(e).family for e in values["explainer"]], score=values["value"]
    )
    judged = rule.judged(named, KINDS_OF[section])
    return values.assign(weighed=judged["weighed"].to_numpy())
