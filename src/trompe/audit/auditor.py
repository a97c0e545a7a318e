"""The audit: show a model a probe, gather the evidence, weigh it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from trompe.audit.answers import Answer, answers, observed, scores
from trompe.audit.evidence import DEFAULT, Evidence, questions, read_kinds
from trompe.audit.exhibits import of_images, of_pairs
from trompe.audit.observe import Observations
from trompe.audit.probe import make_probe
from trompe.audit.report import AuditReport
from trompe.audit.verdict import Calibration, load_calibration
from trompe.audit.weights import weight_drift
from trompe.base.progress import shown
from trompe.data.images import Images, check_images
from trompe.errors import TrompeError
from trompe.explainers import LRP, Explainer, GradCAM, Recording, SimpleGrad, read
from trompe.models import evaluation_mode
from trompe.models.call import class_count, placed

EXPLAINERS: tuple[Explainer, ...] = (
    GradCAM(),
    LRP(layer=None),
    SimpleGrad(layer=None),
    SimpleGrad(),
)
"""What is audited by default; the verdict is calibrated for these."""


def audit(
    model: nn.Module,
    data: Images,
    reference: nn.Module | None = None,
    *,
    explainers: str | Explainer | Iterable[str | Explainer] = EXPLAINERS,
    kinds: Sequence[Evidence | str] = DEFAULT,
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
        What is audited.
    kinds
        The kinds of evidence, or their names: those of `EVIDENCE`, and your own, as in
        ``[*DEFAULT, Mine()]``.
    calibration
        What is normal and how much each kind of evidence weighs: that of ``trompe calibrate``, its
        file, or None for the packaged one, which holds for small convolutional networks. Explainers
        and kinds of evidence that it does not know are shown, but not weighed.
    seed
        Of the images that are taken apart, the noise and the composites.
    batch_size
        Images per forward pass.
    quiet
        Show no progress.

    Returns
    -------
    AuditReport

    Raises
    ------
    TrompeError
        If there are fewer than two images, the reference has other classes, a kind of evidence
        is unknown or given twice, or no explainer can explain the model.
    """
    explainers = read(explainers)
    check_images(data)
    asked = questions(read_kinds(kinds))
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
    used = explainable(model, placed(probe.images[:1], model), explainers)
    asked = [q for q in asked if reference is not None or q.section == "alone"]
    with shown("audit", len(asked) + 1, quiet=quiet) as report:
        seen, others = observed(model, probe, used, reference, seed=seed, batch_size=batch_size)
        report(1, {})
        found = answers(asked, seen, others, lambda done: report(done + 1, {}))
    before = others.get("reference")
    if not found:
        raise TrompeError("No evidence has anything to say of this model; give other kinds.")
    judged = {
        str(section): calibration.rules[str(section)].judged(of)
        for section, of in scores(found).groupby("section", sort=False)
    }
    marks = pd.concat(
        [_marks(number, answer, calibration) for number, answer in enumerate(found)],
        ignore_index=True,
    )
    return AuditReport(
        verdicts={name: calibration.rules[name].verdict(of) for name, of in judged.items()},
        evidence=pd.concat(judged.values(), ignore_index=True),
        marks=marks.drop(columns="answer"),
        agreement=None if before is None else _agreement(seen, before),
        weights=weight_drift(model, reference),
        weight_drift=calibration.weight_drift,
        about=calibration.about,
        images=len(probe.images),
        exhibits=of_images(found, marks, seen, before),
        pairs=of_pairs(found, marks, seen),
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


def _marks(number: int, answer: Answer, calibration: Calibration) -> pd.DataFrame:
    """The values of an answer with what each would add to the total if it were the score."""
    row, values = answer.row, answer.found.double().numpy()
    rule = calibration.rules[row["section"]]
    del row["question"], row["suspicious"]
    weighed = rule.weighed(row["kind"], row["family"], answer.question.evidence.suspicious, values)
    return pd.DataFrame(
        {
            "answer": number,
            **row,
            "over": answer.question.evidence.over,
            "place": range(len(values)),
            "value": values,
            "weighed": weighed,
        }
    )


def _agreement(seen: Observations, before: Observations) -> float:
    """Share of images of which both models predict the same class."""
    return float((seen.logits.argmax(1) == before.logits.argmax(1)).float().mean())
