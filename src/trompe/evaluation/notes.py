"""What to know before the numbers of an evaluation are believed, in sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd

from trompe.evaluation.schema import CONTROL, MANIPULATED, MODELS, ORIGINAL, Legend
from trompe.objectives import Same

FEW = 20  # images; of fewer, an accuracy says little


def not_finite(explanations: pd.DataFrame, predictions: pd.DataFrame, legend: Legend) -> list[str]:
    """Maps and logits with NaN or infinite values."""
    notes = []
    for model in [model for model in MODELS if model in predictions]:
        if broken := int((predictions[model] < 0).sum()):
            notes.append(
                f"On {broken} of {len(predictions)} images the logits of the {model} model are NaN "
                "or infinite: they count as wrong."
            )
    for row in _once(explanations[explanations["not_finite"] > 0]):
        notes.append(
            f"{_name(row, legend)}: {round(row['not_finite'] * row['images'])} of {row['images']} "
            f"maps of the {row['model']} model, or the original's of the same images, are NaN or "
            "infinite: they are no lie, and do not count as fooled."
        )
    return notes


def not_counted(explanations: pd.DataFrame, legend: Legend) -> list[str]:
    """Maps of the original that say nothing, so that nothing can be made of them."""
    rows = explanations[explanations["counted"] + _broken(explanations) < explanations["images"]]
    return [
        f"{_name(row, legend)}: {row['images'] - row['counted']} of {row['images']} maps of the "
        "original are empty (the same everywhere) and not counted."
        for row in _once(rows[rows["model"] == MANIPULATED])
    ]


def fooled_untouched(explanations: pd.DataFrame, legend: Legend) -> list[str]:
    """Rates that the original itself reaches."""
    rows = explanations[explanations["model"] == MANIPULATED]
    rows = rows[rows["objective"] != Same.name]  # the untouched model's are the same
    rows = rows[(rows["untouched"] > 0) & (rows["untouched"] >= rows["fsr_low"])]
    return [
        f"{_name(row, legend)}, {legend[row['objective_id']]['label']}: {100 * row['fsr']:.1f} % "
        f"fooled is not more than the {100 * row['untouched']:.1f} % of the untouched model."
        for row in rows.to_dict("records")
    ]


def at_chance(accuracy: pd.DataFrame, predictions: pd.DataFrame) -> list[str]:
    """An original that is not better than guessing."""
    found = accuracy[accuracy["model"] == ORIGINAL]
    classes = predictions["label"].nunique()
    if len(predictions) < FEW or classes < 2 or (found["top1_low"] > 1 / classes).all():
        return []
    return [
        f"The original is right on {100 * found['top1'].iloc[0]:.1f} % of the images, hardly more "
        f"than by guessing among {classes} classes: are the labels those of the model?"
    ]


def the_same(accuracy: pd.DataFrame, explanations: pd.DataFrame) -> list[str]:
    """A manipulated model that does what the original does."""
    found = accuracy[accuracy["model"] == MANIPULATED]
    likeness = explanations[explanations["model"] == MANIPULATED]["spearman_mean"].dropna()
    alike = not found.empty and found["agreement"].iloc[0] == 1 and len(likeness) > 0
    if not alike or likeness.min() < 1 - 1e-9:
        return []
    return [
        "The manipulated model predicts and explains as the original does: is it the same model?"
    ]


def _broken(rows: pd.DataFrame) -> pd.Series[float]:
    return (rows["not_finite"] * rows["images"]).round()


def _once(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """One row per explainer, target and model, whatever the objective."""
    kept = rows.drop_duplicates(["explainer_id", "target", "model"])
    return kept[kept["model"].isin([MANIPULATED, CONTROL])].to_dict("records")


def _name(row: dict[Any, Any], legend: Legend) -> str:
    target = "" if row["target"] == "label" else f" for {row['target']}"
    return f"{legend[row['explainer_id']]['label']}{target}"
