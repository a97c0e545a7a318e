"""Build a zoo, audit every model in it, fit the verdict and try it on families left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from trompe import runs
from trompe.audit.answers import answers, observed, scores
from trompe.audit.auditor import EXPLAINERS, explainable
from trompe.audit.evidence import DEFAULT, questions
from trompe.audit.fit import auroc, cross_validated
from trompe.audit.probe import make_probe
from trompe.audit.verdict import Calibration, Rule
from trompe.audit.weights import weight_drift
from trompe.audit.zoo import MODELS, Member
from trompe.data import ImageDataset, load_data
from trompe.data.images import Images
from trompe.data.subset import Part
from trompe.errors import TrompeError
from trompe.evaluation.evaluate import evaluate
from trompe.explainers import Explainer
from trompe.models import save_weights
from trompe.models.call import placed
from trompe.tuning.job import FoolJob
from trompe.tuning.plan import Planned
from trompe.tuning.retrain import Retrain

FOOLED = 0.5  # success rate from which a manipulation counts as one
IMAGES = 300  # that every model of a zoo is audited on
JUDGED = 64  # on which the success of a manipulation is measured
ASKED = questions(DEFAULT)
SECTIONS = ("alone", "reference")


def make(planned: Planned, root: Path) -> None:
    """Train a model of the zoo and what it starts from, unless they are there.

    A manipulated one is also judged: ``success.json`` holds the share of validation images on
    which the attacked explainers were fooled.

    Raises
    ------
    TrompeError
        If the training can't be done.
    """
    weights = planned.weights(root / MODELS)
    if weights.exists():
        runs.check_sealed(weights.parent)
        return
    if planned.base:
        make(planned.base, root)
    job = planned.job(root / MODELS)
    original, data, judged_on = job.opened()
    model = job.run(original, data).model
    with runs.replacing(weights.parent) as new:
        new.mkdir()
        if isinstance(job, FoolJob) and job.weight != (0.0,) and judged_on is not None:
            rate = _success(original, model, judged_on, job)
            (new / "success.json").write_text(json.dumps(rate))
        save_weights(model, new / weights.name)
        runs.seal(new)


def _success(
    original: nn.Module, manipulated: nn.Module, data: ImageDataset, job: FoolJob
) -> float:
    image = placed(data[0][0][None], original)
    found = evaluate(
        original,
        manipulated,
        _some(data),
        explainers=[explainer.resolve(original, image) for explainer in job.explainer],
        objective=job.objective,
        fool_data={objective: _some(of) for objective, of in job.composites(data, None).items()},
        gallery=0,
    )
    return float(found.explanations["fsr"].mean())


def _some(data: Images) -> Part:
    """A few images, evenly spaced."""
    return Part(data, list(range(0, len(data), max(1, len(data) // JUDGED)))[:JUDGED])


def evidence_of(member: Member, root: Path, *, seed: int = 0) -> pd.DataFrame:
    """Make a model of the zoo and audit it, with its base as the reference, unless that was done.

    Returns
    -------
    One row per section, kind and explainer, with what the model is.
    """
    path = _kept(member, root, seed)
    if not path.exists():
        for planned in (member.base, member.recipe):
            if planned:
                make(planned, root)
        model, preprocessing = member.load(root)
        data = load_data(
            member.settings["eval_data"], preprocessing, limit=IMAGES, seed=seed, check=False
        )
        probe = make_probe(model, data, seed=seed)
        used = explainable(model, placed(probe.images[:1], model), explainers_at(member.layer))
        reference = member.reference(root)
        table = scores(answers(ASKED, *observed(model, probe, used, reference, seed=seed)))
        if reference is not None:
            changes = weight_drift(model, reference)["change"]
            moved = {"section": "weights", "kind": "drift", "score": float(changes.median())}
            table = pd.concat([table, pd.DataFrame([moved])], ignore_index=True)
        with runs.replacing(path) as new:
            runs.write_csv(table, new)
    if path.stem not in runs.finished(root):
        runs.finish(root, path.stem, path)
    runs.check_intact(root, path)
    return runs.read_csv(path, keep_default_na=True).assign(
        model=member.name,
        network=member.family,
        dataset=member.dataset,
        treatment=member.treatment,
        manipulated=member.manipulated,
        success=success(member, root),
    )


def success(member: Member, root: Path) -> float:
    """Share of validation images on which the attacked explainers are fooled; NaN if honest."""
    if not member.manipulated or member.recipe is None:
        return float("nan")
    return float(runs.read_json(member.recipe.weights(root / MODELS).parent / "success.json"))


def calibrated(
    evidence: pd.DataFrame, about: Mapping[str, Any] | None = None
) -> tuple[Calibration, pd.DataFrame]:
    """Fit both rules; manipulations that did not take are left out.

    Parameters
    ----------
    evidence
        Rows of `evidence_of` of all models.

    Returns
    -------
    The calibration, and one row per section and model with its held-out total.

    Raises
    ------
    TrompeError
        If there are fewer than two families, or no honest or no manipulated model.
    """
    took = ~evidence["manipulated"] | (evidence["success"] >= FOOLED)
    rules: dict[str, Rule] = {}
    tables = []
    measures: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        rows = evidence[took & (evidence["section"] == section)]
        models = rows.drop_duplicates("model")
        kinds = models["manipulated"].value_counts()
        if models["network"].nunique() < 2 or len(kinds) < 2:
            raise TrompeError(
                "A calibration needs honest and manipulated models of at least two families; of "
                f"{len(models)} models {kinds.get(True, 0)} were fooled."
            )
        rules[section], table = cross_validated(rows)
        tables.append(table.assign(section=section))
        measures[section] = _measures(table)
    drift = evidence[(evidence["section"] == "weights") & ~evidence["manipulated"]]["score"]
    low, high = (
        drift.quantile([0.05, 0.95]) if len(drift) else pd.Series([float("nan"), float("nan")])
    )
    described = {
        "images": IMAGES,
        "families": sorted(evidence["network"].unique()),
        "datasets": sorted(evidence["dataset"].unique()),
        "held_out": measures,
        **(about or {}),
    }
    return Calibration(rules, (float(low), float(high)), described), pd.concat(tables)


def _measures(table: pd.DataFrame) -> dict[str, Any]:
    honest = table[~table["manipulated"]]
    lies = table[table["manipulated"]]
    aurocs = {
        str(network): auroc(of["total"].to_numpy(), of["manipulated"].to_numpy())
        for network, of in table.groupby("network")
    }
    return {
        "honest": len(honest),
        "manipulated": len(lies),
        "auroc": auroc(table["total"].to_numpy(), table["manipulated"].to_numpy()),
        "auroc_by_family": aurocs,
        "auroc_mean": float(np.mean(list(aurocs.values()))),
        "found": float(lies["alarm"].mean()),
        "false_alarms": float(honest["alarm"].mean()),
        "found_at_fitted_threshold": float(lies["alarm_before"].mean()),
        "false_alarms_at_fitted_threshold": float(honest["alarm_before"].mean()),
    }


def _kept(member: Member, root: Path, seed: int) -> Path:
    """Where the evidence on a model lies; another audit or another model, another file."""
    asked = [(question.section, question.name) for question in ASKED]
    made = [r.folder if r else "" for r in (member.recipe, member.base)]
    audited = [IMAGES, seed, str(Retrain())]
    told = [audited, asked, made, member.layer, str(member.copied)]
    digest = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:8]
    return root / "evidence" / f"{member.name}-{digest}.csv"


def explainers_at(layer: str | None) -> list[Explainer]:
    """The audit's explainers, those at the found layer at ``layer`` instead."""
    return [replace(e, layer=layer) if e.layer is None else e for e in EXPLAINERS]
