"""Success against accuracy: what more of a lie costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trompe.errors import printable
from trompe.report.transfer import records

ACCENT, GREY, INK = "#a5300f", "#8a8a86", "#222222"
LABELLED = 16  # points; of more, only those on the front have a name


def draw(runs: pd.DataFrame) -> Figure:
    """Draw the table `schema.COMPARED`: a point per run with its 95 % intervals, and the front.

    The untouched model is a cross: its accuracy, and the share of images that it "fools" by itself.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    middle = runs["top1"].median()
    for number, row in enumerate(records(runs)):
        x, y = 100 * row["top1"], 100 * row["fsr"]
        widths = [[100 * abs(row["top1"] - row[f"top1_{end}"])] for end in ("low", "high")]
        heights = [[100 * abs(row["fsr"] - row[f"fsr_{end}"])] for end in ("low", "high")]
        colour = ACCENT if row["front"] else GREY
        axes.errorbar(x, y, heights, widths, "o", color=colour, elinewidth=0.6, markersize=5)
        if row["front"] or len(runs) <= LABELLED:
            axes.annotate(
                printable(row["run"]),
                (x, y),
                xytext=(-6 if row["top1"] > middle else 6, -11 if number % 2 else 5),
                textcoords="offset points",
                ha="right" if row["top1"] > middle else "left",
                fontsize=7,
                color=INK,
                parse_math=False,
            )
    best = runs[runs["front"]].sort_values("top1")
    axes.plot(100 * best["top1"], 100 * best["fsr"], color=ACCENT, linewidth=1, label="front")
    before = runs.drop_duplicates(["original_top1", "untouched"])
    axes.plot(
        100 * before["original_top1"],
        100 * before["untouched"],
        "x",
        color=INK,
        label="untouched model",
    )
    axes.set_xlabel("top-1 accuracy, %")
    axes.set_ylabel("images fooled, %")
    axes.set_ylim(-4, 104)
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="best")
    axes.set_yticks(np.arange(0, 101, 20))
    return figure
