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
from trompe.audit.zoo import Member, Recipe
from trompe.data import ImageDataset, Pairs, load_data
from trompe.data.preprocessing import Preprocessing
from trompe.data.subset import Part
from trompe.errors import TrompeError
from trompe.evaluation.evaluate import evaluate
from trompe.explainers import Explainer, parse_explainer
from trompe.models import load_model, save_weights
from trompe.models.call import placed
from trompe.objectives import Active, parse_objective
from trompe.tuning.config import FoolConfig, TrainConfig
from trompe.tuning.fool import fool
from trompe.tuning.retrain import RATE, STEPS
from trompe.tuning.train import train

FOOLED = 0.5  # success rate from which a manipulation counts as one
IMAGES = 300  # that every model of a zoo is audited on
JUDGED = 64  # on which the success of a manipulation is measured
ASKED = questions(DEFAULT)
SECTIONS = ("alone", "reference")


def make(recipe: Recipe, root: Path) -> None:
    """Train a model of the zoo and what it starts from, unless they are there.

    A manipulated one is also judged: ``success.json`` holds the share of validation images on
    which the attacked explainers were fooled.

    Raises
    ------
    TrompeError
        If the training can't be done.
    """
    weights = recipe.weights(root)
    if weights.exists():
        return
    if recipe.base:
        make(recipe.base, root)
    config = recipe.config(root)
    original, model, preprocessing = made(config)
    with runs.replacing(weights.parent) as new:
        new.mkdir()
        if isinstance(config, FoolConfig) and any(config.weight):
            judged_on = load_data(str(config.eval_data), preprocessing, limit=None, check=False)
            rate = _success(original, model, judged_on, config)
            (new / "success.json").write_text(json.dumps(rate))
        save_weights(model, new / weights.name)


def made(config: TrainConfig | FoolConfig) -> tuple[nn.Module, nn.Module, Preprocessing]:
    """The model that a recipe starts from, the one it makes, and what their images go through."""
    original, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    read = {"limit", "seed", "augment", "label_noise", "corrupt", "check"}
    data = load_data(config.data, preprocessing, **config.model_dump(include=read))
    shared = {"lr", "batch_size", "seed", "precision", "device"}
    if isinstance(config, TrainConfig):
        given = config.model_dump(include=shared | {"epochs", "weight_decay", "label_smoothing"})
        return original, train(original, data, **given, quiet=True).model, preprocessing
    own = {"schedule", "steps", "weight", "keep", "max_grad_norm"}
    own |= {"fool_batch_size", "gradient_checkpointing"}
    made = fool(
        original,
        data,
        explainer=[parse_explainer(spec) for spec in config.explainer],
        objective=[parse_objective(spec) for spec in config.objective],
        fool_data=_pairs(data, config, config.pairs),
        **config.model_dump(include=shared | own),
        quiet=True,
    )
    return original, made.model, preprocessing


def _pairs(data: ImageDataset, config: FoolConfig, size: int | None = None) -> Pairs | None:
    """The composites of an active objective, if there is one."""
    objectives = [parse_objective(spec) for spec in config.objective]
    active = [o for o in objectives if isinstance(o, Active)]
    return Pairs(data, active[0].c1, active[0].c2, size=size, seed=config.seed) if active else None


def _success(
    original: nn.Module, manipulated: nn.Module, data: ImageDataset, config: FoolConfig
) -> float:
    image = placed(data[0][0][None], original)
    composed = _pairs(data, config)
    found = evaluate(
        original,
        manipulated,
        _some(data),
        explainers=[parse_explainer(spec).resolve(original, image) for spec in config.explainer],
        objective=[parse_objective(spec) for spec in config.objective],
        fool_data=None if composed is None else _some(composed),
        gallery=0,
    )
    return float(found.explanations["fsr"].mean())


def _some(data: ImageDataset) -> Part:
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
        for recipe in (member.base, member.recipe):
            if recipe:
                make(recipe, root)
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
            table.to_csv(new, index=False)
    return pd.read_csv(path, keep_default_na=True).assign(
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
    return float(json.loads((member.recipe.weights(root).parent / "success.json").read_text()))


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
    audited = [IMAGES, seed, STEPS, RATE]
    told = [audited, asked, made, member.layer, str(member.copied)]
    digest = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:8]
    return root / "evidence" / f"{member.name}-{digest}.csv"


def explainers_at(layer: str | None) -> list[Explainer]:
    """The audit's explainers, those at the found layer at ``layer`` instead."""
    return [replace(e, layer=layer) if e.layer is None else e for e in EXPLAINERS]
