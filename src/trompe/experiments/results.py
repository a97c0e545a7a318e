"""Finished cells as the paper's tables, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trompe import runs
from trompe.evaluation import Evaluation, schema
from trompe.evaluation.schema import MANIPULATED, ORIGINAL
from trompe.experiments.grid import SECTIONS, Cell, Grid, paper
from trompe.experiments.runner import is_finished
from trompe.explainers import parse_explainer
from trompe.objectives import parse_objective

NAN = float("nan")
MEASURED = ("images", "counted", "fsr", "fsr_low", "fsr_high", "untouched", "empty", "not_finite")


@dataclass(frozen=True)
class Results:
    """What a grid has shown so far, shares in [0, 1]; NaN where a cell is not finished.

    Attributes
    ----------
    rates
        One row per cell, target class and explainer: ``fsr`` with its 95 % interval (Wilson's),
        that of the original judged against itself and of the control, shares of maps that are empty
        or not finite, the paper's.
    accuracy
        One row per cell: top-1 with its interval and top-5 of the manipulated model, top-1 of the
        original and of the control, the paper's top-1 and its drop.
    """

    rates: pd.DataFrame
    accuracy: pd.DataFrame

    def save(self, directory: Path) -> None:
        """Write both tables as CSV and parquet."""
        with runs.replacing(directory) as new:
            new.mkdir()
            for name, table in (("rates", self.rates), ("accuracy", self.accuracy)):
                table.to_csv(new / f"{name}.csv", index=False)
                table.to_parquet(new / f"{name}.parquet", index=False)


def collect(grid: Grid, root: Path) -> Results:
    """Read the finished cells of ``grid`` under ``root``."""
    controls = {cell.network: cell for cell in grid.cells if cell.section == "control"}
    cells = [cell for cell in grid.cells if cell.section in SECTIONS]
    return Results(
        pd.DataFrame(
            [row for cell in cells for row in _rates(cell, root, controls)],
            columns=schema.GRID_RATES,
        ),
        pd.DataFrame(
            [_accuracy(cell, root, controls) for cell in cells], columns=schema.GRID_ACCURACY
        ),
    )


def _rates(cell: Cell, root: Path, controls: dict[str, Cell]) -> Iterator[dict[str, Any]]:
    published = paper()
    judges = [parse_explainer(spec).family for spec in cell.settings["eval_explainer"]]
    found, honest = (_evaluation(c, root) for c in (cell, controls.get(cell.network)))
    for target in ("c1", "c2") if cell.section == "active" else ("label",):
        line = published["active"][target] if target != "label" else {}
        line = line or published["passive"].get(cell.objective, {})
        figures = line.get(cell.explainer, {}).get(cell.network, [])
        printed = dict(zip(published["explainers"][cell.section], figures, strict=False))
        for judge in judges:
            ours, kept = (_row(e, _objective(cell), target, judge) for e in (found, honest))
            yield {
                **_place(cell, root),
                "target": target,
                "family": judge,
                "attacked": judge == cell.explainer,
                **{key: ours.get(key, NAN) for key in MEASURED},
                "control": kept.get("fsr", NAN),
                "paper_fsr": _share(printed.get(judge)),
            }


def _accuracy(cell: Cell, root: Path, controls: dict[str, Cell]) -> dict[str, Any]:
    published = paper()
    name = "active" if cell.section == "active" else cell.objective
    printed = published["accuracy"].get(name, {}).get(cell.explainer, {}).get(cell.network)
    before = published["baseline"].get(cell.network)
    found = _evaluation(cell, root)
    measured = _of(found, MANIPULATED)
    row = {key: measured.get(key, NAN) for key in ("top1", "top1_low", "top1_high", "top5")}
    original = _of(found, ORIGINAL).get("top1", NAN)
    honest = _evaluation(controls.get(cell.network), root)
    control = _of(honest, MANIPULATED).get("top1", NAN)
    return {
        **_place(cell, root),
        **row,
        "original_top1": original,
        "control_top1": control,
        "drop": original - row["top1"],
        "drop_from_control": control - row["top1"],
        "paper_top1": _share(printed and printed[0]),
        "paper_drop": _share(printed and before and round(before[0] - printed[0], 6)),
    }


def _place(cell: Cell, root: Path) -> dict[str, Any]:
    return {
        "cell": cell.name,
        "section": cell.section,
        "network": cell.title,
        "objective": _objective(cell),
        "through": cell.explainer,
        "finished": is_finished(cell, root),
    }


def _objective(cell: Cell) -> str:
    return parse_objective(cell.objective).name


def _evaluation(cell: Cell | None, root: Path) -> Evaluation | None:
    if cell is None or not is_finished(cell, root):
        return None
    return Evaluation.load(root / cell.folder / "evaluation")


def _of(found: Evaluation | None, model: str) -> dict[Any, Any]:
    return {} if found is None else dict(found.accuracy.set_index("model").loc[model])


def _row(found: Evaluation | None, objective: str, target: str, judge: str) -> dict[Any, Any]:
    if found is None:
        return {}
    wanted = {"objective": objective, "target": target, "family": judge, "model": MANIPULATED}
    rows = found.explanations
    rows = rows[(rows[list(wanted)] == list(wanted.values())).all(axis=1)]
    return dict(rows.iloc[0]) if len(rows) else {}


def _share(percent: Any) -> float:
    return NAN if percent is None else percent / 100
