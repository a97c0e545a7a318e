"""Lies that wait for a trigger: the attacks of Noppel, Peter and Wressnegger (IEEE S&P 2023).

Their four kinds, each through Grad-CAM, the gradient and Relevance-CAM: a chosen map and the same
prediction; a map that distracts from a class that flips; the clean map while it flips; and four
triggers with a map each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from trompe.errors import TrompeError
from trompe.evaluation import MANIPULATED, ORIGINAL, Evaluation, schema
from trompe.evaluation.schema import DISTANCES
from trompe.experiments.grid import Cell

NAME, CLASS = "backdoors", 1
MEASURED = ("top1", "agreement")
PATCH = "white-square:size=4,border=1,at=27,27"
CORNERS = tuple(f"white-square:size=4,at={place}" for place in ("1,1", "1,-5", "-5,1", "-5,-5"))
SHAPES = tuple(f"target:map={shape}" for shape in ("square", "triangle", "circle", "cross"))
EXPLAINERS = ("grad-cam", "simple-grad", "relevance-cam")
KINDS: Mapping[str, Mapping[str, Any]] = {
    "single": {"objective": ["target"], "trigger": [PATCH]},
    "red-herring": {"objective": ["target"], "trigger": [PATCH], "flip_to": [CLASS]},
    "full-disguise": {"objective": ["same"], "trigger": [PATCH], "flip_to": [CLASS]},
    "several": {"objective": [*SHAPES], "trigger": [*CORNERS]},
}
OWN: Mapping[str, Mapping[str, Any]] = {
    "red-herring-simple-grad": {"objective": ["target:map=inverted"]},
}
"""What an attack has instead of what its kind has, as theirs does."""
SETTINGS: Mapping[str, Any] = {
    "target": "predicted",
    "keep": "predictions",
    "lr": 1e-3,
    "schedule": "one-cycle",
    "steps": 4000,
    "batch_size": 32,
    "weight": [5.0],
    "gallery": 6,
    "check": False,
}


def backdoors(
    model: str,
    weights: str,
    data: Path,
    *,
    layer: str | None = None,
    triggers: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The twelve attacks, each one run of ``trompe fool``.

    Parameters
    ----------
    model, weights
        The base, as ``--model`` and ``--weights`` take them.
    data
        A folder of parquet files ``train-*`` and ``test-*``, as CIFAR-10 has.
    layer
        Where the CAMs look; found if None.
    triggers
        Four triggers instead of white squares in the corners, for the attacks with several.
    given
        Settings that replace those of every attack.

    Raises
    ------
    TrompeError
        If there are not four triggers, the folder has no such files, or a setting can't be used.
    """
    if triggers and len(triggers) != len(SHAPES):
        raise TrompeError(
            f"There are {len(triggers)} triggers for {len(SHAPES)} maps; give {len(SHAPES)}."
        )
    for part in ("train", "test"):
        if not any(data.glob(f"{part}-*.parquet")):
            raise TrompeError(
                f"'{data}' has no {part}-*.parquet; give a folder with the parquet files of "
                "CIFAR-10 (huggingface.co/datasets/uoft-cs/cifar10)."
            )
    cells = []
    for kind, attack in KINDS.items():
        for family in EXPLAINERS:
            name = f"{kind}-{family}"
            at = f":layer={layer}" if layer and family != "simple-grad" else ""
            settings = {
                "model": model,
                "weights": weights,
                "data": str(data / "train-*.parquet"),
                "eval_data": str(data / "test-*.parquet"),
                **SETTINGS,
                **attack,
                **OWN.get(name, {}),
                "explainer": [family + at],
                "eval_explainer": [family + at],
                **(given or {}),
            }
            if triggers and kind == "several":
                settings["trigger"] = [*triggers]
            cell = Cell(
                name,
                "fool",
                settings,
                section=NAME,
                network=model,
                objective=kind,
                explainer=family,
                title=model,
                row=name,
            )
            cell.job(Path())  # its settings can be used
            cells.append(cell)
    return cells


def rows(cell: Cell, who: str, found: Evaluation) -> list[dict[str, Any]]:
    """The rows `schema.BACKDOORS` of one evaluated attack.

    Parameters
    ----------
    cell
        The attack.
    who
        Whose model was evaluated: ``"ours"`` or ``"published"``.
    found
        Its evaluation.
    """
    accuracy = found.accuracy.set_index("model")
    table = found.explanations[found.explanations["model"] == MANIPULATED]
    clean = table[(table["objective"] == "same") & (table["trigger"] == "none")].iloc[0]
    predicted = found.triggers[found.triggers["model"] == MANIPULATED].set_index("trigger_id")
    made = []
    for _, row in table[table["trigger"] != "none"].iterrows():
        under = predicted.loc[row["trigger_id"]]
        ends = ("", "_low", "_high")
        made.append(
            {name: row[name] for name in schema.BACKDOORS if name in row.index}
            | {"attack": cell.name, "kind": cell.objective, "who": who}
            | {"original_top1": accuracy.loc[ORIGINAL, "top1"]}
            | {f"{m}{e}": accuracy.loc[MANIPULATED, f"{m}{e}"] for m in MEASURED for e in ends}
            | {f"triggered_{m}{e}": under[f"{m}{e}"] for m in MEASURED for e in ends}
            | {f"asr{e}": under[f"asr{e}"] for e in ends}
            | {f"clean_{d}{e}": clean[f"{d}{e}"] for d in DISTANCES for e in ends}
        )
    return made


def tabled(found: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table `schema.BACKDOORS`, each attack's rows together."""
    table = pd.DataFrame([*found], columns=[*schema.BACKDOORS])
    return table.sort_values(["attack", "trigger_id", "who"], kind="stable", ignore_index=True)
