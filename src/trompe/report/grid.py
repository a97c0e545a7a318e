"""A grid of experiments as one page: the paper's tables with ours, the transfer, the pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from trompe import runs
from trompe.experiments import SECTIONS, Grid, Results
from trompe.report import words
from trompe.report.grid_figures import draw_heatmaps, draw_transfer
from trompe.report.html import write_page
from trompe.report.sheets import uri
from trompe.report.tables import Cell as Rate
from trompe.report.tables import Matrix
from trompe.report.transfer import records
from trompe.report.words import family_name, objective_title


def write_grid(grid: Grid, results: Results, state: pd.DataFrame, root: Path, command: str) -> Path:
    """Write tables, figures and ``report.html`` of the finished cells under ``root``.

    Parameters
    ----------
    state
        The table `schema.GRID_STATE`.
    command
        What runs the grid.

    Returns
    -------
    The path of the page.

    Raises
    ------
    TrompeError
        If a file can't be read or written.
    """
    results.save(root / "tables")
    with runs.replacing(root / "figures") as figures:
        figures.mkdir()
        drawn = draw_transfer(results.rates, figures) + draw_heatmaps(grid, root, figures)
        pictures = [
            {
                "title": title,
                "source": uri(np.asarray(Image.open(figures / name).convert("RGB"))),
            }
            for name, title in drawn
        ]
    return write_state(grid, results, state, root, command, pictures)


def write_state(
    grid: Grid,
    results: Results,
    state: pd.DataFrame,
    root: Path,
    command: str,
    pictures: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write ``report.html`` alone, as `write_grid` does, with pictures that are drawn already."""
    return write_page(
        root / "report.html",
        "grid.html.j2",
        program="trompe reproduce",
        title=grid.scale,
        headline=headline(results),
        summary=_summary(results),
        matrices=[
            (f"{section.capitalize()} fooling", _matrix(grid, results, section))
            for section in SECTIONS
        ],
        accuracy=_accuracy(results),
        pictures=pictures,
        missing=_missing(grid, state, command),
        command=command,
    )


def headline(results: Results) -> str:
    """Say in one sentence what the finished cells show."""
    if not results.accuracy["seeds"].any():
        return "No cell has been run yet."
    rates = results.rates[(results.rates["seeds"] > 0) & results.rates["attacked"]]
    parts = []
    for section, name in (("passive", "Passive"), ("active", "active")):
        rows = rates[rates["section"] == section]
        if len(rows):
            reached = _between(words.percent(rows["fsr"].min()), words.percent(rows["fsr"].max()))
            parts.append(f"{name} fooling succeeds on {reached} of images")
    drop = results.accuracy["drop"]
    changes = _between(words.points(-drop.max()), words.points(-drop.min()))
    sentence = "; ".join([*parts, f"top-1 changes by {changes} points."])
    return sentence[0].upper() + sentence[1:]


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _summary(results: Results) -> str:
    finished, count = int(results.accuracy["finished"].sum()), len(results.accuracy)
    return (
        f"{finished} of {count} manipulated models are finished. Each was attacked through one "
        "explainer (rows) and measured with all of them (columns); the diagonal is marked."
    )


def _matrix(grid: Grid, results: Results, section: str) -> Matrix:
    """The success rates of a section: a line per attack, the explainers of all networks across."""
    rates = results.rates[results.rates["section"] == section]
    networks = list(dict.fromkeys(rates["network"]))
    families = list(dict.fromkeys(rates["family"]))
    folders = {cell.name: cell.folder for cell in grid.cells}
    lines = []
    for (objective, through, target), rows in rates.groupby(
        ["objective", "through", "target"], sort=False
    ):
        found = {(r["network"], r["family"]): _rate(r, folders) for r in records(rows)}
        name = objective_title(str(objective)) + ("" if target == "label" else f", {target}")
        cells = [found.get(place) for place in itertools.product(networks, families)]
        lines.append((name, family_name(str(through)), cells))
    return Matrix(
        f"Success rate of {section} fooling in %",
        [*map(family_name, families)] * len(networks),
        lines,
        [(network, len(families)) for network in networks],
    )


def _rate(record: Mapping[str, Any], folders: Mapping[str, str]) -> Rate:
    note = f"95 % interval {words.span(record['fsr_low'], record['fsr_high'])}; "
    note += f"{words.percent(record['empty'])} of the maps are empty"
    note += f"; mean of {record['seeds']} seeds" if record["seeds"] > 1 else ""
    p = record["p_control"]
    note += "" if math.isnan(p) else f"; p = {words.number(p, 3)} against the control"
    beside = {key: record[key] for key in ("untouched", "control", "empty")}
    beside["paper"] = record["paper_fsr"]
    known = {name: share for name, share in beside.items() if not math.isnan(share)}
    return Rate(
        record["fsr"],
        f"{record['network']}, {family_name(record['family'])}",
        note,
        bool(record["attacked"]),
        [f"{name} {100 * share:.1f}" for name, share in known.items()],
        f"{folders[record['cell']]}/report.html",
        "none counted" if record["seeds"] else "not run",
    )


def _accuracy(results: Results) -> list[dict[str, Any]]:
    return [
        row
        | {
            "objective_name": objective_title(row["objective"]),
            "attacked_name": family_name(row["through"]),
        }
        for row in records(results.accuracy)
    ]


def _missing(grid: Grid, state: pd.DataFrame, command: str) -> list[tuple[str, str, str]]:
    """Cells that are not finished: name, state, command that runs them; bases run with others."""
    bases = {cell.name for cell in grid.cells if cell.section == "base"}
    missing = [(row["cell"], _said(row)) for row in records(state) if row["state"] != "finished"]
    return [
        (name, said, "" if name in bases else f"{command} --cells {name}") for name, said in missing
    ]


def _said(row: Mapping[str, Any]) -> str:
    """A state in words."""
    parts = [row["state"]]
    if not math.isnan(row["step"]):
        parts.append(f"step {row['step']:.0f}")
    for name in ("success", "top1"):
        if not math.isnan(share := row[f"held_out_{name}"]):
            parts.append(f"held-out {name} {words.percent(share)}")
    return ", ".join(parts) + (f": {row['why']}" if row["why"] else "")
