"""Pictures of a grid: which attack reaches which explainer, and what the heatmaps look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trompe.experiments import SECTIONS, Cell, Grid, family, is_finished
from trompe.report import words
from trompe.report.colour import Pixels, overlay
from trompe.report.run import MANIPULATED, ORIGINAL, Run, View, read_run

RATE = colormaps["cividis"]
NETWORKS = {"vgg19": "VGG19", "resnet50": "ResNet50", "densenet121": "DenseNet121"}


def network_name(network: str) -> str:
    """The network as papers write it."""
    return NETWORKS.get(network, network.replace("resnet", "ResNet"))


def short_name(explainer: str) -> str:
    """An explainer as the paper writes it: LRPₜ for LRP at the target layer."""
    return words.explainer_name(explainer).replace(" at the target layer", "ₜ")


def draw_transfer(rates: pd.DataFrame, directory: Path) -> list[tuple[str, str]]:
    """One matrix per network: rows are attacks, columns explainers, colours success rates.

    The small figures are the paper's. Returns the file names with their titles.
    """
    drawn = []
    for section in SECTIONS:
        rows = rates[rates["section"] == section]
        if rows["finished"].any():
            figure = _matrices(rows)
            figure.savefig(directory / f"transfer-{section}.png", dpi=150)
            title = f"Fooling success rate in %, {section} fooling; below, the paper’s on ImageNet"
            drawn.append((f"transfer-{section}.png", title))
    return drawn


def _matrices(rows: pd.DataFrame) -> Figure:
    networks = list(dict.fromkeys(rows["network"]))
    explainers = list(dict.fromkeys(rows["explainer"]))
    keys = ["objective", "attacked", "target"]
    attacks = list(dict.fromkeys(rows[keys].itertuples(index=False, name=None)))
    size = (2.3 + len(networks) * (0.72 * len(explainers) + 0.2), 1.0 + 0.46 * len(attacks))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    found = {(r["network"], *(r[k] for k in keys), r["explainer"]): r for r in records(rows)}
    for axes, network in zip(panels, networks, strict=True):
        axes.set_title(network_name(network), fontsize=10)
        axes.set_xlim(-0.5, len(explainers) - 0.5)
        axes.set_ylim(len(attacks) - 0.5, -0.5)
        axes.set_xticks(range(len(explainers)), map(short_name, explainers), fontsize=7)
        axes.set_yticks(range(len(attacks)), [_attack(*attack) for attack in attacks], fontsize=8)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for y, attack in enumerate(attacks):
            for x, explainer in enumerate(explainers):
                if record := found.get((network, *attack, explainer)):
                    _square(axes, x, y, record)
    return figure


def _square(axes: Any, x: int, y: int, record: dict[str, Any]) -> None:
    rate, printed = record["fsr"], record["paper_fsr"]
    known = bool(record["finished"])
    face = RATE(rate) if known else (0.94, 0.94, 0.93, 1)
    edge = "crimson" if record["on_diagonal"] else face
    axes.add_patch(
        Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=face, edgecolor=edge, linewidth=1.6)
    )
    ink = "white" if known and rate < 0.5 else "black"
    shown = f"{100 * rate:.1f}" if known else "not run"
    axes.text(x, y - 0.08, shown, ha="center", va="center", fontsize=8, color=ink)
    if printed == printed:
        text = f"{100 * printed:.1f}"
        axes.text(x, y + 0.28, text, ha="center", va="center", fontsize=6, color=ink)


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
                drawn.append((name, f"{network_name(network)}, {section} fooling"))
    return drawn


def _sheet(runs: Sequence[tuple[Cell, Run]]) -> Figure:
    first = runs[0][1]
    assert first.gallery is not None
    views = sorted(first.gallery.heatmaps, key=lambda v: (v.target, _order(runs[0][0], v)))
    entry, image = first.gallery.entries[0], first.gallery.images[0]
    rows = [("original", _row(first, views, ORIGINAL))]
    rows += [
        (
            _attack(c.objective.partition(":")[0], c.explainer, "label"),
            _row(run, views, MANIPULATED),
        )
        for c, run in runs
    ]
    heads = [str(entry["label_name"])]
    for view in views:
        target = first.target_name(view.target)
        heads.append(short_name(family(view.explainer)) + (f"\nfor {target}" if target else ""))
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


def _order(cell: Cell, view: View) -> int:
    return [family(e) for e in cell.settings["eval_explainer"]].index(family(view.explainer))


def _attack(objective: str, explainer: str, target: str) -> str:
    of = "" if target == "label" else f", {target}"
    return f"{words.objective_name(objective)} by {short_name(explainer)}{of}"


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column name."""
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
