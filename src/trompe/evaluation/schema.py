"""The columns of every table, and what is told of the explainers and objectives in them.

Rows are told apart by fingerprints (``explainer_id``, ``objective_id``); ``explainer``,
``objective`` and ``objective_text`` are for people. What else is known of a thing stands in the
legend, by its fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from trompe.base import specs
from trompe.data.triggers import NO_TRIGGER
from trompe.explainers import Explainer
from trompe.objectives import Objective

VERSION = 3  # of the tables; those of others are not read, but for
BEFORE_TRIGGERS = 2
MODELS = ORIGINAL, CONTROL, MANIPULATED = "original", "control", "manipulated"

Columns = tuple[str, ...]
EXPLAINER = ("explainer", "explainer_id", "family", "layer")
OBJECTIVE = ("objective", "objective_id", "objective_text", "interval_low", "interval_high")
TRIGGER = ("trigger", "trigger_id", "flip_to")
KEYS: Columns = (*EXPLAINER, *OBJECTIVE, *TRIGGER, "target", "attacked", "model")
"""What a row of the tables of explanations is about.

``trigger``: what was put into the images, or ``none``; ``flip_to``: the class that it
is to turn predictions into, NaN for none.
"""

DISTANCES = ("mse", "dssim", "rank")
"""How a map is compared with the one that an objective asks for: `maps.squared_distance`,
`maps.dissimilarity` and `maps.spearman`; NaN where it asks for none."""

MAPS: Columns = ("index", "label", *KEYS, "test_loss", "fooled", "untouched", "spearman")
MAPS += ("counted", "empty", "not_finite")
MAPS += tuple(f"{of}{distance}" for distance in DISTANCES for of in ("", "untouched_"))
"""One row per image, explainer, objective, target and model.

``fooled``: by this model's map; ``untouched``: by the original's own of the same image, trigger
included, judged like it. Neither is if the map is ``empty`` (the same everywhere) or
``not_finite``. ``counted``: the original's map says something; other images are left out of all
rates and means.
"""

EXPLANATIONS: Columns = (
    *KEYS,
    "images",
    "counted",
    "fsr",
    "fsr_low",
    "fsr_high",
    "untouched",
    "control",
)
EXPLANATIONS += ("test_loss_mean", "test_loss_q05", "test_loss_q50", "test_loss_q95")
EXPLANATIONS += ("spearman_mean", "empty", "not_finite")
EXPLANATIONS += tuple(
    name for d in DISTANCES for name in (d, f"{d}_low", f"{d}_high", f"untouched_{d}")
)
"""One row per explainer, objective, target and model.

``fsr``, ``untouched`` and ``control`` are shares of the ``counted`` images: fooled by this model,
by the original judged against itself, by the control. ``empty`` and ``not_finite`` are shares of
all ``images``.
"""

WITH_TRIGGERS = {*TRIGGER, *(c for c in (*MAPS, *EXPLANATIONS) if set(c.split("_")) & {*DISTANCES})}
"""Columns that version 3 added to both."""

MEASURES = ("top1", "top5", "agreement")
ACCURACY: Columns = ("model", "images")
ACCURACY += tuple(f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high"))
"""One row per model."""

SEEDS: Columns = (*KEYS, "seeds", "images", "counted", "fsr", "fsr_low", "fsr_high", "untouched")
SEEDS += ("control", "p_control", "empty", "not_finite")
"""One row per explainer, objective and target, over all seeds.

``p_control`` is the p-value of ``fsr`` against ``control``, NaN without one.
"""

SEEDS_ACCURACY: Columns = ("model", "seeds", *ACCURACY[1:])
"""One row per model, over all seeds."""

TRIGGERED: Columns = ("index", "label", *TRIGGER, "model", "predicted", "top1", "agrees", "flipped")
"""One row per image, trigger and model: what it predicts where the trigger is.

``agrees``: with the original's prediction of the image without it; ``flipped``: to the class.
"""

TRIGGERS: Columns = (*TRIGGER, "model", "images")
TRIGGERS += tuple(
    f"{m}{end}" for m in ("top1", "agreement", "asr") for end in ("", "_low", "_high")
)
"""One row per trigger and model.

``asr``, the attack success rate, is the share of images of other classes that are predicted as
``flip_to``; NaN without one.
"""

PREDICTIONS = ("index", "name", "label", "class", ORIGINAL, "original_top1", "original_top5")
"""One row per image; the last three also of every other model."""

BACKDOORS: Columns = ("attack", "kind", *EXPLAINER, *TRIGGER, "objective_text", "who", "images")
BACKDOORS += ("original_top1",)
BACKDOORS += tuple(
    f"{measure}{end}"
    for measure in ("top1", "agreement", "triggered_top1", "triggered_agreement", "asr")
    for end in ("", "_low", "_high")
)
BACKDOORS += tuple(
    f"{where}{distance}{end}"
    for where in ("clean_", "")
    for distance in DISTANCES
    for end in ("", "_low", "_high")
)
BACKDOORS += tuple(f"untouched_{distance}" for distance in DISTANCES)
"""One row per attack and trigger, and per model: one that was made here, or one that is published.

