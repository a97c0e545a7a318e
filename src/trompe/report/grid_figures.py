"""Pictures of a grid: which attack reaches which explainer, and what the heatmaps look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from trompe.colour import Pixels, overlay
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.experiments import SECTIONS, Cell, Grid, is_finished
from trompe.objectives import parse_objective
from trompe.report.run import Run, View, read_run
from trompe.report.transfer import attack, of_grid
from trompe.report.words import family_name, subscript

PAPER = "the paper’s, of VGG19, ResNet50 and DenseNet121 on ImageNet"


def draw_transfer(rates: pd.DataFrame, directory: Path) -> list[tuple[str, str]]:
    """One matrix per network: rows are attacks, columns explainers, colours success rates.

    The small figures are the paper's. Returns the file names with their titles.
    """
    drawn = []
    for section in SECTIONS:
        rows = rates[rates["section"] == section]
        if rows["fsr"].notna().any():
            of_grid(rows).savefig(directory / f"transfer-{section}.png", dpi=280)
            title = f"Fooling success rate in %, {section} fooling; below, {PAPER}"
            drawn.append((f"transfer-{section}.png", title))
    return drawn


def draw_heatmaps(grid: Grid, root: Path, directory: Path) -> list[tuple[str, str]]:
    """One sheet per network and section: the original's row, a row per fooling, explainers across.

    Active sheets hold both classes. Returns the file names with their titles.
    """
    drawn = []
    for section in SECTIONS:
        for network in grid.targets:
            cells = [
                c
                for c in grid.cells
                if (c.section, c.network) == (section, network) and is_finished(c, root)
            ]
            runs = [(c, run) for c in cells if (run := read_run(root / c.folder)).gallery]
            if runs:
                name = f"{section}-{network}.png"
                _sheet(runs).savefig(directory / name, dpi=100)
                drawn.append((name, f"{cells[0].title}, {section} fooling"))
    return drawn


def _sheet(runs: Sequence[tuple[Cell, Run]]) -> Figure:
    first = runs[0][1]
    assert first.gallery is not None
    views = sorted(first.views, key=lambda view: view.target)
    entry, image = first.gallery.entries[0], first.gallery.images[0]
    rows = [("original", _row(first, views, ORIGINAL))]
    rows += [
        (
            attack(parse_objective(c.objective).title, family_name(c.explainer), None),
            _row(run, views, MANIPULATED),
        )
        for c, run in runs
    ]
    heads = [str(entry["label_name"])]
    for view in views:
        target = first.target_name(view.target)
        title = subscript(first.legend[view.explainer]["title"])
        heads.append(title + (f"\nfor {target}" if target else ""))
    figure = Figure(figsize=(1.7 + 1.15 * len(heads), 0.5 + 1.15 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(heads), squeeze=False)
    for line, (label, pictures) in zip(panels, rows, strict=True):
        for axes, picture in zip(line, [image, *pictures], strict=True):
            axes.imshow(picture, interpolation="lanczos")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    for axes, head in zip(panels[0], heads, strict=True):
        axes.set_title(head, fontsize=7, parse_math=False)
    return figure


def _row(run: Run, views: Sequence[View], model: str) -> list[Pixels]:
    gallery = run.gallery
    assert gallery is not None
    blank = np.full_like(gallery.images[0], 255)
    return [
        overlay(gallery.images[0], gallery.heatmaps[v][model][0])
        if v in gallery.heatmaps
        else blank
        for v in views
    ]
