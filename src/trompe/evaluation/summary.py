"""From rows per image to the tables of rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from trompe.evaluation import schema
from trompe.evaluation.schema import CONTROL, ORIGINAL
from trompe.metrics import average, rate

TOLD_APART = ["explainer_id", "objective_id", "target", "model"]


def accuracies(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The table `schema.ACCURACY` of rows `schema.PREDICTIONS`."""
    rows = []
    for model in models:
        row: dict[str, Any] = {"model": model, "images": len(predictions)}
        hits = (
            predictions[f"{model}_top1"],
            predictions[f"{model}_top5"],
            predictions[model] == predictions[ORIGINAL],
        )
        for measure, hit in zip(schema.MEASURES, hits, strict=True):
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = rate(hit)
        rows.append(row)
    return pd.DataFrame(rows, columns=schema.ACCURACY)


def triggers(triggered: pd.DataFrame) -> pd.DataFrame:
    """The table `schema.TRIGGERS` of rows `schema.TRIGGERED`."""
    rows = []
    for _, group in triggered.groupby(["trigger_id", "model"], sort=False):
        row: dict[str, Any] = {key: group[key].iloc[0] for key in (*schema.TRIGGER, "model")}
        row["images"] = len(group)
        others = group[group["label"] != group["flip_to"]]
        flipped = others["flipped"] if group["flip_to"].notna().all() else ()
        hits = {"top1": group["top1"], "agreement": group["agrees"], "asr": flipped}
        for measure, hit in hits.items():
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = rate(hit)
        rows.append(row)
    return pd.DataFrame(rows, columns=schema.TRIGGERS)


def rates(maps: pd.DataFrame) -> pd.DataFrame:
    """The table `schema.EXPLANATIONS` of rows `schema.MAPS`."""
    rows: list[dict[str, Any]] = []
    for _, group in maps.groupby(TOLD_APART, sort=False):
        row = {str(key): group[key].iloc[0] for key in schema.KEYS}
        counted = group[group["counted"]]
        judged = counted[~counted["not_finite"]]
        row |= {"images": len(group), "counted": len(counted)}
        row["fsr"], row["fsr_low"], row["fsr_high"] = rate(counted["fooled"])
        row["untouched"], _, _ = rate(counted["untouched"])
        row["test_loss_mean"] = judged["test_loss"].mean()
        for quantile in (0.05, 0.5, 0.95):
            row[f"test_loss_q{quantile * 100:02.0f}"] = judged["test_loss"].quantile(quantile)
        row["spearman_mean"] = judged["spearman"].mean()
        row |= {share: group[share].mean() for share in ("empty", "not_finite")}
        for distance in schema.DISTANCES:
            names = (distance, f"{distance}_low", f"{distance}_high")
            row |= dict(zip(names, average(judged[distance].dropna()), strict=True))
            row[f"untouched_{distance}"] = judged[f"untouched_{distance}"].mean()
        rows.append(row)
    honest = {_place(row): row["fsr"] for row in rows if row["model"] == CONTROL}
    for row in rows:
        row["control"] = honest.get(_place(row), float("nan"))
    return pd.DataFrame(rows, columns=schema.EXPLANATIONS)


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in TOLD_APART if key != "model")