``clean_...``: of maps without a trigger, from the original's; the other distances are of maps under
the trigger, from those asked for, ``untouched_...`` the original's.
"""

COMPARED_RATES: Columns = ("run", *EXPLANATIONS)
"""One row per run, explainer, objective and target: those of the manipulated model."""

COMPARED: Columns = ("run", "images", "top1", "top1_low", "top1_high", "original_top1")
COMPARED += ("control_top1", "drop", "fsr", "fsr_low", "fsr_high", "untouched", "control", "front")
"""One row per run. ``fsr`` and what stands beside it are of the attacked explainer that is fooled
least; ``front``: no other run fools more at the same accuracy, or is more accurate and fools as
many.
"""

GRID = ("cell", "section", "network", "objective", "through", "finished", "seeds")
"""What a row of a grid's tables is about.

``through`` is the family of the attacked explainer; ``seeds`` is how many the row is the mean of,
all that there are once it is ``finished``.
"""

GRID_RATES: Columns = (*GRID, "target", "family", "attacked", "images", "counted")
GRID_RATES += ("fsr", "fsr_low", "fsr_high", "untouched", "control", "p_control", "empty")
GRID_RATES += ("not_finite", "paper_fsr")
"""One row per cell, target class and explainer."""

GRID_ACCURACY: Columns = (
    *GRID,
    "top1",
    "top1_low",
    "top1_high",
    "top5",
    "original_top1",
    "control_top1",
)
GRID_ACCURACY += ("drop", "drop_from_control", "paper_top1", "paper_drop")
"""One row per cell."""

GRID_STATE: Columns = ("cell", "state", "step", "held_out_success", "held_out_top1", "why")
"""One row per cell and seed: waiting, running, finished or failed, and why.

``step`` and the shares are the last that a history or a checkpoint holds.
"""

Legend = dict[str, dict[str, Any]]
"""What is known of each explainer and objective, by fingerprint."""


def explainer_columns(explainer: Explainer) -> dict[str, Any]:
    """What tables say of a resolved explainer."""
    values = (str(explainer), explainer.fingerprint, explainer.family, str(explainer.layer))
    return dict(zip(EXPLAINER, values, strict=True))


def objective_columns(objective: Objective) -> dict[str, Any]:
    """What tables say of an objective."""
    values = (objective.name, objective.fingerprint, str(objective), objective.low, objective.high)
    return dict(zip(OBJECTIVE, values, strict=True)) | trigger_columns(objective)


def trigger_columns(objective: Objective) -> dict[str, Any]:
    """What tables say of an objective's trigger."""
    trigger, flip_to = objective.trigger, objective.flip_to
    of = (NO_TRIGGER, NO_TRIGGER) if trigger is None else (str(trigger), trigger.fingerprint)
    return dict(zip(TRIGGER, (*of, math.nan if flip_to is None else float(flip_to)), strict=True))


def legend(explainers: Iterable[Explainer], objectives: Iterable[Objective]) -> Legend:
    """What is known of explainers and objectives; no two have the same label."""
    found: Legend = {e.fingerprint: described_explainer(e) for e in explainers}
    found |= {o.fingerprint: described_objective(o) for o in objectives}
    labels = [entry["label"] for entry in found.values()]
    for fingerprint, entry in found.items():
        if labels.count(entry["label"]) > 1:
            entry["label"] += f" [{fingerprint[:6]}]"
    return found


def described_explainer(explainer: Explainer) -> dict[str, Any]:
    """An explainer in words; its label is like ``LRP at layer4 (composite=epsilon)``."""
    options = specs.given(explainer)
    layer = options.pop("layer", None)
    title = explainer.title
    name = f"{title.removesuffix('_T')} at {layer}" if layer not in (None, "input") else title
    label = _with_options(name, options)
    return {"text": str(explainer), "label": label, "title": title, "family": explainer.family}


def described_objective(objective: Objective) -> dict[str, Any]:
    """An objective in words; its label is like ``Top-k (fraction=0.2)``."""
    title = objective.title or objective.name
    return {
        "text": str(objective),
        "label": _with_options(title, specs.given(objective)),
        "title": title,
        "aim": objective.aim,
        "measure": objective.measure,
    }


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    flat = dict(options)
    flat.update(flat.pop("options", {}))  # of another library's method
    shown = ", ".join(f"{key}={value}" for key, value in flat.items())
    return f"{name} ({shown})" if shown else name
