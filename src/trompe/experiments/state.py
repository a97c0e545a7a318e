"""Where the cells of a grid are: waiting, running, finished or failed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from trompe import runs
from trompe.errors import TrompeError
from trompe.evaluation import schema
from trompe.evaluation.result import read_table
from trompe.experiments.grid import Cell
from trompe.experiments.runner import is_finished
from trompe.tuning.loop import last_row

FILE = "state.csv"


def states(
    cells: Sequence[Cell],
    root: Path,
    running: Collection[Cell],
    failures: Mapping[Cell, str],
    ends: dict[Cell, dict[str, float]] | None = None,
) -> pd.DataFrame:
    """The table `schema.GRID_STATE`, which is also written to ``state.csv`` under ``root``.

    ``ends`` holds how finished cells ended, as far as earlier calls read it; it is not read again.
    """
    ends = {} if ends is None else ends
    rows = []
    for cell in cells:
        state, why = "waiting", ""
        if is_finished(cell, root):
            state = "finished"
        elif cell in running:
            state = "running"
        elif cell in failures:
            state, why = "failed", failures[cell]
        last = ends.get(cell) or last_row(root / cell.folder, cell.command)
        if state == "finished":
            ends[cell] = last
        figures = {name: last.get(name, math.nan) for name in schema.GRID_STATE[2:-1]}
        rows.append({"cell": cell.name, "state": state, **figures, "why": why})
    table = pd.DataFrame(rows, columns=schema.GRID_STATE)
    with runs.replacing(root / FILE) as new:
        runs.write_csv(table, new)
    return table


def last_known(cells: Sequence[Cell], root: Path) -> tuple[list[Cell], dict[Cell, str]]:
    """The cells that another process runs, and those that failed, with the reason."""
    table = read_table(root / FILE, schema.GRID_STATE).fillna({"why": ""}).set_index("cell")
    known = {cell: table.loc[cell.name] for cell in cells if cell.name in table.index}
    running = [cell for cell, row in known.items() if row["state"] == "running"]
    failures = {cell: str(row["why"]) for cell, row in known.items() if row["state"] == "failed"}
    return (running if running and _in_use(root) else []), failures


def _in_use(root: Path) -> bool:
    try:
        with runs.locked(root):
            return False
    except TrompeError:
        return True
