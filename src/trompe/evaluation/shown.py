"""An evaluation in a few lines of text, and as a few pictures and tables of a notebook."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from trompe import notebook
from trompe.colour import overlay
from trompe.evaluation.pictures import Gallery
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.notebook import percent

IMAGES = 4


def text(accuracy: pd.DataFrame, explanations: pd.DataFrame) -> str:
    """Accuracy of every model and how often each explainer is fooled, a line each."""
    rates = _rates(explanations)
    lines = [f"Evaluation on {accuracy['images'].max()} images"]
    top1 = zip(accuracy["model"], accuracy["top1"], strict=True)
    lines += [f"  {model}: top-1 {percent(share)}" for model, share in top1]
    for row in rates[: notebook.MOST_ROWS].to_dict("records"):
        told = f"{row['explainer']}, {row['objective']}: {row['fooled']} fooled"
        lines.append(f"  {told} (untouched {row['untouched']}, control {row['control']})")
    if len(rates) > notebook.MOST_ROWS:
        lines.append(f"  {len(rates) - notebook.MOST_ROWS} explainers more")
    return "\n".join(lines)


def html(
    accuracy: pd.DataFrame,
    explanations: pd.DataFrame,
    gallery: Gallery | None,
    notes: Iterable[str],
) -> str:
    """Heatmaps before and after, the two tables, and what to know of them."""
    shares = accuracy[["top1", "top5", "agreement"]].map(percent)
    return "".join(
        [
            "" if gallery is None or explanations.empty else _pictures(gallery, explanations),
            notebook.table(pd.concat([accuracy[["model", "images"]], shares], axis=1)),
            notebook.table(_rates(explanations)),
            *(notebook.paragraph(f"Note: {note}") for note in notes),
        ]
    )


def _rates(explanations: pd.DataFrame) -> pd.DataFrame:
    """How often each explainer is fooled, in words, the attacked first."""
    rows = explanations[explanations["model"] == MANIPULATED]
    rows = rows.sort_values("attacked", ascending=False, kind="stable")
    found = rows[["explainer", "objective_text", "target"]].set_axis(
        ["explainer", "objective", "target"], axis=1
    )
    shares = rows[["fsr", "untouched", "control"]].map(percent)
    return found.assign(fooled=shares["fsr"], **shares[["untouched", "control"]])


def _pictures(gallery: Gallery, explanations: pd.DataFrame) -> str:
    """A few images with the heatmaps of the first explainer that was attacked."""
    first = explanations.sort_values("attacked", ascending=False, kind="stable").iloc[0]
    keys = [(first["explainer_id"], first["target"], model) for model in (ORIGINAL, MANIPULATED)]
    maps = [gallery.heatmaps[key].float().numpy() for key in keys if key in gallery.heatmaps]
    heads = ["image", *(model for *_, model in keys)][: 1 + len(maps)]
    images = gallery.images[:IMAGES].numpy()
    drawn = ([one, *(overlay(one, found[i]) for found in maps)] for i, one in enumerate(images))
    said = f"{first['explainer']}, {first['objective_text']}"
    return notebook.paragraph(said) + notebook.pictures(heads, drawn)
