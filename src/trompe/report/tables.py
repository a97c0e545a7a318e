"""The rows of the report's tables."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trompe.report import words
from trompe.report.charts import Strip, place
from trompe.report.run import CONTROL, MANIPULATED, MODELS, ORIGINAL, Run


@dataclass(frozen=True)
class Comparison:
    """A row of the table of success rates: the manipulated model beside the control."""

    explainer: str
    attacked: bool
    manipulated: Mapping[str, Any]
    control: Mapping[str, Any] | None
    strip: Strip | None
    control_strip: Strip | None


@dataclass(frozen=True)
class Block:
    """The rows of one objective and target."""

    objective: str
    target: str | None
    interval: tuple[float, float]
    images: int
    rows: list[Comparison]


def models(run: Run) -> set[str]:
    """Name the models that the evaluation compared."""
    compared = [table["model"] for table in (run.accuracy, run.explanations) if table is not None]
    return set(itertools.chain(*compared))


def blocks(run: Run) -> list[Block]:
    """Make a block of every objective and target, attacked explainers first."""
    if run.explanations is None:
        return []
    table = run.explanations.sort_values("attacked", ascending=False, kind="stable")
    blocks = []
    for (objective, target), rows in table.groupby(["objective", "target"], sort=False):
        interval = (float(rows["interval_low"].iloc[0]), float(rows["interval_high"].iloc[0]))
        shown = rows[["interval_low", "interval_high", "test_loss_q05", "test_loss_q95"]]
        finite = shown.to_numpy(dtype=float)[np.isfinite(shown.to_numpy(dtype=float))]
        scale = (float(finite.min()), float(finite.max()))
        comparisons = [
            _comparison(str(explainer), pair.to_dict("records"), scale)
            for explainer, pair in rows.groupby("explainer", sort=False)
            if MANIPULATED in set(pair["model"])
        ]
        images = int(rows["images"].max())
        block = Block(str(objective), run.target_name(str(target)), interval, images, comparisons)
        blocks.append(block)
    return blocks


def _comparison(
    explainer: str, pair: list[dict[Any, Any]], scale: tuple[float, float]
) -> Comparison:
    by_model = {row["model"]: row for row in pair}
    manipulated, control = by_model[MANIPULATED], by_model.get(CONTROL)

    def strip(row: dict[Any, Any]) -> Strip | None:
        low, middle, high = (float(row[f"test_loss_q{q}"]) for q in ("05", "50", "95"))
        interval = (float(row["interval_low"]), float(row["interval_high"]))
        return place(interval, (low, middle, high), scale)

    return Comparison(
        words.explainer_name(explainer),
        bool(manipulated["attacked"]),
        manipulated,
        control,
        strip(manipulated),
        strip(control) if control else None,
    )


def objectives(blocks: list[Block]) -> list[tuple[str, str, tuple[float, float]]]:
    """Say once for each objective what its test loss is and when it counts as fooled."""
    known = {}
    for block in blocks:
        meaning = words.objective_words(block.objective)
        text = meaning.test_loss if meaning else "the objective’s own measure, per image"
        known[block.objective] = (words.objective_name(block.objective), text, block.interval)
    return list(known.values())


def accuracy(run: Run) -> list[dict[str, Any]]:
    """List the models' accuracies, each with its change from the original's top-1."""
    if run.accuracy is None:
        return []
    rows = {row["model"]: row for row in run.accuracy.to_dict("records")}
    original = rows[ORIGINAL]["top1"]
    return [
        {str(key): value for key, value in rows[model].items()}
        | {"change": math.nan if model == ORIGINAL else rows[model]["top1"] - original}
        for model in MODELS
        if model in rows
    ]
