"""A grid of experiments as one page: the paper's tables with ours, the transfer, the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from trompe import rundir
from trompe.experiments import SECTIONS, Cell, Grid, Results
from trompe.report import words
from trompe.report.gallery import data_uri
from trompe.report.grid_figures import (
    draw_heatmaps,
    draw_transfer,
    network_name,
    records,
    short_name,
)
from trompe.report.html import write_page


def write_grid(
    grid: Grid, results: Results, root: Path, command: str, failures: Mapping[Cell, str]
) -> Path:
    """Write tables, figures and ``report.html`` of the finished cells under ``root``.

    Returns
    -------
    The path of the page.

    Raises
    ------
    TrompeError
        If a file can't be read or written.
    """
    results.save(root / "tables")
    with rundir.replacing(root / "figures") as figures:
        figures.mkdir()
        drawn = draw_transfer(results.rates, figures) + draw_heatmaps(grid, root, figures)
        pictures = [
            {
                "title": title,
                "source": data_uri(np.asarray(Image.open(figures / name).convert("RGB"))),
            }
            for name, title in drawn
        ]
    return write_page(
        root / "report.html",
        "grid.html.j2",
        title=grid.scale,
        headline=headline(results),
        summary=_summary(results),
        sections=[_section(results, section) for section in SECTIONS],
        accuracy=_accuracy(results),
        pictures=pictures,
        missing=_missing(results, command, failures),
        command=command,
        folders={cell.name: cell.folder for cell in grid.cells},
    )


def headline(results: Results) -> str:
    """Say in one sentence what the finished cells show."""
    done = results.accuracy["finished"]
    if not done.any():
        return "No cell has been run yet."
    rates = results.rates[results.rates["finished"] & results.rates["on_diagonal"]]
    parts = []
    for section, name in (("passive", "Passive"), ("active", "active")):
        rows = rates[rates["section"] == section]
        if len(rows):
            low, high = words.percent(rows["fsr"].min()), words.percent(rows["fsr"].max())
            parts.append(f"{name} fooling succeeds on {low} to {high} of images")
    drop = results.accuracy["drop"]
    parts.append(f"top-1 changes by {words.points(-drop.max())} to {words.points(-drop.min())}")
    sentence = "; ".join(parts) + " points."
    return sentence[0].upper() + sentence[1:]


def _summary(results: Results) -> str:
    finished, count = int(results.accuracy["finished"].sum()), len(results.accuracy)
    return (
        f"{finished} of {count} manipulated models are finished. Each was attacked through one "
        "explainer (rows) and measured with all of them (columns); the diagonal is marked."
    )


def _section(results: Results, section: str) -> dict[str, Any]:
    rates = results.rates[results.rates["section"] == section]
    networks = list(dict.fromkeys(rates["network"]))
    explainers = list(dict.fromkeys(rates["explainer"]))
    lines = [
        (
            words.objective_name(str(objective)),
            short_name(str(attacked)),
            str(target),
            _ordered(rows, networks, explainers),
        )
        for (objective, attacked, target), rows in rates.groupby(
            ["objective", "attacked", "target"], sort=False
        )
    ]
    return {
        "name": section,
        "networks": [network_name(n) for n in networks],
        "explainers": [short_name(e) for e in explainers],
        "columns": [f"{network_name(n)}, {short_name(e)}" for n in networks for e in explainers],
        "lines": lines,
    }


def _ordered(
    rows: pd.DataFrame, networks: Sequence[str], explainers: Sequence[str]
) -> list[dict[str, Any]]:
    by_place = {(r["network"], r["explainer"]): r for r in records(rows)}
    return [
        by_place.get((network, explainer), {}) for network in networks for explainer in explainers
    ]


def _accuracy(results: Results) -> list[dict[str, Any]]:
    return [
        row
        | {
            "network_name": network_name(row["network"]),
            "objective_name": words.objective_name(row["objective"]),
            "attacked_name": short_name(row["attacked"]),
        }
        for row in records(results.accuracy)
    ]


def _missing(
    results: Results, command: str, failures: Mapping[Cell, str]
) -> list[tuple[str, str, str]]:
    """Cells that are not finished: name, command that runs them, why they failed."""
    why = {cell.name: failure for cell, failure in failures.items()}
    rows = results.accuracy[~results.accuracy["finished"]]
    return [(c, f"{command} --cells {c}", why.get(c, "")) for c in rows["cell"]]
